"""A simulated coordinator: carries out what ``step`` and ``join`` decide, as ``execution/`` does with Ray.

The mirror of ``coordinator.py``, ``session.py``, ``pool.py``, ``forget.py`` and ``storage/purge.py``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from sisa_ray.core import planner
from sisa_ray.core import step as steps
from sisa_ray.core.errors import CommitFailed, IntegrityError, PurgeIncomplete, SisaError, StateMoved
from sisa_ray.core.records import (
    AttemptClosed,
    AttemptOpened,
    BatchCertified,
    BatchClosed,
    BatchPlanned,
    CheckpointLost,
    GenerationPublished,
    PayloadRewritten,
    Purged,
    PurgeFailed,
    PurgePlanned,
    RequestRejected,
    RequestsFenced,
    SliceRef,
    SlicesRewritten,
)
from sisa_ray.core.requests import refs_of
from tests.core.cluster_checks import Violation
from tests.core.cluster_pool import Pool, Stopping
from tests.core.cluster_run import Reply, SimRun, Submission, accept, named_by
from tests.core.cluster_store import TABLE, Group, Signal, Steps, Wait, is_below, place_of, slice_ref, tag_of

if TYPE_CHECKING:
    from tests.core.cluster_world import World

SWEEP_S = 600.0
_LOOK_S = 2.0
_FIRST_RETRY_S = 30.0
_LONGEST_RETRY_S = 6 * 3600.0


class Coordinator:
    """One coordinator process with its actors."""

    sweeps_in_back_off = False
    rests_after_sweep = False

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.spec = world.spec
        self.group = Group(name)
        self.attempt = name
        self.run = SimRun(world=world, group=self.group)
        self.news = Signal()
        self.is_stopping = False
        self.is_untidy = True
        self.swept_s = world.loop.now_s
        self.orders: deque[str] = deque()
        """Requests to be rejected."""
        self.has_news = False
        self.is_resting = False
        self.pool = Pool(self)
        self.inbox: deque[tuple[list[Submission], Reply]] = deque()
        self._mail = Signal()
        self.writing: set[str] = set()
        """Slices and payloads that the worker writes."""
        self.platform = world.draw_platform()

    @property
    def is_alive(self) -> bool:
        return self.group.is_alive

    def in_work(self) -> set[str]:
        """Objects that this process is writing and no record names yet."""
        return self.pool.writing() | self.run.in_flight | self.writing

    def submit(self, asked: list[Submission]) -> Reply:
        reply = Reply()
        self.inbox.append((asked, reply))
        self.world.loop.notify(self._mail)
        return reply

    # The thread that takes requests in

    def take_in(self) -> Steps:
        while not self.is_stopping:
            if not self.inbox:
                yield Wait(self._mail)
                continue
            group, self.inbox = list(self.inbox), deque()
            submissions = [asked for several, _ in group for asked in several]
            self.world.seen["requests accepted together"] += len(submissions) > 1
            answers: list[str] | SisaError
            try:
                answers = yield from accept(self.run, submissions)
            except SisaError as error:
                if isinstance(error, CommitFailed):
                    self.is_stopping = True
                answers = error
            for several, reply in group:
                if isinstance(answers, list):
                    reply.answer, answers = answers[: len(several)], answers[len(several) :]
                else:
                    reply.answer = answers
                self.world.loop.notify(reply.done, self.world.latency())
            self.has_news = True
            self.world.loop.notify(self.news)

    # The thread that works

    def work(self) -> Steps:
        is_taken = False
        try:
            yield from self._take()
            is_taken = True
            self.world.loop.spawn(self.take_in(), self.group)
            yield from self._pass_until_stopped()
            yield from self.run.commit(AttemptClosed(attempt=self.attempt))
            self.run.attempt = None
        except SisaError as error:
            self.world.say(self.group.name, f"stops: {error}")
            if is_taken and not (self.is_stopping or isinstance(error, (CommitFailed, Stopping))):
                raise Violation("a run ends", f"{self.attempt} gives up: {error}") from error
        self.pool.release()
        self.is_stopping = True
        self.group.is_alive = False
        self.world.ended(self)

    def _take(self) -> Steps:
        for _ in range(20):
            try:
                yield from self.run.commit(AttemptOpened(attempt=self.attempt, command="coordinator"))
            except CommitFailed:
                yield from self.run.refresh()
            else:
                self.run.attempt = self.attempt
                break
        else:
            raise CommitFailed("others keep writing to the run")
        here = self.world.store.objects
        lost = [ref for ref in self.run.state.stages.values() if ref.path and ref.path not in here]
        if lost:
            yield from self.run.commit(
                *(CheckpointLost(shard=r.shard, stage=r.stage, reason="missing") for r in lost)
            )

    def _pass_until_stopped(self) -> Steps:
        pause_s = 1.0
        while not self.is_stopping:
            try:
                yield from self.run.refresh()
                yield from self._reconcile()
                yield from self._do_orders()
                pause_s = 1.0
                yield from self.rest()
            except (CommitFailed, Stopping):
                raise
            except SisaError as error:
                self.pool.release()
                self.is_untidy = True
                self.world.say(self.group.name, f"in trouble: {type(error).__name__}: {error}")
                yield pause_s
                pause_s = min(2 * pause_s, 300.0)
                continue
            yield 0.05

    def _do_orders(self) -> Steps:
        while self.orders:
            name = self.orders.popleft()
            request = self.run.state.requests.get(name)
            if request is not None and request.batch is None:
                yield from self.run.commit(RequestRejected(request=name, reason="withdrawn"))
                self.world.seen["request rejected"] += 1
            yield from self._reconcile()

    def _reconcile(self) -> Steps:
        while True:
            if self.is_stopping:
                raise Stopping
            yield from self.run.lock.taken()
            decision = steps.step(
                self.spec, self.run.state, train=self.world.train, moment=self.world.moment()
            )
            self.run.lock.free()
            if decision is None:
                return
            try:
                yield from self.execute(decision)
            except StateMoved:
                self.pool.release()
                self.is_untidy = True

    def rest(self) -> Steps:
        """Real ones look every two seconds; here whatever they would see wakes them, as much later at most.

        A sweep is a purge like any other: it backs off, and what it makes possible is done at once.
        """
        loop, store, run = self.world.loop, self.world.store, self.run
        swept_s = loop.now_s
        while not (self.has_news or self.is_stopping):
            # What a purge could not delete is tried again when that says so.
            strays = (
                self._unnamed(store.objects)
                if self.sweeps_in_back_off or run.state.purge_trouble is None
                else []
            )
            if loop.now_s - swept_s > SWEEP_S:
                swept_s = loop.now_s - (loop.now_s - swept_s) % SWEEP_S
                if strays:
                    yield from self.sweep()
                    if self.rests_after_sweep:
                        continue
                    break
            moment = self.world.moment()
            wake = steps.wakes_at(self.spec, run.state, moment)
            left_s = 10 * SWEEP_S if strays else None
            if wake is not None:
                left_s = (wake - moment.now).total_seconds()
                if left_s <= 0:
                    break
            if strays:
                left_s = min(left_s or 0.0, swept_s + SWEEP_S - loop.now_s + 1.0)
            if len(store.log) > run.seq + 1:
                left_s = self.world.rng.random() * _LOOK_S
            self.is_resting = True
            yield Wait(self.news, left_s)
            self.is_resting = False
            seq = run.seq
            yield from run.refresh()
            if run.seq != seq:
                if run.state.attempt != self.attempt:
                    raise CommitFailed("another process has taken the run")
                break
        self.has_news = False

    def sweep(self) -> Steps:
        """Purge what writers that were superseded wrote late."""
        self.is_untidy = True
        return self._purge()

    def execute(self, decision: steps.Decision) -> Steps:
        run = self.run
        match decision:
            case steps.FenceRequests(requests=requests):
                yield from run.commit(RequestsFenced(requests=requests))
            case steps.PlanBatch(requests=requests):
                yield from run.commit(self._plan(requests))
            case steps.RewriteSlices(batch=batch):
                yield from self._rewrite(batch)
            case steps.BuildStages(shards=shards):
                yield from self.pool.build(shards)
            case steps.Publish(generation=generation, keys=keys):
                yield from run.commit(GenerationPublished(generation=generation, keys=keys))
            case steps.RewritePayload(path=path, requests=requests):
                yield from self._rewrite_payload(path, requests)
            case steps.Purge():
                yield from self._purge()
            case steps.CloseBatch(batch=batch):
                yield from run.commit(self._closed(batch))
            case steps.Certify(batch=batch):
                yield from self._certify(batch)

    def _rewrite_payload(self, path: str, requests: tuple[str, ...]) -> Steps:
        people = named_by(self.run, requests)
        new = f"requests/{self.world.new_id('p')}"
        self.writing = {new}
        try:
            yield from self.run.put(new, frozenset(s for named in people.values() for s in named), people)
            yield from self.run.commit(PayloadRewritten(before=path, path=new, requests=requests))
        finally:
            self.writing = set()
        self.world.seen["payload rewritten"] += 1

    def _plan(self, requests: tuple[str, ...]) -> BatchPlanned:
        people = dict.fromkeys(s for named in named_by(self.run, requests).values() for s in named)
        slices = self.run.state.slices
        known = {s for s in people if s in self._held(slices[place_of(s)])}
        return BatchPlanned(
            batch=self.world.new_id("b"),
            requests=requests,
            unknown=tuple(tag_of(s) for s in people if s not in known),
            num_records=sum(s in known for s in TABLE.values()),
            affected=tuple(sorted({place_of(s) for s in known})),
        )

    def _rewrite(self, batch: str) -> Steps:
        plan = self.run.state.batches[batch].plan
        gone = {s for named in named_by(self.run, plan.requests).values() for s in named}
        refs = []
        try:
            for where in plan.affected:
                before = self.run.state.slices[where]
                records = self.run.get(before.path).content if before.path is not None else frozenset()
                rest = self.erased(records, gone)
                ref = slice_ref(*where, rest, self.attempt)
                if ref.path is not None:
                    self.writing.add(ref.path)
                    yield from self.run.put(ref.path, frozenset(TABLE[r] for r in rest), rest)
                refs.append(ref)
            yield from self.run.commit(SlicesRewritten(batch=batch, slices=tuple(refs)))
        finally:
            self.writing = set()

    @staticmethod
    def erased(records: Iterable[str], gone: set[str]) -> frozenset[str]:
        """Records without those of some people."""
        return frozenset(r for r in records if TABLE[r] not in gone)

    def _held(self, ref: SliceRef) -> frozenset[str]:
        return self.run.get(ref.path).held if ref.path is not None else frozenset()

    def _closed(self, batch: str) -> BatchClosed:
        done = self.run.state.batches[batch]
        return BatchClosed(
            batch=batch,
            stages_rebuilt=done.stages_rebuilt,
            record_visits=done.record_visits,
            full_retrain_record_visits=0,
            objects_purged=done.objects_purged,
            bytes_purged=done.bytes_purged,
        )

    def _certify(self, batch: str) -> Steps:
        """As ``certify.certify``: created only if absent; what is there must be the same."""
        path = f"certificates/{batch}"
        closed = self.run.state.closed_batches[batch]
        assert closed.evidence is not None
        after = tuple(ref.file_digest for ref in refs_of(closed.evidence.after))
        content = (closed.evidence.entry, closed.evidence.generation, closed.closed, after)
        there = self.world.store.objects.get(path)
        if there is None:
            yield from self.run.put(path, frozenset(), content)
        elif there.content != content:
            raise IntegrityError(f"{path}: is not the certificate of this batch")
        yield from self.run.commit(BatchCertified(batch=batch, path=path, digest=""))

    # Purge

    def _purge(self) -> Steps:
        everywhere = self.is_untidy or self.world.loop.now_s - self.swept_s > SWEEP_S
        try:
            yield from self.purge_once(everywhere=everywhere)
            if everywhere:
                self.is_untidy, self.swept_s = False, self.world.loop.now_s
        except PurgeIncomplete as error:
            trouble = self.run.state.purge_trouble
            pause_s = min(_LONGEST_RETRY_S, _FIRST_RETRY_S * 2.0 ** (trouble.num_tries if trouble else 0))
            retry_at = self.world.loop.now() + timedelta(seconds=pause_s)
            yield from self.run.commit(PurgeFailed(problem=str(error), retry_at=retry_at))
            self.world.seen["purge failed"] += 1

    def purge_once(self, *, everywhere: bool = True) -> Steps:
        run, store = self.run, self.world.store
        yield self.world.latency()
        shards = None if everywhere or run.state.purge_shards is None else set(run.state.purge_shards)
        if shards is not None:
            shards.update(planner.unkept_shards(self.spec, run.state))
        self.world.seen["purge of a few shards"] += shards is not None
        listed = [path for path in store.list(self.attempt) if shards is None or is_below(path, shards)]
        yield self.world.latency()
        yield from run.lock.taken()
        try:
            named = planner.named_paths(self.spec, run.state)
            lost = [
                CheckpointLost(shard=ref.shard, stage=ref.stage, reason="retention")
                for ref in run.state.stages.values()
                if ref.path is not None and ref.path not in named
            ]
            count = len(self._unnamed(listed))
            planned = PurgePlanned(attempt=self.attempt, num_objects=count)
            yield from run.commit_locked(*lost, planned)
            doomed = self._unnamed(listed)
        finally:
            run.lock.free()
        left = doomed
        for tries in range(4):
            for path in left:
                yield from run.act(f"delete {path}", partial(self.world.delete, path))
            left = [path for path in doomed if path in store.objects]
            if not left:
                break
            yield 2.0**tries / 10
        if left:
            raise PurgeIncomplete(f"{len(left)} object(s) are still there after deletion, first {left[0]}")
        yield from run.commit(Purged(attempt=self.attempt, num_objects=len(doomed), num_bytes=0))

    def _unnamed(self, listed: Iterable[str]) -> list[str]:
        named = planner.named_paths(self.spec, self.run.state) | self.run.in_flight
        doomed = [p for p in listed if p not in named and not p.startswith("certificates/")]
        if any(p.startswith("partials/") for p in doomed):  # seldom: the question takes long
            partials = planner.wanted_partials(self.spec, self.run.state)
            doomed = [p for p in doomed if not (p.startswith("partials/") and p.split("/")[1] in partials)]
        return doomed
