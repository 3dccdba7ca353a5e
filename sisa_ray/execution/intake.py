"""Bringing a table into a run: to train on it, and once more from scratch to verify."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import pyarrow as pa

from sisa_ray.core.errors import ConfigError, DataError, IntegrityError, RecipeError, SourceMissing
from sisa_ray.core.keys import tags
from sisa_ray.core.partition import Layout, place
from sisa_ray.core.records import SliceRef, TableIngested
from sisa_ray.execution import opening
from sisa_ray.execution.events import OnEvent, PhaseStarted
from sisa_ray.execution.ingest import ingest_with_ray
from sisa_ray.execution.opening import Target
from sisa_ray.execution.session import Session
from sisa_ray.execution.workers import Workers
from sisa_ray.learning.recipe import Recipe, RecipeSpec
from sisa_ray.storage.ingest import Ingested, IngestJob, ingest_direct
from sisa_ray.storage.run import Run, discard_run
from sisa_ray.storage.slices import load_slice, store_slice
from sisa_ray.storage.source import Source, open_source
from sisa_ray.storage.tables import subjects

Origin = Literal["source tables", "slices"]


def ingested(target: Target, workers: Workers, on_event: OnEvent) -> tuple[Run, bool]:
    """The run of ``target``, created and ingested where it is not yet; True if that was done before.

    Raises:
        DataError, ConfigError, RecipeError: where the table cannot be used; a new run then leaves nothing.
    """
    run = opening.create_run(target)
    if run.state.ingested is not None:
        return run, True
    is_new = run.head.seq == 0
    try:
        source = open_source(run.spec.config.data)
        with Session(run, workers, command="ingest", on_event=on_event) as session:
            on_event(PhaseStarted(text=f"ingesting {source.num_rows:,} rows"))
            job = _job(run, run, source, attempt=session.attempt, shards=None)
            run.commit(_record(_ingest(run, job, workers), session.attempt))
    except (DataError, ConfigError, RecipeError):
        if is_new:
            discard_run(run)
        raise
    return run, False


def ingest_replica(
    run: Run, replica: Run, workers: Workers, *, shards: tuple[int, ...], attempt: str
) -> tuple[TableIngested, Origin]:
    """Ingest chosen shards once more into ``replica``: from the source where it is there, else from the slices."""
    try:
        source = open_source(run.spec.config.data)
    except SourceMissing:
        return _from_slices(run, replica, shards=shards, attempt=attempt), "slices"
    job = _job(run, replica, source, attempt=attempt, shards=shards)
    return _record(_ingest(run, job, workers), attempt), "source tables"


def _job(run: Run, into: Run, source: Source, *, attempt: str, shards: tuple[int, ...] | None) -> IngestJob:
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
        layout=_layout(run),
        order_buckets=config.sisa.order_buckets,
        content_key=run.secret.content_key,
        suppressed=frozenset(run.state.suppressed),
        tag=partial(tags, run.secret.tag_key),
        only_shards=shards,
        problems=_RecipeProblems(spec=spec, schema=source.role_schema),
    )


def _ingest(run: Run, job: IngestJob, workers: Workers) -> Ingested:
    if job.source.num_bytes <= run.spec.config.resources.ingest_in_memory_bytes:
        return ingest_direct(job)
    workers.join_ray()
    return ingest_with_ray(job)


def _record(done: Ingested, attempt: str) -> TableIngested:
    return TableIngested(
        attempt=attempt,
        columns=done.role_schema.serialize().to_pybytes().hex(),
        slices=done.slices,
        num_rows=done.num_rows,
        num_refused=done.num_refused,
    )


def _from_slices(run: Run, replica: Run, *, shards: tuple[int, ...], attempt: str) -> TableIngested:
    """The run's own slices, written again, with every record's place and right to be there checked."""
    assert run.state.ingested is not None
    sisa = run.spec.config.sisa
    refs = []
    for shard in shards:
        for slice_ in range(1, sisa.num_slices + 1):
            ref = run.state.slices[shard, slice_]
            if ref.path is None:
                refs.append(ref)
                continue
            table = load_slice(run.store, ref)
            _check_belongs(run, ref, table)
            refs.append(
                store_slice(
                    replica.store,
                    table,
                    shard=shard,
                    slice_=slice_,
                    attempt=attempt,
                    content_key=run.secret.content_key,
                    num_buckets=sisa.order_buckets,
                    seed=sisa.seed,
                )
            )
    return run.state.ingested.model_copy(update={"attempt": attempt, "slices": tuple(refs), "num_refused": 0})


def _check_belongs(run: Run, ref: SliceRef, table: pa.Table) -> None:
    people = list(dict.fromkeys(subjects(table).to_pylist()))
    shards, slices = place(people, _layout(run))
    if (shards != ref.shard).any() or (slices != ref.slice).any():
        raise IntegrityError(f"{run.address}/{ref.path}: holds records that belong to another slice")
    if not run.state.suppressed.keys().isdisjoint(run.secret.tags(people)):
        raise IntegrityError(f"{run.address}/{ref.path}: holds records of somebody who was forgotten")


def _layout(run: Run) -> Layout:
    sisa = run.spec.config.sisa
    return Layout(num_shards=sisa.num_shards, num_slices=sisa.num_slices, seed=sisa.seed)


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
