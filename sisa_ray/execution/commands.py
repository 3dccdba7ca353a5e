"""The operations on a run, one function a command: what Python users and the command line call."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

from sisa_ray.core.planner import Lineage, segments_of, wanted_checkpoints
from sisa_ray.core.state import RunState
from sisa_ray.core.step import BuildStages, step
from sisa_ray.execution import opening
from sisa_ray.execution.baselines import baseline
from sisa_ray.execution.client import find_coordinator
from sisa_ray.execution.events import Event, Notice, OnEvent, StageFinished, ignore
from sisa_ray.execution.intake import append_in, ingested
from sisa_ray.execution.opening import Target
from sisa_ray.execution.predict import evaluate, predict
from sisa_ray.execution.results import (
    AppendResult,
    IngestResult,
    ShardSizes,
    StageStatus,
    StatusResult,
    TrainResult,
)
from sisa_ray.execution.session import Session
from sisa_ray.execution.unlearn import unlearn
from sisa_ray.execution.verify import verify
from sisa_ray.execution.workers import NewWorkers, Workers
from sisa_ray.storage.mirror import missing_tags
from sisa_ray.storage.run import Run

__all__ = ["append", "baseline", "ingest", "predict", "status", "train", "unlearn", "verify"]


class _Account:
    """Keeps account of the work done and the warnings given."""

    def __init__(self) -> None:
        self.stages_built = 0
        self.record_visits = 0
        self.warnings: list[str] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, StageFinished):
            self.stages_built += 1
            self.record_visits += event.ref.record_visits
        elif isinstance(event, Notice):
            self.warnings.append(event.text)


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


def append(
    target: Target,
    table: str,
    *,
    num_slices: int = 1,
    on_event: OnEvent = ignore,
    new_workers: NewWorkers = Workers,
) -> AppendResult:
    """Bring further records into the run as new slices of their shards, and train the new stages alone.

    Args:
        target: a run's address or configuration.
        table: Parquet file, directory or glob with the columns of the run's own table.
        num_slices: slices that each shard gets for it.
        on_event: receives progress.
        new_workers: how the command gets its shard actors.
    """
    run = opening.existing_run(target)
    url = table if "://" in table else str(Path(table).expanduser().absolute())
    coordinator = find_coordinator(run.address)
    if coordinator is not None:
        result: AppendResult = coordinator.call("append", on_event=on_event, table=url, num_slices=num_slices)
        return result
    with new_workers() as workers, Session(run, workers, command="append", on_event=on_event) as session:
        session.reconcile(train=False)
        return append_and_train_in(session, table=url, num_slices=num_slices)


def append_and_train_in(session: Session, *, table: str, num_slices: int = 1) -> AppendResult:
    """:func:`append`, in a session on the run."""
    started = time.monotonic()
    account = _Account()
    run = session.run
    with session.heard_by(account):
        appended = append_in(session, table=table, num_slices=num_slices)
        session.reconcile(train=False)
    return AppendResult(
        address=run.address,
        num_rows=appended.num_rows,
        num_refused=appended.num_refused,
        num_slices=segments_of(run.spec, run.state)[-1].last,
        num_records=_num_records(run.state),
        generation=run.state.generation,
        stages_built=account.stages_built,
        record_visits=account.record_visits,
        seconds=time.monotonic() - started,
        shards=_sizes(run),
    )


def train(target: Target, *, on_event: OnEvent = ignore, new_workers: NewWorkers = Workers) -> TrainResult:
    """Train what is missing, publish the ensemble, and measure it on the test table where there is one."""
    coordinator = find_coordinator(opening.address_of(target))
    if coordinator is not None:
        result: TrainResult = coordinator.call("train", on_event=on_event)
        return result
    with new_workers() as workers:
        run, _ = ingested(target, workers, on_event, to_train=True)
        with Session(run, workers, command="train", on_event=on_event) as session:
            return train_in(session)


def train_in(session: Session) -> TrainResult:
    """:func:`train`, in a session on a run that has its table."""
    started = time.monotonic()
    account = _Account()
    run = session.run
    with session.heard_by(account):
        session.reconcile(train=True)
        quality = evaluate(run, session.workers, on_event=session.report)
    sisa = run.spec.config.sisa
    return TrainResult(
        address=run.address,
        generation=run.state.generation,
        num_shards=sisa.num_shards,
        num_slices=segments_of(run.spec, run.state)[-1].last,
        num_records=_num_records(run.state),
        stages_built=account.stages_built,
        record_visits=account.record_visits,
        seconds=time.monotonic() - started,
        metric=quality.metric if quality else None,
        ensemble=quality.ensemble if quality else None,
        constituents=quality.constituents if quality else (),
        warnings=tuple(account.warnings),
    )


def status(target: Target) -> StatusResult:
    """The run as its log has it: reads only the log, trains nothing."""
    run = opening.existing_run(target, check_code=False)
    state = run.state
    decision = step(run.spec, state, train=True) if state.ingested else None
    num_behind = len(missing_tags(run))
    return StatusResult(
        address=run.address,
        generation=state.generation,
        num_records=_num_records(state),
        num_suppressed=len(state.suppressed),
        open_requests=len(state.requests),
        purge_due=state.purge_due,
        purge_trouble=state.purge_trouble.problem if state.purge_trouble else None,
        device=run.spec.config.arithmetic.device,
        num_log_entries=run.head.seq + 1,
        shards=_sizes(run) if state.ingested else (),
        stages=_stages(run) if state.ingested else (),
        last_verified=state.last_verified.outcome if state.last_verified else None,
        complete=state.ingested is not None and decision is None and not num_behind,
        next_step=_next_step(run, num_behind, decision is None),
    )


def _next_step(run: Run, num_behind: int, done: bool) -> str | None:
    if num_behind:
        people = "1 person" if num_behind == 1 else f"{num_behind:,} people"
        return f"suppression replay: restored from before {people} asked to be forgotten; nothing else is done before"
    if run.state.ingested is None:
        return "ingest: the source table is not in the run yet"
    if done:
        return None
    decision = step(run.spec, run.state, train=True)
    if isinstance(decision, BuildStages):
        return f"train: {sum(len(p.stages) for p in decision.shards)} stage(s) are to be built"
    return "train: finishes what an earlier command began"


def _num_records(state: RunState) -> int:
    return sum(s.num_records for s in state.slices.values())


def _sizes(run: Run) -> tuple[ShardSizes, ...]:
    lineage = Lineage(run.spec, run.state)
    return tuple(
        ShardSizes(
            shard=k,
            slices=tuple(ref.num_records for ref in lineage.slices(k)),
        )
        for k in range(run.spec.config.sisa.num_shards)
    )


def _stages(run: Run) -> tuple[StageStatus, ...]:
    lineage = Lineage(run.spec, run.state)
    kept = wanted_checkpoints(run.spec, run.state)
    stages = []
    for shard in range(run.spec.config.sisa.num_shards):
        for stage in range(1, lineage.segments[-1].last + 1):
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
