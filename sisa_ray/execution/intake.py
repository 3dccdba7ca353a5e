"""Bringing a table into a run: to train on it, and once more from scratch to verify."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sisa_ray.core.errors import (
    ClusterError,
    ConfigError,
    DataError,
    IntegrityError,
    RecipeError,
    RunConflict,
    SourceMissing,
)
from sisa_ray.core.keys import tags
from sisa_ray.core.partition import Layout, candidates
from sisa_ray.core.planner import layouts_of, segments_of
from sisa_ray.core.records import SliceRef, TableAppended, TableIngested
from sisa_ray.execution import opening
from sisa_ray.execution.events import OnEvent, PhaseStarted
from sisa_ray.execution.ingest import ingest_with_ray
from sisa_ray.execution.opening import Target
from sisa_ray.execution.session import Session
from sisa_ray.execution.workers import Workers
from sisa_ray.learning.recipe import Recipe, RecipeSpec
from sisa_ray.storage.checks import Findings
from sisa_ray.storage.ingest import Ingested, IngestJob, ingest_direct
from sisa_ray.storage.run import Run, discard_run
from sisa_ray.storage.slices import load_slice, store_slice
from sisa_ray.storage.source import Source, open_source
from sisa_ray.storage.tables import RECORD_ID, subjects

_MAX_NEW_SLICES = 1000

Origin = Literal["source tables", "slices"]


def ingested(
    target: Target, workers: Workers, on_event: OnEvent, *, to_train: bool = False
) -> tuple[Run, bool]:
    """The run of ``target``, created and ingested where it is not yet; True if that was done before.

    Args:
        target: a configuration, its path, or a run's address.
        workers: do the work.
        on_event: receives progress.
        to_train: the run will be trained at once: what the cluster cannot train is refused before it is ingested.

    Raises:
        DataError, ConfigError, RecipeError: where the table cannot be used; a new run then leaves nothing.
        ClusterError: where the cluster cannot train it; likewise.
    """
    run = opening.create_run(target)
    if run.state.ingested is not None:
        return run, True
    with _leaving_nothing(run):
        workers.require_reach(run.address)
        if to_train:
            workers.require_slots(run.spec, run.address)
        source = open_source(run.spec.config.data)
    with (
        _leaving_nothing(run),
        Session(run, workers, command="ingest", on_event=on_event) as session,
    ):
        on_event(PhaseStarted(text=f"ingesting {source.num_rows:,} rows"))
        job = _job(run, run, source, run.spec.layout(), attempt=session.attempt, shards=None, ingest=0)
        run.commit(_record(_ingest(run, job, workers), session.attempt))
    return run, False


@contextmanager
def _leaving_nothing(run: Run) -> Iterator[None]:
    """Discard a run that is new, and is refused for what it was to be made from or for where it was to be trained."""
    is_new = run.head.seq == 0
    try:
        yield
    except (DataError, ConfigError, RecipeError, ClusterError):
        if is_new:
            discard_run(run)
        raise


def append_in(session: Session, *, table: str, num_slices: int = 1) -> TableAppended:
    """Bring further records into a run: they become new slices behind those that are there.

    Args:
        session: on the run.
        table: Parquet file, directory or glob, of the same columns as the run's own.
        num_slices: slices that each shard gets for it.

    Raises:
        DataError: where columns differ, rows break rules, or a record id is in the run already; nothing changes.
        RunConflict: where nothing was ingested before.
    """
    run = session.run
    if run.state.ingested is None:
        raise RunConflict(
            f"{run.address}: nothing is ingested yet; the first table is ingested without --append"
        )
    if not 1 <= num_slices <= _MAX_NEW_SLICES:
        raise ConfigError(f"num_slices: must be between 1 and {_MAX_NEW_SLICES}, not {num_slices}")
    source = open_source(run.spec.config.data, table)
    _require_same_columns(run, source)
    session.report(PhaseStarted(text=f"appending {source.num_rows:,} rows"))
    _refuse_known_ids(run, source)
    first_slice = segments_of(run.spec, run.state)[-1].last + 1
    layout = run.spec.layout(num_slices=num_slices, first_slice=first_slice)
    number = len(run.state.appended) + 1
    job = _job(run, run, source, layout, attempt=session.attempt, shards=None, ingest=number)
    done = _ingest(run, job, session.workers)
    # Who asked to be forgotten while this went on is still to be planned, and will be found in the new slices.
    run.commit(_appended(done, session.attempt, source=table, num_slices=num_slices))
    return run.state.appended[-1]


def ingest_replica(
    run: Run, replica: Run, workers: Workers, *, shards: tuple[int, ...], attempt: str
) -> Origin:
    """Bring chosen shards of every ingest into ``replica`` once more: from the sources, else from the slices."""
    try:
        sources = [open_source(run.spec.config.data)]
        sources += [open_source(run.spec.config.data, append.source) for append in run.state.appended]
    except SourceMissing:
        _from_slices(run, replica, shards=shards, attempt=attempt)
        return "slices"
    for number, (layout, source) in enumerate(zip(layouts_of(run.spec, run.state), sources, strict=True)):
        job = _job(run, replica, source, layout, attempt=attempt, shards=shards, ingest=number)
        done = _ingest(run, job, workers)
        if number == 0:
            replica.commit(_record(done, attempt))
        else:
            append = run.state.appended[number - 1]
            replica.commit(_appended(done, attempt, source=append.source, num_slices=append.num_slices))
    return "source tables"


def _job(
    run: Run,
    into: Run,
    source: Source,
    layout: Layout,
    *,
    attempt: str,
    shards: tuple[int, ...] | None,
    ingest: int,
) -> IngestJob:
    config = run.spec.config
    spec = RecipeSpec(
        class_path=config.recipe.class_path,
        args=config.recipe.args,
        search_dirs=run.spec.code_dirs,
        code=run.spec.code,
    )
    return IngestJob(
        source=source,
        store=into.store,
        attempt=attempt,
        layout=layout,
        order_buckets=config.sisa.order_buckets,
        content_key=run.secret.content_key,
        suppressed=run.state.absent_from(ingest),
        tag=partial(tags, run.secret.tag_key),
        only_shards=shards,
        problems=_RecipeProblems(spec=spec, schema=source.role_schema),
    )


def _ingest(run: Run, job: IngestJob, workers: Workers) -> Ingested:
    if job.source.num_bytes <= run.spec.config.resources.ingest_in_memory_bytes:
        return ingest_direct(job)
    workers.join_ray()
    workers.require_reach(job.store.url)
    return ingest_with_ray(job)


def _record(done: Ingested, attempt: str) -> TableIngested:
    return TableIngested(
        attempt=attempt,
        columns=_serialized(done.role_schema),
        slices=done.slices,
        num_rows=done.num_rows,
        num_refused=done.num_refused,
    )


def _appended(done: Ingested, attempt: str, *, source: str, num_slices: int) -> TableAppended:
    return TableAppended(
        attempt=attempt,
        source=source,
        num_slices=num_slices,
        slices=done.slices,
        num_rows=done.num_rows,
        num_refused=done.num_refused,
    )


def _serialized(schema: pa.Schema) -> str:
    return str(schema.serialize().to_pybytes().hex())


def _require_same_columns(run: Run, source: Source) -> None:
    there = pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(run.state.columns)))
    differing = [
        f"{name}: {there.field(name).type} in the run, "
        f"{source.role_schema.field(name).type if name in source.role_schema.names else 'missing'} in the table"
        for name in there.names
        if name not in source.role_schema.names
        or source.role_schema.field(name).type != there.field(name).type
    ]
    if differing:
        raise DataError(
            f"{source.url}: cannot be appended, its columns differ ({'; '.join(differing)}); convert them"
        )


def _refuse_known_ids(run: Run, source: Source) -> None:
    """Record ids must be unique in the whole run: every slice's ids are read once."""
    read = [(batch.first_row, batch.record_ids) for batch in source.read()]
    new = pa.chunked_array([ids for _, ids in read if ids is not None], pa.string())
    held: list[pa.Array] = []
    for ref in list(run.state.slices.values()):
        if ref.path is not None:
            ids = load_slice(run.store, ref)[RECORD_ID]
            held.append(ids.filter(pc.is_in(ids, value_set=new)).combine_chunks())
    known = pa.chunked_array(held, pa.string())
    findings = Findings()
    for first_row, record_ids in read:
        rows = np.flatnonzero(np.asarray(pc.is_in(record_ids, value_set=known.drop_null())))
        findings.add("record id is in the run already", rows + first_row)
    findings.raise_if_any(source.url, source.where)


