"""A session: one process at work on a run, doing what the planner decides until nothing is left to do.

The planner decides in pure code; this module executes, and every step is committed to the log. A crash
anywhere is finished by the next session, in the same bits.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from types import TracebackType

from sisa_ray.core.errors import IntegrityError
from sisa_ray.core.planner import (
    BuildStages,
    CloseBatch,
    Decision,
    Lineage,
    PlanBatch,
    Publish,
    Purge,
    RewriteSlices,
    ShardPlan,
    decide,
    full_retrain_visits,
    missing_stages,
)
from sisa_ray.core.records import (
    AttemptClosed,
    AttemptOpened,
    BatchClosed,
    CheckpointLost,
    GenerationPublished,
    RequestAccepted,
    SelfChecked,
    StageBuilt,
)
from sisa_ray.execution.actor import BuildJob
from sisa_ray.execution.events import (
    CheckpointBroken,
    Event,
    Notice,
    OnEvent,
    PhaseStarted,
    ShardEvent,
    StageFinished,
    WorkPlanned,
)
from sisa_ray.execution.forget import plan_batch, rewrite_slices
from sisa_ray.execution.selfcheck import self_check
from sisa_ray.execution.workers import Workers
from sisa_ray.storage import layout
from sisa_ray.storage.purge import purge
from sisa_ray.storage.run import Run, missing_objects


class Session:
    """Work on one run. Entering takes the run: earlier, unfinished sessions are superseded."""

    def __init__(
        self,
        run: Run,
        workers: Workers,
        *,
        command: str,
        on_event: OnEvent,
        replica: bool = False,
    ) -> None:
        self.run = run
        self.attempt = uuid.uuid4().hex
        self._workers = workers
        self._command = command
        self._on_event = on_event
        self._replica = replica
        """A re-execution for comparison: nothing is mended or checked that the original would have to show."""

    def __enter__(self) -> Session:
        self.run.commit(AttemptOpened(attempt=self.attempt, command=self._command))
        if not self._replica:
            self._note_missing_objects()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error the attempt stays open, so that the next session sweeps what this one left.
        if kind is None:
            self.run.commit(AttemptClosed(attempt=self.attempt))

    def accept(self, subjects: Sequence[str]) -> str:
        """Make a request to forget ``subjects`` durable; from here on it will be done. Returns its id."""
        request = uuid.uuid4().hex
        path = layout.request_path(request)
        self.run.store.put(path, json.dumps({"subjects": list(subjects)}).encode())
        tags = tuple(self.run.secret.tags(subjects))
        self.run.commit(RequestAccepted(request=request, tags=tags, payload=path))
        return request

    def reconcile(self, *, train: bool) -> None:
        """Do everything that is left to do. ``train``: up to a complete, published ensemble."""
        while (decision := self._decide(train)) is not None:
            self._execute(decision)

    def _decide(self, train: bool) -> Decision | None:
        return decide(self.run.spec, self.run.state, train=train)

    def _execute(self, decision: Decision) -> None:
        run = self.run
        match decision:
            case PlanBatch(requests=requests):
                run.commit(plan_batch(run, requests))
            case RewriteSlices(batch=batch):
                self._say("rewriting slices")
                run.commit(rewrite_slices(run, batch, attempt=self.attempt))
            case BuildStages(shards=shards):
                self.build(shards)
            case Publish(generation=generation, keys=keys):
                run.commit(GenerationPublished(generation=generation, keys=keys))
            case Purge():
                self._say("purging")
                purge(run, attempt=self.attempt)
            case CloseBatch(batch=batch):
                done = run.state.batches[batch]
                run.commit(
                    BatchClosed(
                        batch=batch,
                        stages_rebuilt=done.stages_rebuilt,
                        record_visits=done.record_visits,
                        full_retrain_record_visits=full_retrain_visits(run.spec, run.state),
                        objects_purged=done.objects_purged,
                    )
                )

    def build(self, plans: Sequence[ShardPlan]) -> None:
        """Train the stages of ``plans`` on the shard actors."""
        run = self.run
        self._say("starting shard actors")
        pool = self._workers.pool(run.spec, self._on_event)
        pool.start(len(plans))
        job = BuildJob(store=run.store, columns=run.state.columns, attempt=self.attempt)
        if not self._replica:
            platform = self_check(run, pool, job)
            if platform is not None:
                run.commit(SelfChecked(platform=platform))
        num_stages = sum(len(p.stages) for p in plans)
        num_steps = sum(p.num_steps for p in plans)
        self._on_event(WorkPlanned(num_shards=len(plans), num_stages=num_stages, num_steps=num_steps))
        pool.build(plans, job=job, handle=self._handle, replan=self._replan)

    def _replan(self, shard: int) -> ShardPlan | None:
        plans = missing_stages(
            self.run.spec, self.run.state, Lineage(self.run.spec, self.run.state), (shard,)
        )
        return plans[0] if plans else None

    def _handle(self, event: ShardEvent) -> None:
        run = self.run
        if isinstance(event, StageFinished):
            before = run.state.stages.get((event.ref.shard, event.ref.stage))
            if (
                before is not None
                and before.key == event.ref.key
                and before.file_digest != event.ref.file_digest
            ):
                self._on_event(
                    Notice(
                        text=f"shard {event.ref.shard} stage {event.ref.stage}: rebuilt with other bits than logged "
                        "(another platform?); everything after it is rebuilt"
                    )
                )
            run.commit(StageBuilt(ref=event.ref))
        elif isinstance(event, CheckpointBroken):
            self._on_event(Notice(text=f"{event.problem}; rebuilding it"))
            run.commit(CheckpointLost(shard=event.shard, stage=event.stage, reason="digest"))
        self._on_event(event)

    def _note_missing_objects(self) -> None:
        """Checkpoints that vanished or were cut short are to be rebuilt; a lost slice cannot be."""
        gone = set(missing_objects(self.run))
        if not gone:
            return
        for slice_ref in self.run.state.slices.values():
            if slice_ref.path in gone:
                raise IntegrityError(
                    f"{self.run.address}/{slice_ref.path}: the slice is gone or cut short and cannot be rebuilt from "
                    "the run; restore this object from a backup, or ingest the source table under another name"
                )
        lost = [ref for ref in self.run.state.stages.values() if ref.path in gone]
        for ref in lost:
            self._on_event(
                Notice(
                    text=f"checkpoint {ref.path} is gone or has another size than was committed; rebuilding it"
                )
            )
        self.run.commit(*(CheckpointLost(shard=r.shard, stage=r.stage, reason="missing") for r in lost))

    def _say(self, text: str) -> None:
        event: Event = PhaseStarted(text=text)
        self._on_event(event)
