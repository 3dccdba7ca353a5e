"""The operations on a run, one function a command: what Python users and the command line call."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from sisa_ray.core.errors import DataError
from sisa_ray.core.partition import Layout, place
from sisa_ray.core.planner import BuildStages, Lineage, decide, rebuild_visits, wanted_checkpoints
from sisa_ray.core.state import ClosedBatch, RunState
from sisa_ray.execution import opening
from sisa_ray.execution.baselines import baseline
from sisa_ray.execution.events import Event, Notice, OnEvent, StageFinished, ignore
from sisa_ray.execution.intake import ingested
from sisa_ray.execution.opening import Target
from sisa_ray.execution.predict import evaluate, predict
from sisa_ray.execution.results import (
    IngestResult,
    Outcome,
    ShardSizes,
    StageStatus,
    StatusResult,
    TrainResult,
    UnlearnResult,
    UnlearnRow,
)
from sisa_ray.execution.session import Session
from sisa_ray.execution.verify import verify
from sisa_ray.execution.workers import NewWorkers, Workers
from sisa_ray.storage.run import Run

__all__ = ["baseline", "ingest", "predict", "status", "train", "unlearn", "verify"]


class _Account:
    """Passes events on and keeps account of the work done and the warnings given."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self.stages_built = 0
        self.record_visits = 0
        self.warnings: list[str] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, StageFinished):
            self.stages_built += 1
            self.record_visits += event.ref.record_visits
        elif isinstance(event, Notice):
            self.warnings.append(event.text)
        self._on_event(event)


def ingest(target: Target, *, on_event: OnEvent = ignore, new_workers: NewWorkers = Workers) -> IngestResult:
    """Bring the source table into the run, creating it; nothing is done where that was done before."""
    with new_workers() as workers:
        run, already = ingested(target, workers, on_event)
    assert run.state.ingested is not None
    return IngestResult(
        address=run.address,
        already=already,
        num_rows=run.state.ingested.num_rows,
        num_refused=run.state.ingested.num_refused,
        num_records=_num_records(run.state),
        shards=_sizes(run),
    )


def train(target: Target, *, on_event: OnEvent = ignore, new_workers: NewWorkers = Workers) -> TrainResult:
    """Train what is missing, publish the ensemble, and measure it on the test table where there is one."""
    started = time.monotonic()
    account = _Account(on_event)
    with new_workers() as workers:
        run, _ = ingested(target, workers, account)
        with Session(run, workers, command="train", on_event=account) as session:
            session.reconcile(train=True)
        quality = evaluate(run, workers, on_event=account)
    sisa = run.spec.config.sisa
    return TrainResult(
        address=run.address,
        generation=run.state.generation,
        num_shards=sisa.num_shards,
        num_slices=sisa.num_slices,
        num_records=_num_records(run.state),
        stages_built=account.stages_built,
        record_visits=account.record_visits,
        seconds=time.monotonic() - started,
        metric=quality.metric if quality else None,
        ensemble=quality.ensemble if quality else None,
        constituents=quality.constituents if quality else (),
        warnings=tuple(account.warnings),
    )


def unlearn(
    target: Target,
    subjects: Sequence[str],
    *,
    on_event: OnEvent = ignore,
    new_workers: NewWorkers = Workers,
) -> UnlearnResult:
    """Forget ``subjects`` (canonical keys). Unknown ones are reported; those forgotten before cost nothing."""
    started = time.monotonic()
    if not subjects:
        raise DataError("subjects: the list is empty; name at least one person to forget")
    for row, subject in enumerate(subjects):
        if not subject:
            raise DataError(f"subjects: row {row} is empty; every row must name one person")
    run = opening.existing_run(target)
    distinct = list(dict.fromkeys(subjects))
    tags = dict(zip(distinct, run.secret.tags(distinct), strict=True))
    before = set(run.state.suppressed)
    new = [s for s in distinct if tags[s] not in before]
    with new_workers() as workers, Session(run, workers, command="unlearn", on_event=on_event) as session:
        request = session.accept(new) if new else None
        session.reconcile(train=False)
    batch = _batch_of(run.state, request)
    outcomes = {s: _outcome(tags[s], before, run.state.unknown) for s in distinct}
    affected = batch.plan.affected if batch else ()
    return UnlearnResult(
        address=run.address,
        generation=run.state.generation,
        num_subjects=len(distinct),
        num_forgotten=sum(o == "forgotten" for o in outcomes.values()),
        num_unknown=sum(o == "unknown" for o in outcomes.values()),
        num_already_forgotten=sum(o == "already forgotten" for o in outcomes.values()),
        num_records=batch.plan.num_records if batch else 0,
        slices_rewritten=len(affected),
        shards_rebuilt=tuple(sorted({shard for shard, _ in affected})) if run.state.generation else (),
        stages_rebuilt=batch.closed.stages_rebuilt if batch else 0,
        record_visits=batch.closed.record_visits if batch else 0,
        predicted_record_visits=rebuild_visits(run.spec, run.state, affected) if run.state.generation else 0,
        full_retrain_record_visits=batch.closed.full_retrain_record_visits if batch else 0,
        objects_purged=batch.closed.objects_purged if batch else 0,
        seconds=time.monotonic() - started,
        rows=_rows(run, subjects, tags, outcomes),
    )


