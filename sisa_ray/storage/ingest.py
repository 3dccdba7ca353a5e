"""Ingest: from a source table to the slices of a run.

Every record is checked and routed on its own, batch by batch (:func:`route`), and every slice is written
from its records whatever order they come in (:func:`store_place`). Between the two, records are brought
together by slice: in this process (:func:`ingest_direct`), or through staged objects by many
(:mod:`sisa_ray.storage.staging`, driven by :mod:`sisa_ray.execution.ingest`). Both end in the same bytes.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sisa_ray.core.errors import ConfigError, RecipeError, SisaError
from sisa_ray.core.partition import Layout, place
from sisa_ray.core.records import SliceRef
from sisa_ray.storage.checks import Findings, Problems, invalid_text_rows
from sisa_ray.storage.columns import Int64Array
from sisa_ray.storage.objects import ObjectStore
from sisa_ray.storage.slices import store_slice
from sisa_ray.storage.source import Source, SourceBatch, check_roles
from sisa_ray.storage.tables import RECORD_ID, SUBJECT_ID, sort_by_id, subjects

NOT_UNIQUE = "record id is not unique"
IN_TWO_STRATA = "subject is in two strata"

_NUM_WRITERS = 8


@dataclass(frozen=True, kw_only=True)
class IngestJob:
    """What to bring where. Picklable, so that workers can do parts of it."""

    source: Source
    store: ObjectStore
    attempt: str
    """Everything is written under this attempt's id."""
    layout: Layout
    order_buckets: int
    content_key: bytes = field(repr=False)
    suppressed: frozenset[str] = field(default=frozenset(), repr=False)
    """Tags of subjects whose records are refused."""
    tag: Callable[[Sequence[str]], list[str]] | None = field(default=None, repr=False)
    """Tags of subjects; needed where some are suppressed."""
    only_shards: tuple[int, ...] | None = None
    """Leave out all other shards; the result has no entries for them."""
    problems: Problems | None = field(default=None, repr=False)

    @property
    def slice_schema(self) -> pa.Schema:
        """Columns of every slice table."""
        keys = [RECORD_ID] if self.source.subject_id is None else [RECORD_ID, SUBJECT_ID]
        return pa.schema([*(pa.field(key, pa.string()) for key in keys), *self.source.role_schema])

    @property
    def places(self) -> list[int]:
        """Numbers of the wanted (shard, slice) places, ascending: see :meth:`shard_and_slice`."""
        shards = range(self.layout.num_shards) if self.only_shards is None else sorted(set(self.only_shards))
        return [k * self.layout.num_slices + r for k in shards for r in range(self.layout.num_slices)]

    def shard_and_slice(self, place_number: int) -> tuple[int, int]:
        """Shard (from 0) and slice (from 1) of a place: appended slices come behind those that are there."""
        shard, slice_ = divmod(place_number, self.layout.num_slices)
        return shard, slice_ + self.layout.first_slice


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """What an ingest made: an entry for every slice of every (wanted) shard, in order."""

    slices: tuple[SliceRef, ...]
    num_rows: int
    """Rows of the source table."""
    num_refused: int
    """Rows refused because their subject is suppressed."""
    role_schema: pa.Schema


class Tally:
    """What was seen on the way: broken rules, rows, and who was refused."""

    def __init__(self) -> None:
        self.findings = Findings()
        self.num_rows = 0
        self.num_refused = 0
        self.refused_tags: set[str] = set()

    def update(self, other: Tally) -> None:
        """Add what was seen elsewhere."""
        self.findings.update(other.findings)
        self.num_rows += other.num_rows
        self.num_refused += other.num_refused
        self.refused_tags |= other.refused_tags


@dataclass(frozen=True, kw_only=True)
class Routed:
    """Records that passed, ordered by place, with the row of the source table that each was."""

    table: pa.Table
    places: Int64Array
    rows: Int64Array
    strata: Int64Array | None = None
    """Numbers of their strata, where records of one subject might disagree."""

    def at(self, first_place: int, end_place: int) -> pa.Table:
        """The records of some places (no copy)."""
        low, high = np.searchsorted(self.places, [first_place, end_place])
        return self.table.slice(int(low), int(high - low))


