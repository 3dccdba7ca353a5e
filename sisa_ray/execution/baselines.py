"""The paper's baselines beside an ensemble: one model on everything, and one on 1/S of the data (section VI)."""

from __future__ import annotations

import time
from typing import Literal

from sisa_ray.core.errors import RunConflict
from sisa_ray.core.planner import Lineage, ShardPlan, StagePlan
from sisa_ray.core.records import SliceRef, StageRef
from sisa_ray.core.schedule import record_visits, stage_steps
from sisa_ray.execution.actor import BuildJob
from sisa_ray.execution.client import find_coordinator
from sisa_ray.execution.events import OnEvent, PhaseStarted, ShardEvent, StageFinished, WorkPlanned, ignore
from sisa_ray.execution.opening import Target, existing_run
from sisa_ray.execution.predict import measure
from sisa_ray.execution.results import BaselineResult
from sisa_ray.execution.session import Session
from sisa_ray.execution.workers import NewWorkers, Workers
from sisa_ray.storage.run import Run

BaselineKind = Literal["full", "one_shard"]


def baseline(
    target: Target,
    kind: BaselineKind = "full",
    *,
    on_event: OnEvent = ignore,
    new_workers: NewWorkers = Workers,
) -> BaselineResult:
    """Train one model without slices, measure it on the test table, and keep nothing of it.

    Args:
        target: a run's address or configuration; its slices are the data.
        kind: ``full``: on every record; ``one_shard``: on the first shard that has records.
        on_event: receives progress.
        new_workers: how the command gets its shard actors.
    """
    run = existing_run(target)
    _require_ingested(run)
    coordinator = find_coordinator(run.address)
    if coordinator is not None:
        found: BaselineResult = coordinator.call("baseline", on_event=on_event, kind=kind)
        return found
    with new_workers() as workers, Session(run, workers, command="baseline", on_event=on_event) as session:
        return baseline_in(session, kind=kind)


def baseline_in(session: Session, *, kind: BaselineKind = "full") -> BaselineResult:
    """:func:`baseline`, in a session on the run."""
    started = time.monotonic()
    run = session.run
    _require_ingested(run)
    plan = _plan(run, kind)
    built: list[StageRef] = []

    def handle(event: ShardEvent) -> None:
        if isinstance(event, StageFinished):
            built.append(event.ref)
        session.report(event)

    session.report(PhaseStarted(text=f"training one model on {_num_records(plan):,} records"))
    session.report(WorkPlanned(num_shards=1, num_stages=1, num_steps=plan.num_steps))
    job = BuildJob(store=run.store, columns=run.state.columns, attempt=session.attempt)
    pool = session.workers.pool(run.spec, session.report)
    pool.build([plan], job=job, handle=handle, replan=lambda _: None if built else plan)
    try:
        quality = measure(run, session.workers, [(run.store, built[-1])])
    finally:
        run.store.delete([path for ref in built for path in ref.objects])
    return BaselineResult(
        address=run.address,
        kind=kind,
        num_records=_num_records(plan),
        record_visits=record_visits([plan.num_steps], run.spec.batch_size),
        seconds=time.monotonic() - started,
        metric=quality.metric if quality else None,
        value=quality.values[0] if quality else None,
    )


def _require_ingested(run: Run) -> None:
    if run.state.ingested is None:
        raise RunConflict(f"{run.address}: nothing is ingested yet; `sisa-ray ingest` comes first")


def _plan(run: Run, kind: BaselineKind) -> ShardPlan:
    """All the slices as one stage: the model starts anew and sees everything for the whole budget."""
    config = run.spec.config
    lineage = Lineage(run.spec, run.state)
    shards = [lineage.slices(k) for k in range(config.sisa.num_shards)]
    populated = [slices for slices in shards if sum(s.num_records for s in slices)]
    if not populated:
        raise RunConflict(f"{run.address}: the run has no records left")
    chosen = populated if kind == "full" else populated[:1]
    slices: tuple[SliceRef, ...] = tuple(s for shard in chosen for s in shard)
    num_records = sum(s.num_records for s in slices)
    (num_steps,) = stage_steps([num_records], [config.sisa.epochs], run.spec.batch_size)
    stage = StagePlan(stage=len(slices), key="0" * 64, num_steps=num_steps, num_stages=len(slices), keep=True)
    return ShardPlan(shard=0, slices=slices, start=None, stages=(stage,))


def _num_records(plan: ShardPlan) -> int:
    return sum(s.num_records for s in plan.slices)
