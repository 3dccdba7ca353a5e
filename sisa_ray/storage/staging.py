"""Ingest of tables larger than memory: records are staged in objects, ordered by place, and gathered.

Two phases, both cut into tasks of bounded memory that any worker can do, and do again after a crash. In the
first, each task reads some fragments of the source and writes pieces: their records ordered by place and
cut into groups of places. In the second, each task gathers one group from all pieces and writes its slices.
Staged objects lie in the run's scratch space, under the attempt, where purge finds whatever is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
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
    IN_TWO_STRATA,
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
from sisa_ray.storage.source import Fragment, Source, SourceBatch
from sisa_ray.storage.tables import RECORD_ID, SUBJECT_ID, gather

_PLACE = "place"
_NUM_READERS = 8
_NUM_FENCES = 256
_INDEX_BYTES = 64 * 2**20


class Index(BaseModel):
    """Within a staged object: hashes of keys, ascending, their rows and, of subjects, the numbers of their strata."""

    model_config = ConfigDict(frozen=True)

    offset: int
    fences: tuple[int, ...]
    """Positions of the hashes that begin each 1/256 of their range, and their number."""

    def __len__(self) -> int:
        return self.fences[-1]


class Piece(BaseModel):
    """A staged object: one Arrow stream a group, then an index of record ids and, with strata, one of subjects."""

    model_config = ConfigDict(frozen=True)

    path: str
    offsets: tuple[int, ...]
    """Where each group begins; the last one is where the indexes begin."""
    ids: Index
    people: Index | None


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
        rows = np.concatenate([r.rows for r in routed])
        ids = _write_index(sink, self._hashed(routed, RECORD_ID), rows)
        people = None
        if all(r.strata is not None for r in routed):
            strata = np.concatenate([r.strata for r in routed if r.strata is not None])
            people = _write_index(sink, self._hashed(routed, SUBJECT_ID), rows, strata)
        # The same name when a task is done again, so that no copy is left behind.
        path = f"{self.prefix}{part:06d}-{number:06d}.arrow"
        self.job.store.put(path, memoryview(sink.getvalue()))
        return Piece(path=path, offsets=tuple(offsets), ids=ids, people=people)

    def _hashed(self, routed: Sequence[Routed], column: str) -> UInt64Array:
        keys = [key for r in routed for key in r.table[column].to_pylist()]
        return record_hashes(keys, seed=self.job.layout.seed)

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
        tally.findings.add(IN_TWO_STRATA, self._torn(pieces))
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
        """Rows whose record id some other row has too, anywhere in the table: found by hash, then confirmed."""
        found: list[int] = []
        for hashes, rows in self._by_hash([(p, p.ids) for p in pieces], num_columns=2):
            suspects = np.sort(rows[_repeated(hashes)])
            if len(suspects):
                found += self._confirmed_duplicates(suspects).tolist()
        return found

    def _torn(self, pieces: Sequence[Piece]) -> list[int]:
        """Rows whose subject is in another stratum in some other row: likewise."""
        found: list[int] = []
        indexes = [(p, p.people) for p in pieces if p.people is not None]
        for hashes, rows, strata in self._by_hash(indexes, num_columns=3):
            starts = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]]))
            least, most = np.minimum.reduceat(strata, starts), np.maximum.reduceat(strata, starts)
            suspects = np.sort(rows[np.repeat(least != most, np.diff([*starts, len(hashes)]))])
            if len(suspects):
                found += self._confirmed_torn(suspects).tolist()
        return found

    def _by_hash(
        self, indexes: Sequence[tuple[Piece, Index]], *, num_columns: int
    ) -> Iterator[tuple[Any, ...]]:
        """All of some indexes, ascending by hash: works through the range of the hashes in steps of bounded memory."""
        num_steps = 1 + 8 * num_columns * sum(len(index) for _, index in indexes) // _INDEX_BYTES
        edges = np.linspace(0, _NUM_FENCES, min(_NUM_FENCES, num_steps) + 1).astype(int).tolist()
        for low, high in pairwise(edges):
            parts = [self._read_index(p, i, i.fences[low], i.fences[high], num_columns) for p, i in indexes]
            if not sum(len(part[0]) for part in parts):
                continue
            columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
            order = np.argsort(columns[0], kind="stable")
            yield tuple(column[order] for column in columns)

    def _read_index(
        self, piece: Piece, index: Index, low: int, high: int, num_columns: int
    ) -> list[npt.NDArray[Any]]:
        columns: list[npt.NDArray[Any]] = []
        for number in range(num_columns):
            start = index.offset + 8 * len(index) * number
            data = self._read(piece, start + 8 * low, start + 8 * high)
            columns.append(np.frombuffer(data, dtype=np.int64 if number else np.uint64))
        return columns

    def _confirmed_duplicates(self, suspects: Int64Array) -> Int64Array:
        """Those of the rows whose record ids really are equal to another's."""
        ids: list[str] = []
        for batch, here in self._reread(self.job.source.keys_only(), suspects):
            assert batch.record_ids is not None
            ids += batch.record_ids.take(here).to_pylist()
        _, codes, counts = np.unique(ids, return_inverse=True, return_counts=True)
        return suspects[counts[codes] > 1]

    def _confirmed_torn(self, suspects: Int64Array) -> Int64Array:
        """Those of the rows whose subjects really are in two strata."""
        strata: dict[str, set[str]] = {}
        people: list[str] = []
        for batch, here in self._reread(self.job.source.strata_only(), suspects):
            assert batch.subjects is not None
            assert batch.strata is not None
            for subject, stratum in zip(
                batch.subjects.take(here).to_pylist(), batch.strata.take(here).to_pylist(), strict=True
            ):
                people.append(subject)
                strata.setdefault(subject, set()).add(stratum)
        torn: npt.NDArray[np.bool_] = np.array([len(strata[subject]) > 1 for subject in people])
        return np.asarray(suspects[torn])

    def _reread(self, source: Source, rows: Int64Array) -> Iterator[tuple[SourceBatch, pa.Array]]:
        """The batches that hold these rows (ascending), and where in them they are."""
        for fragment in source.fragments:
            wanted = _within(rows, fragment.first_row, fragment.num_rows)
            for batch in source.read([fragment]) if len(wanted) else ():
                here = _within(wanted, batch.first_row, batch.num_rows)
                yield batch, pa.array(here - batch.first_row)

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


def _write_index(sink: pa.BufferOutputStream, hashes: UInt64Array, *columns: Int64Array) -> Index:
    offset, order = sink.tell(), np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    for values in (hashes, *(column[order] for column in columns)):
        sink.write(values.tobytes())
    starts = np.arange(_NUM_FENCES, dtype=np.uint64) << np.uint64(56)
    return Index(offset=offset, fences=(*np.searchsorted(hashes, starts).tolist(), len(hashes)))


def _repeated(hashes: UInt64Array) -> npt.NDArray[np.bool_]:
    """Which of these, ascending, occur more than once."""
    same = hashes[1:] == hashes[:-1]
    repeated: npt.NDArray[np.bool_] = np.concatenate([[False], same]) | np.concatenate([same, [False]])
    return repeated
