"""Ingest of tables larger than memory: records are staged in objects, ordered by place, and gathered.

Two phases, both cut into tasks of bounded memory that any worker can do, and do again after a crash. In the
first, each task reads some fragments of the source and writes pieces: their records ordered by place and
cut into groups of places. In the second, each task gathers one group from all pieces and writes its slices.
Staged objects lie in the run's scratch space, under the attempt, where purge finds whatever is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from sisa_ray.core.errors import ConfigError
from sisa_ray.core.keys import UInt64Array
from sisa_ray.core.order import record_hashes
from sisa_ray.core.records import SliceRef
from sisa_ray.storage import layout
from sisa_ray.storage.checks import Findings
from sisa_ray.storage.columns import Int64Array
from sisa_ray.storage.ingest import (
    NOT_UNIQUE,
    Ingested,
    IngestJob,
    Routed,
    Tally,
    check_num_subjects,
    result,
    route,
    store_place,
)
from sisa_ray.storage.source import Fragment
from sisa_ray.storage.tables import RECORD_ID, gather

_PLACE = "place"
_NUM_READERS = 8
_NUM_FENCES = 256
_DUPLICATES_BYTES = 64 * 2**20


class Piece(BaseModel):
    """A staged object: one Arrow stream a group, then the hashes of record ids, ascending, and their rows."""

    model_config = ConfigDict(frozen=True)

    path: str
    offsets: tuple[int, ...]
    """Where each group begins; the last one is where the hashes begin."""
    num_records: int
    fences: tuple[int, ...]
    """Positions of the hashes that begin each 1/256 of their range, and their number."""


class StageReport(BaseModel):
    """What one task of the first phase did."""

    model_config = ConfigDict(frozen=True)

    pieces: tuple[Piece, ...]
    num_rows: int
    num_refused: int
    refused_tags: tuple[str, ...]
    findings: str

    def tally(self) -> Tally:
        """What was seen."""
        tally = Tally()
        tally.findings = Findings.from_json(self.findings)
        tally.num_rows = self.num_rows
        tally.num_refused = self.num_refused
        tally.refused_tags = set(self.refused_tags)
        return tally


@dataclass(frozen=True, kw_only=True)
class Staging:
    """An ingest job cut into tasks."""

    job: IngestJob
    parts: tuple[tuple[Fragment, ...], ...]
    """Fragments that each task of the first phase reads."""
    groups: tuple[tuple[int, ...], ...]
    """Places that each task of the second phase writes, ascending."""
    piece_bytes: int

    @classmethod
    def plan(cls, job: IngestJob, *, piece_bytes: int) -> Staging:
        """Cut a job into tasks that hold about ``piece_bytes`` of records each (one slice may be larger)."""
        places = job.places
        share = len(places) / (job.layout.num_shards * job.layout.num_slices)
        num_groups = min(len(places), max(1, round(job.source.num_bytes * share / piece_bytes)))
        return cls(
            job=job,
            parts=tuple(job.source.split(piece_bytes)),
            groups=tuple(tuple(group.tolist()) for group in np.array_split(np.array(places), num_groups)),
            piece_bytes=piece_bytes,
        )

    @property
    def prefix(self) -> str:
        """All staged objects lie below this."""
        return f"{layout.scratch_prefix(self.job.attempt)}ingest/"

    def stage(self, part: int) -> StageReport:
        """First phase: check and route the records of one part and stage them."""
        tally = Tally()
        pieces: list[Piece] = []
        waiting: list[Routed] = []
        for batch in self.job.source.read(self.parts[part], use_threads=False):
            waiting.append(route(self.job, batch, tally))
            if sum(r.table.nbytes for r in waiting) >= self.piece_bytes:
                pieces.append(self._write(part, len(pieces), waiting))
                waiting = []
        if waiting:
            pieces.append(self._write(part, len(pieces), waiting))
        return StageReport(
            pieces=tuple(pieces),
            num_rows=tally.num_rows,
            num_refused=tally.num_refused,
            refused_tags=tuple(sorted(tally.refused_tags)),
            findings=tally.findings.to_json(),
        )

    def _write(self, part: int, number: int, routed: Sequence[Routed]) -> Piece:
        sink = pa.BufferOutputStream()
        offsets = [0]
        for group in self.groups:
            tables = [_with_places(r, group[0], group[-1] + 1) for r in routed]
            if any(t.num_rows for t in tables):
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                with pa.ipc.new_stream(sink, tables[0].schema, options=options) as stream:
                    for table in tables:
                        stream.write_table(table)
            offsets.append(sink.tell())
        ids = [i for r in routed for i in r.table[RECORD_ID].to_pylist()]
        hashes = record_hashes(ids, seed=self.job.layout.seed)
        order = np.argsort(hashes)
        hashes = hashes[order]
        sink.write(hashes.tobytes())
        sink.write(np.concatenate([r.rows for r in routed])[order].tobytes())
        # The same name when a task is done again, so that no copy is left behind.
        path = f"{self.prefix}{part:06d}-{number:06d}.arrow"
        self.job.store.put(path, memoryview(sink.getvalue()))
        starts = np.arange(_NUM_FENCES, dtype=np.uint64) << np.uint64(56)
        return Piece(
            path=path,
            offsets=tuple(offsets),
            num_records=len(ids),
            fences=(*np.searchsorted(hashes, starts).tolist(), len(ids)),
        )

    def checked(self, reports: Sequence[StageReport]) -> tuple[list[Piece], Tally]:
        """Between the phases: all pieces, if what all tasks have seen together breaks no rule.

        Raises:
            DataError: listing rows that break rules.
        """
        tally = Tally()
        for report in reports:
            tally.update(report.tally())
        pieces = sorted((p for report in reports for p in report.pieces), key=lambda piece: piece.path)
        tally.findings.add(NOT_UNIQUE, self._duplicates(pieces))
        tally.findings.raise_if_any(self.job.source.url, self.job.source.where)
        return pieces, tally

    def store_group(self, group: int, pieces: Sequence[Piece]) -> list[SliceRef]:
        """Second phase: gather one group from all pieces and write its slices."""
        places = self.groups[group]
        found = [p for p in pieces if p.offsets[group + 1] > p.offsets[group]]
        with ThreadPoolExecutor(_NUM_READERS) as readers:
            tables = list(readers.map(lambda p: self._read_group(p, group), found))
        if not tables:
            return [store_place(self.job, p, []) for p in places]
        table = pa.concat_tables(tables)
        del tables
        numbers = np.asarray(table[_PLACE]).astype(np.int64)
        table = gather(table.drop_columns([_PLACE]), np.argsort(numbers, kind="stable"))
        bounds = np.cumsum([0, *np.bincount(numbers - places[0], minlength=places[-1] - places[0] + 1)])
        refs = []
        for number in places:
            low, high = bounds[number - places[0]], bounds[number - places[0] + 1]
            refs.append(store_place(self.job, number, [table.slice(int(low), int(high - low))]))
        return refs

    def _read_group(self, piece: Piece, group: int) -> pa.Table:
        data = self._read(piece, piece.offsets[group], piece.offsets[group + 1])
        return pa.ipc.open_stream(data).read_all()

    def _read(self, piece: Piece, start: int, end: int) -> bytes:
        with self.job.store.open(piece.path) as file:
            file.seek(start)
            return file.read(end - start)

    def finished(self, slices: Sequence[SliceRef], tally: Tally) -> Ingested:
        """After the second phase: the result.

        Raises:
            ConfigError: where there are more shards than subjects; the slices are deleted.
        """
        try:
            check_num_subjects(self.job, sum(ref.num_subjects for ref in slices), tally)
        except ConfigError:
            self.job.store.delete([ref.path for ref in slices if ref.path is not None])
            raise
        return result(self.job, slices, tally)

    def _duplicates(self, pieces: Sequence[Piece]) -> list[int]:
        """Rows whose record id some other row has too, anywhere in the table: found by hash, then confirmed.

        Works through the range of the hashes in steps, so that the memory it takes is bounded.
        """
        num_steps = 1 + 16 * sum(p.num_records for p in pieces) // _DUPLICATES_BYTES
        edges = np.linspace(0, _NUM_FENCES, min(_NUM_FENCES, num_steps) + 1).astype(int).tolist()
        found: list[int] = []
        for low, high in pairwise(edges):
            suspects = _repeated([self._hashes(p, p.fences[low], p.fences[high]) for p in pieces])
            if len(suspects):
                found += self._confirmed(suspects).tolist()
        return found

    def _hashes(self, piece: Piece, low: int, high: int) -> tuple[UInt64Array, Int64Array]:
        start = piece.offsets[-1]
        hashes = self._read(piece, start + 8 * low, start + 8 * high)
        start += 8 * piece.num_records
        rows = self._read(piece, start + 8 * low, start + 8 * high)
        return np.frombuffer(hashes, dtype=np.uint64), np.frombuffer(rows, dtype=np.int64)

    def _confirmed(self, suspects: Int64Array) -> Int64Array:
        """Those of the rows whose record ids really are equal to another's."""
        keys = self.job.source.keys_only()
        ids, rows = [], []
        for fragment in self.job.source.fragments:
            wanted = _within(suspects, fragment.first_row, fragment.num_rows)
            for batch in keys.read([fragment]) if len(wanted) else ():
                here = _within(wanted, batch.first_row, batch.num_rows)
                assert batch.record_ids is not None
                ids += batch.record_ids.take(pa.array(here - batch.first_row)).to_pylist()
                rows += here.tolist()
        order = np.argsort(rows)
        _, codes, counts = np.unique(ids, return_inverse=True, return_counts=True)
        return np.array(rows, dtype=np.int64)[order][counts[codes[order]] > 1]

    def clear(self) -> None:
        """Delete everything that was staged."""
        store = self.job.store
        store.delete([info.path for info in store.list(self.prefix)])


def _with_places(routed: Routed, first_place: int, end_place: int) -> pa.Table:
    low, high = np.searchsorted(routed.places, [first_place, end_place])
    places = pa.array(routed.places[low:high].astype(np.int32))
    return routed.at(first_place, end_place).append_column(_PLACE, places)


def _within(rows: Int64Array, first_row: int, num_rows: int) -> Int64Array:
    return rows[(rows >= first_row) & (rows < first_row + num_rows)]


def _repeated(found: Sequence[tuple[UInt64Array, Int64Array]]) -> Int64Array:
    """Rows whose hash occurs more than once, ascending."""
    hashes = np.concatenate([np.zeros(0, dtype=np.uint64), *(h for h, _ in found)])
    rows = np.concatenate([np.zeros(0, dtype=np.int64), *(r for _, r in found)])
    order = np.argsort(hashes)
    same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    return np.sort(rows[order[np.union1d(same, same + 1)]])