def _from_slices(run: Run, replica: Run, *, shards: tuple[int, ...], attempt: str) -> None:
    """The run's own slices, written again, with every record's place and right to be there checked."""
    ingested = run.state.ingested
    assert ingested is not None
    records: list[TableIngested | TableAppended] = [ingested, *run.state.appended]
    for number, (record, layout) in enumerate(zip(records, layouts_of(run.spec, run.state), strict=True)):
        absent = run.state.absent_from(number)
        refs = []
        for shard in shards:
            for slice_ in range(layout.first_slice, layout.first_slice + layout.num_slices):
                ref = run.state.slices[shard, slice_]
                if ref.path is None:
                    refs.append(ref)
                    continue
                table = load_slice(run.store, ref)
                _check_belongs(run, ref, table, layout, absent)
                refs.append(
                    store_slice(
                        replica.store,
                        table,
                        shard=shard,
                        slice_=slice_,
                        attempt=attempt,
                        content_key=run.secret.content_key,
                        num_buckets=run.spec.config.sisa.order_buckets,
                        seed=layout.seed,
                    )
                )
        update = {"attempt": attempt, "slices": tuple(refs), "num_refused": 0}
        replica.commit(record.model_copy(update=update))


def _check_belongs(run: Run, ref: SliceRef, table: pa.Table, layout: Layout, absent: frozenset[str]) -> None:
    people = list(dict.fromkeys(subjects(table).to_pylist()))
    belongs = np.zeros(len(people), dtype=bool)
    for shards, slices in candidates(people, layout):
        belongs |= (shards == ref.shard) & (slices == ref.slice)
    if not belongs.all():
        raise IntegrityError(f"{run.address}/{ref.path}: holds records that belong to another slice")
    if not absent.isdisjoint(run.secret.tags(people)):
        raise IntegrityError(f"{run.address}/{ref.path}: holds records of somebody who was forgotten")


@dataclass(frozen=True, kw_only=True)
class _RecipeProblems:
    """A recipe's own checks, as something that can be sent to workers."""

    spec: RecipeSpec
    schema: pa.Schema

    @cached_property
    def _recipe(self) -> Recipe:
        return self.spec.create(self.schema)

    def __call__(self, columns: Mapping[str, pa.Array]) -> Iterable[tuple[int, str]]:
        return self._recipe.problems(columns)

    def __getstate__(self) -> dict[str, object]:
        return {"spec": self.spec, "schema": self.schema}
