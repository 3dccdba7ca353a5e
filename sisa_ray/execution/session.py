"""A session: one process at work on a run, doing what the planner decides until nothing is left to do.

The planner decides in pure code; this module executes, and every step is committed to the log. A crash
anywhere is finished by the next session, in the same bits.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType

from sisa_ray.core.errors import (
    CommitFailed,
    IntegrityError,
    PurgeIncomplete,
    SisaError,
    StateMoved,
    StorageDenied,
)
from sisa_ray.core.planner import Lineage, ShardPlan, full_retrain_visits, missing_stages
from sisa_ray.core.records import (
    AttemptClosed,
    AttemptOpened,
    BatchClosed,
    CheckpointLost,
    GenerationPublished,
    PurgeFailed,
    PurgePlanned,
    SelfChecked,
    StageBuilt,
)
from sisa_ray.core.step import (
    BuildStages,
    Certify,
    CloseBatch,
    Decision,
    FenceRequests,
    Moment,
    PlanBatch,
    Publish,
    Purge,
    RewritePayload,
    RewriteSlices,
    join,
    step,
)
from sisa_ray.execution.acceptance import Submission, accept
from sisa_ray.execution.actor import BuildJob
from sisa_ray.execution.certify import certify
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
from sisa_ray.execution.leases import Leases, NoReplicas
from sisa_ray.execution.pool import Changes
from sisa_ray.execution.selfcheck import self_check
from sisa_ray.execution.workers import Workers
from sisa_ray.storage.mirror import check_mirror, mirror_suppression
from sisa_ray.storage.payloads import rewrite_payload
from sisa_ray.storage.purge import has_strays, purge
from sisa_ray.storage.run import Run, missing_objects

WRITERS_END_S = 150.0
"""Seconds after which nothing of a lost node writes any more: Ray ends its actors when it has not reached the head for
a minute (``RAY_gcs_rpc_server_reconnect_timeout_s``), and requests to storage break off within another."""

SWEEP_S = 600.0
"""Seconds between two looks everywhere under the run for what nothing names."""

_NUM_TRIES = 20
_PAUSE_S = 0.2
_LOOK_S = 2.0
_FIRST_RETRY_S = 30.0
_LONGEST_RETRY_S = 6 * 3600.0

Clock = Callable[[], Moment]


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
        is_behind: bool = False,
        moment: Clock | None = None,
        interrupt: Callable[[], None] = lambda: None,
    ) -> None:
        self.run = run
        self.attempt = uuid.uuid4().hex
        self.workers = workers
        self._command = command
        self._listeners = [on_event]
        self._replica = replica
        """A re-execution for comparison: nothing is mended or checked that the original would have to show."""
        self._is_behind = is_behind
        """The run was restored from before some people asked to be forgotten, and this session makes up for it."""
        self.is_untidy = True
        """Something may have been left anywhere: by sessions before this one, by what failed here, by lost writers."""
        self._swept_at = time.monotonic()
        self._moment = moment
        """Lets the batching policy decide when; without it nothing waits."""
        self._looked_at = 0.0
        self._is_successor = False
        """A session before this one did not end in order: its actors may be left where they were."""
        self.leases: Leases = NoReplicas()
        """Those of the replicas that answer from the run."""
        self._interrupt = interrupt
        """Asked between steps and while stages are built; raises to have the work given up."""

    def __enter__(self) -> Session:
        if not (self._replica or self._is_behind):
            check_mirror(self.run)
        self._take()
        if not self._replica:
            if not self._is_behind:
                mirror_suppression(self.run)
            self._note_missing_objects()
            if not self.run.state.purge_due and has_strays(self.run):
                # Late writes of a process that was superseded.
                self.run.commit(PurgePlanned(attempt=self.attempt, num_objects=0))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error the attempt stays open, so that the next session sweeps what this one left.
        if kind is None:
            self.run.commit(AttemptClosed(attempt=self.attempt))
            self.run.attempt = None
            self.run.snapshot()

    def _take(self) -> None:
        """Have the run; others may be accepting requests for it this very moment."""
        for _ in range(_NUM_TRIES):
            left_open = self.run.state.attempt
            try:
                self.run.commit(AttemptOpened(attempt=self.attempt, command=self._command))
            except CommitFailed:
                self.run.refresh()
            else:
                self._is_successor = left_open is not None
                self.run.attempt = self.attempt
                return
        raise CommitFailed(f"{self.run.address}: others keep writing to the run; run the same command again")

    def accept(self, submission: Submission) -> str:
        """Make a request durable; from here on it will be done. Returns its id.

        Raises:
            DataError: naming the row or the field that breaks a rule.
        """
        answer = accept(self.run, [submission])[0]
        if isinstance(answer, SisaError):
            raise answer
        return answer.request

    def reconcile(self, *, train: bool) -> None:
        """Do everything that is left to do now. ``train``: up to a complete, published ensemble."""
        while True:
            self._interrupt()
            with self.run.lock:
                decision = step(self.run.spec, self.run.state, train=train, moment=self._now())
            if decision is None:
                return
            try:
                self._execute(decision)
            except StateMoved:
                self.workers.release()
                self.is_untidy = True
            self.run.snapshot()

    def _now(self) -> Moment | None:
        return None if self._moment is None else self._moment()

    def _execute(self, decision: Decision) -> None:
        run = self.run
        match decision:
            case FenceRequests(requests=requests):
                self.leases.fence(run, requests, self._interrupt)
            case PlanBatch(requests=requests):
                run.commit(plan_batch(run, requests))
            case RewriteSlices(batch=batch):
                self._say("rewriting slices")
                run.commit(rewrite_slices(run, batch, attempt=self.attempt))
            case BuildStages(shards=shards):
                self.build(shards)
            case Publish(generation=generation, keys=keys):
                run.commit(GenerationPublished(generation=generation, keys=keys))
            case RewritePayload(path=path, requests=requests):
                run.commit(rewrite_payload(run, path, requests))
            case Purge():
                self.purge()
            case CloseBatch(batch=batch):
                run.commit(_closed(run, batch))
            case Certify(batch=batch):
                # No replica may have in memory what the certificate says is gone, and nobody may write it again.
                self.leases.settle(run, self._interrupt)
                if self._outlast_writers():
                    run.commit(certify(run, batch))

    def _outlast_writers(self) -> bool:
        """Wait until actors that were lost have ended, and sweep what they wrote; whether nothing of it is left."""
        workers = self.workers
        if self._is_successor and workers.may_lose_actors():
            workers.note_lost()
        self._is_successor = False
        if workers.lost_at is None:
            return True
        self._say(f"waiting up to {WRITERS_END_S:.0f} s for what lost nodes may still write")
        while time.monotonic() < workers.lost_at + WRITERS_END_S:
            self._interrupt()
            time.sleep(_PAUSE_S)
        workers.note_ended()
        self.sweep()
        return not self.run.state.purge_due

    def sweep(self) -> bool:
        """Purge what writers that were lost or superseded wrote late, wherever it is; whether there was any."""
        self._swept_at = time.monotonic()
        if not has_strays(self.run):
            return False
        self.is_untidy = True
        self.purge()
        return True

    @property
    def is_to_sweep(self) -> bool:
        """Whether nobody has looked everywhere for a while."""
        return time.monotonic() - self._swept_at > SWEEP_S

    def purge(self) -> None:
        """Purge; what cannot be shown to be gone is logged, and tried again."""
        self._say("purging")
        # Where batches follow each other without a rest, nothing else looks at the shards that they do not touch.
        everywhere = self.is_untidy or self.is_to_sweep
        try:
            purge(self.run, attempt=self.attempt, everywhere=everywhere)
            if everywhere:
                self.is_untidy, self._swept_at = False, time.monotonic()
        except (PurgeIncomplete, StorageDenied) as error:
            trouble = self.run.state.purge_trouble
            pause_s = min(_LONGEST_RETRY_S, _FIRST_RETRY_S * 2.0 ** (trouble.num_tries if trouble else 0))
            retry_at = self.run.now() + timedelta(seconds=pause_s)
            self.run.commit(PurgeFailed(problem=str(error), retry_at=retry_at))
            if self._moment is None:
                raise
            self.report(Notice(text=f"{error}; trying again in {pause_s:,.0f} s"))

    def build(self, plans: Sequence[ShardPlan]) -> None:
        """Train the stages of ``plans`` on the shard actors."""
        run = self.run
        self._say("starting shard actors")
        pool = self.workers.pool(run.spec, self.report)
        self.workers.require_reach(run.address)
        pool.prepare(len(plans))
        job = BuildJob(store=run.store, columns=run.state.columns, attempt=self.attempt)
        if not self._replica:
            platform = self_check(run, pool, job)
            if platform is not None:
                run.commit(SelfChecked(platform=platform))
        num_stages = sum(len(p.stages) for p in plans)
        num_steps = sum(p.num_steps for p in plans)
        self.report(WorkPlanned(num_shards=len(plans), num_stages=num_stages, num_steps=num_steps))
        pool.build(plans, job=job, handle=self._handle, replan=self._replan, poll=self._poll)

    def _poll(self, building: Mapping[int, ShardPlan]) -> Changes | None:
        """Let requests join that came since the build began; a replica has none."""
        self._interrupt()
        run = self.run
        if self._moment is not None and time.monotonic() - self._looked_at > _LOOK_S:
            run.refresh(is_whole=False)  # others may have accepted requests through the log
            self._looked_at = time.monotonic()
        is_changed = False
        while not self._replica:
            with run.lock:
                decision = join(run.spec, run.state, moment=self._now())
            if decision is None:
                break
            self._execute(decision)
            is_changed = is_changed or isinstance(decision, RewriteSlices)
        return self._changes(building) if is_changed else None

    def _changes(self, building: Mapping[int, ShardPlan]) -> Changes:
        run = self.run
        lineage = Lineage(run.spec, run.state)
        stop: set[int] = set()
        cut: set[int] = set()
        for shard, plan in building.items():
            keys = lineage.keys(shard)
            left = [s for s in plan.stages if not _is_built(run, shard, s.stage, s.key)]
            stale = [s.stage for s in left if keys[s.stage - 1] != s.key]
            if stale:
                (stop if stale[0] == left[0].stage else cut).add(shard)
        plans = missing_stages(run.spec, run.state, lineage)
        self.report(
            WorkPlanned(
                num_shards=len(plans),
                num_stages=sum(len(p.stages) for p in plans),
                num_steps=sum(p.num_steps for p in plans),
            )
        )
        return Changes(stop=frozenset(stop), cut=frozenset(cut), plans=plans)

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
                self.report(
                    Notice(
                        text=f"shard {event.ref.shard} stage {event.ref.stage}: rebuilt with other bits than logged "
                        "(another platform?); everything after it is rebuilt"
                    )
                )
            run.commit(StageBuilt(ref=event.ref))
        elif isinstance(event, CheckpointBroken):
            self.report(Notice(text=f"{event.problem}; rebuilding it"))
            run.commit(CheckpointLost(shard=event.shard, stage=event.stage, reason="digest"))
        self.report(event)

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
        lost = [ref for ref in self.run.state.stages.values() if not gone.isdisjoint(ref.objects)]
        for ref in lost:
            self.report(
                Notice(
                    text=f"checkpoint {ref.path} is gone or has another size than was committed; rebuilding it"
                )
            )
        self.run.commit(*(CheckpointLost(shard=r.shard, stage=r.stage, reason="missing") for r in lost))

    @contextmanager
    def heard_by(self, listener: OnEvent) -> Iterator[None]:
        """Let somebody else hear what happens, for a while."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def report(self, event: Event) -> None:
        """Tell everybody who listens."""
        for listener in list(self._listeners):
            listener(event)

    def _say(self, text: str) -> None:
        self.report(PhaseStarted(text=text))


def _is_built(run: Run, shard: int, stage: int, key: str) -> bool:
    ref = run.state.stages.get((shard, stage))
    return ref is not None and ref.key == key


def _closed(run: Run, batch: str) -> BatchClosed:
    done = run.state.batches[batch]
    return BatchClosed(
        batch=batch,
        stages_rebuilt=done.stages_rebuilt,
        record_visits=done.record_visits,
        full_retrain_record_visits=full_retrain_visits(run.spec, run.state),
        objects_purged=done.objects_purged,
        bytes_purged=done.bytes_purged,
    )