def route(job: IngestJob, batch: SourceBatch, tally: Tally) -> Routed:
    """Check the rows of a batch, refuse who is suppressed, and find each record's place.

    Refused rows, and those of shards that are left out, are not looked at any further.
    """
    tally.num_rows += batch.num_rows
    assert batch.record_ids is not None
    keep = _valid_keys(job, batch, tally.findings)
    strata = _strata(job, batch)[keep]
    owners = (batch.record_ids if batch.subjects is None else batch.subjects).take(pa.array(keep))
    # One hash a subject, not one a record.
    encoded = owners.dictionary_encode() if batch.subjects is not None else None
    names: list[str] = (owners if encoded is None else encoded.dictionary).to_pylist()
    of_names = strata
    if encoded is not None:
        of_names = np.empty(len(names), dtype=np.int64)
        of_names[np.asarray(encoded.indices)] = strata  # where records disagree, the table is refused
    shards, slices = _places(job, names, of_names)
    places = shards * job.layout.num_slices + slices - job.layout.first_slice
    passed = np.ones(len(names), dtype=bool)
    if job.suppressed:
        assert job.tag is not None
        tags = job.tag(names)
        passed = np.array([tag not in job.suppressed for tag in tags], dtype=bool)
        tally.refused_tags.update(tag for tag, ok in zip(tags, passed.tolist(), strict=True) if not ok)
    wanted = passed if job.only_shards is None else passed & np.isin(shards, job.only_shards)
    if encoded is not None:
        codes = np.asarray(encoded.indices)
        places, passed, wanted = places[codes], passed[codes], wanted[codes]
    tally.num_refused += int(np.count_nonzero(~passed))
    order = np.argsort(places, kind="stable")
    order = order[wanted[order]]
    rows = keep[order]
    _check(job, batch, rows, tally.findings)
    keys = [batch.record_ids] if batch.subjects is None else [batch.record_ids, batch.subjects]
    table = pa.Table.from_arrays([*keys, *batch.role_arrays().values()], schema=job.slice_schema)
    return Routed(
        table=table.take(pa.array(rows)),
        places=places[order],
        rows=rows + batch.first_row,
        strata=strata[order] if encoded is not None and len(job.layout.strata) > 1 else None,
    )