def status(target: Target) -> StatusResult:
    """The run as its log has it: reads only the log, trains nothing."""
    run = opening.existing_run(target, check_code=False)
    state = run.state
    decision = decide(run.spec, state, train=True) if state.ingested else None
    return StatusResult(
        address=run.address,
        generation=state.generation,
        num_records=_num_records(state),
        num_suppressed=len(state.suppressed),
        open_requests=len(state.requests),
        purge_due=state.purge_due,
        device=run.spec.config.arithmetic.device,
        num_log_entries=run.head.seq + 1,
        shards=_sizes(run) if state.ingested else (),
        stages=_stages(run) if state.ingested else (),
        last_verified=state.last_verified.outcome if state.last_verified else None,
        complete=state.ingested is not None and decision is None,
        next_step=_next_step(run, decision is None),
    )


def _next_step(run: Run, done: bool) -> str | None:
    if run.state.ingested is None:
        return "ingest: the source table is not in the run yet"
    if done:
        return None
    decision = decide(run.spec, run.state, train=True)
    if isinstance(decision, BuildStages):
        return f"train: {sum(len(p.stages) for p in decision.shards)} stage(s) are to be built"
    return "train: finishes what an earlier command began"


def _num_records(state: RunState) -> int:
    return sum(s.num_records for s in state.slices.values())


def _sizes(run: Run) -> tuple[ShardSizes, ...]:
    sisa = run.spec.config.sisa
    return tuple(
        ShardSizes(
            shard=k,
            slices=tuple(run.state.slices[k, r].num_records for r in range(1, sisa.num_slices + 1)),
        )
        for k in range(sisa.num_shards)
    )


def _stages(run: Run) -> tuple[StageStatus, ...]:
    lineage = Lineage(run.spec, run.state)
    kept = wanted_checkpoints(run.spec, run.state)
    stages = []
    for shard in range(run.spec.config.sisa.num_shards):
        for stage in range(1, run.spec.config.sisa.num_slices + 1):
            ref = run.state.stages.get((shard, stage))
            status: Literal["built", "stale", "missing"]
            if ref is None or (ref.path is None and stage in kept):
                status = "missing"
            else:
                status = "built" if lineage.is_clean(ref) else "stale"
            stages.append(
                StageStatus(
                    shard=shard, stage=stage, status=status, kept=ref is not None and ref.path is not None
                )
            )
    return tuple(stages)


def _batch_of(state: RunState, request: str | None) -> ClosedBatch | None:
    for batch in reversed(state.closed_batches.values()):
        if request in batch.plan.requests:
            return batch
    return None


def _outcome(tag: str, before: set[str], unknown: set[str]) -> Outcome:
    if tag in unknown:
        return "unknown"
    return "already forgotten" if tag in before else "forgotten"


def _rows(
    run: Run, subjects: Sequence[str], tags: dict[str, str], outcomes: dict[str, Outcome]
) -> tuple[UnlearnRow, ...]:
    sisa = run.spec.config.sisa
    layout = Layout(num_shards=sisa.num_shards, num_slices=sisa.num_slices, seed=sisa.seed)
    shards, slices = place(list(subjects), layout)
    rows = []
    for row, (subject, shard, slice_) in enumerate(
        zip(subjects, shards.tolist(), slices.tolist(), strict=True)
    ):
        known = outcomes[subject] != "unknown"
        rows.append(
            UnlearnRow(
                row=row,
                tag=tags[subject],
                outcome=outcomes[subject],
                shard=shard if known else None,
                slice=slice_ if known else None,
            )
        )
    return tuple(rows)