def _places(job: IngestJob, names: Sequence[str], strata: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Shard and slice of each subject, which is in the stratum of that number."""
    if len(job.layout.strata) == 1:
        return place(names, job.layout, job.layout.strata[0])
    shards, slices = np.empty(len(names), dtype=np.int64), np.empty(len(names), dtype=np.int64)
    for number, stratum in enumerate(job.layout.strata):
        here = np.flatnonzero(strata == number)
        shards[here], slices[here] = place([names[i] for i in here.tolist()], job.layout, stratum)
    return shards, slices


def _strata(job: IngestJob, batch: SourceBatch) -> Int64Array:
    """The number of each row's stratum; -1 where it is none of the declared ones."""
    if batch.strata is None:
        return np.zeros(batch.num_rows, dtype=np.int64)
    found = pc.index_in(batch.strata, value_set=pa.array(job.layout.strata, pa.string()))
    return np.asarray(found.fill_null(-1)).astype(np.int64)


def _valid_keys(job: IngestJob, batch: SourceBatch, findings: Findings) -> Int64Array:
    """Rows of the batch whose record and subject can be named."""
    bad = np.zeros(batch.num_rows, dtype=bool)
    data = job.source.data
    for what, name, keys in (
        ("record id", data.record_id, batch.record_ids),
        ("subject", data.subject_id, batch.subjects),
    ):
        if keys is None:
            continue
        for rule, rows in (
            ("is null", np.flatnonzero(np.asarray(keys.is_null()))),
            ("is not valid UTF-8", invalid_text_rows(keys)),
        ):
            findings.add(f"{what} (column {name!r}) {rule}", rows + batch.first_row)
            bad[rows] = True
    if batch.strata is not None:
        missing = np.asarray(batch.strata.is_null())
        unknown = (_strata(job, batch) < 0) & ~missing
        where = f"stratum (column {data.stratum!r})"
        absent = "subject is not in data.strata_table" if job.source.looks_up_strata else f"{where} is null"
        for rule, mask in ((absent, missing), (f"{where} is none of sisa.strata", unknown)):
            findings.add(rule, np.flatnonzero(mask & ~bad) + batch.first_row)
        bad |= missing | unknown
    return np.flatnonzero(~bad)


def _check(job: IngestJob, batch: SourceBatch, rows: Int64Array, findings: Findings) -> None:
    """Check the records that are wanted; the recipe sees only those that are sound."""
    rows = np.sort(rows)
    if not len(rows):
        return
    picked = batch.columns if len(rows) == batch.num_rows else batch.columns.take(pa.array(rows))
    found = check_roles(picked, job.source)
    bad = np.zeros(picked.num_rows, dtype=bool)
    for rule, positions in found:
        findings.add(rule, rows[positions] + batch.first_row)
        bad[positions] = True
    if job.problems is None:
        return
    sound = np.flatnonzero(~bad)
    if not len(sound):
        return
    columns = picked.take(pa.array(sound)) if bad.any() else picked
    try:
        problems = list(job.problems({name: columns[name].chunk(0) for name in columns.schema.names}))
    except SisaError:
        raise
    except Exception as error:  # whatever the user's recipe raises
        raise RecipeError(
            f"recipe: problems() failed on rows {batch.first_row} to {batch.first_row + batch.num_rows - 1}: "
            f"{described(error)}"
        ) from error
    for row, problem in problems:
        findings.add(problem, [rows[sound[row]] + batch.first_row])


def described(error: Exception) -> str:
    """An unforeseen error by its type and place: its text may quote what is in a record."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"


def ingest_direct(job: IngestJob, *, on_progress: Callable[[int], None] | None = None) -> Ingested:
    """Ingest a table that fits in the memory of this process.

    Args:
        job: what to bring where.
        on_progress: is told how many rows are routed.

    Raises:
        DataError: listing rows that break rules; nothing is written then.
        RecipeError: where the recipe's own check fails.
        ConfigError: where there are more shards than subjects; nothing is written then.
    """
    tally = Tally()
    routed = []
    for batch in job.source.read():
        routed.append(route(job, batch, tally))
        if on_progress is not None:
            on_progress(tally.num_rows)
    tally.findings.add(NOT_UNIQUE, _duplicate_rows(routed))
    tally.findings.add(IN_TWO_STRATA, _torn_rows(routed))
    tally.findings.raise_if_any(job.source.url, job.source.where)
    owners = pa.chunked_array([c for r in routed for c in subjects(r.table).chunks], pa.string())
    check_num_subjects(job, pc.count_distinct(owners).as_py(), tally)

    def store(place_number: int) -> SliceRef:
        return store_place(job, place_number, [r.at(place_number, place_number + 1) for r in routed])

    with ThreadPoolExecutor(_NUM_WRITERS) as writers:
        return result(job, list(writers.map(store, job.places)), tally)


def _duplicate_rows(routed: Sequence[Routed]) -> Int64Array:
    """Rows whose record id some other row has too."""
    ids = pa.chunked_array([c for r in routed for c in r.table[RECORD_ID].chunks], pa.string())
    if pc.count_distinct(ids).as_py() == len(ids):
        return np.zeros(0, dtype=np.int64)
    counts = ids.value_counts()
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    mask = np.asarray(pc.is_in(ids, value_set=repeated))
    return np.concatenate([r.rows for r in routed])[np.flatnonzero(mask)]


def _torn_rows(routed: Sequence[Routed]) -> Int64Array:
    """Rows whose subject is in another stratum in some other row."""
    parts = [(r, strata) for r in routed if (strata := r.strata) is not None]
    if not parts:
        return np.zeros(0, dtype=np.int64)
    owners = pa.chunked_array([c for r, _ in parts for c in subjects(r.table).chunks], pa.string())
    table = pa.table({"subject": owners, "stratum": np.concatenate([strata for _, strata in parts])})
    counts = table.group_by("subject").aggregate([("stratum", "count_distinct")])
    torn = counts.filter(pc.greater(counts["stratum_count_distinct"], 1))["subject"]
    mask = np.asarray(pc.is_in(owners, value_set=torn))
    return np.concatenate([r.rows for r, _ in parts])[np.flatnonzero(mask)]


def store_place(job: IngestJob, place_number: int, parts: Iterable[pa.Table]) -> SliceRef:
    """Write one slice from its records, whatever order they come in."""
    shard, slice_ = job.shard_and_slice(place_number)
    table = pa.concat_tables([job.slice_schema.empty_table(), *(p for p in parts if p.num_rows)])
    return store_slice(
        job.store,
        sort_by_id(table),
        shard=shard,
        slice_=slice_,
        attempt=job.attempt,
        content_key=job.content_key,
        num_buckets=job.order_buckets,
        seed=job.layout.seed,
    )


def check_num_subjects(job: IngestJob, num_kept: int, tally: Tally) -> None:
    """Refuse more shards than there ever were subjects.

    Raises:
        ConfigError: naming both numbers.
    """
    # Who is suppressed counts: forgetting people must not make a run impossible to verify.
    num_subjects = num_kept + len(tally.refused_tags)
    if job.only_shards is None and job.layout.first_slice == 1 and num_subjects < job.layout.num_shards:
        raise ConfigError(
            f"sisa.num_shards: is {job.layout.num_shards}, but {job.source.url} has only {num_subjects} "
            f"subject(s) (column {job.source.data.subject_id!r}); set num_shards to at most {num_subjects}"
        )


def result(job: IngestJob, slices: Sequence[SliceRef], tally: Tally) -> Ingested:
    """The result of a job whose slices are all stored."""
    return Ingested(
        slices=tuple(sorted(slices, key=lambda s: (s.shard, s.slice))),
        num_rows=tally.num_rows,
        num_refused=tally.num_refused,
        role_schema=job.source.role_schema,
    )
