"""The pool of shard actors: all calls into Ray for training go through here.

An actor owns a shard while there is work for it. With fewer slots than shards, shards queue for the actors
that exist. Never more actors are asked for than shards wait, and those that nothing waits for are let go of, so
that idle clusters give their GPUs back. Actors that fit nowhere yet stay asked for: an autoscaler sees them.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)

from sisa_ray.core.errors import ExecutionError, WorkerLost
from sisa_ray.core.placement import ACCELERATOR_LABEL, Platform, kind_for, next_match, slot_of
from sisa_ray.core.planner import ShardPlan
from sisa_ray.execution.actor import ActorContext, BuildJob
from sisa_ray.execution.events import Notice, OnEvent, ShardEvent, StageFinished, StageProgress
from sisa_ray.execution.failures import cause_of
from sisa_ray.execution.room import Room
from sisa_ray.execution.shell import ShardActorProcess

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_SPARE_S = 10.0
"""Seconds after which an actor that nothing waits for is let go of while others are still at work."""
_MAX_DEATHS_WITHOUT_PROGRESS = 5
_NO_SHARD = -1
_PROCESS_ENDED = "worker process has died"
_DEATHS = (ActorDiedError, ActorUnavailableError, RayActorError, OutOfMemoryError)

T = TypeVar("T")
Replan = Callable[[int], ShardPlan | None]
OnShardEvent = Callable[[ShardEvent], None]


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What news does to a build that is under way."""

    stop: frozenset[int] = frozenset()
    """Shards whose stage in progress is not wanted any more."""
    cut: frozenset[int] = frozenset()
    """Shards whose stage in progress is wanted, and those after it are not."""
    plans: tuple[ShardPlan, ...] = ()
    """Shards that have work now, and are not being built."""


Poll = Callable[[Mapping[int, ShardPlan]], Changes | None]
"""Asked often, with the plans in progress by shard; raises to have the build given up."""


def no_news(_: Mapping[int, ShardPlan]) -> Changes | None:
    """A build that nothing can change."""
    return None


@dataclass
class _Busy:
    actor: Any
    plan: ShardPlan
    is_cut: bool = False


class ShardPool:
    """Shard actors of one run. Use as a context manager: leaving it releases every actor."""

    def __init__(
        self,
        context: ActorContext,
        *,
        on_event: OnEvent,
        on_lost: Callable[[], None] = lambda: None,
        room: Room | None = None,
    ) -> None:
        """``on_lost`` is called where an actor is out of reach, and may go on writing where it is."""
        config = context.spec.config
        self._context = context
        self._room = room or Room(slot_of(config), config.resources)
        self.on_event = on_event
        self._on_lost = on_lost
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}
        self._busy: dict[Any, _Busy] = {}
        self._platforms: WeakKeyDictionary[Any, Platform] = WeakKeyDictionary()
        """Where each actor is, or was asked to be."""
        self._shared_context: list[Any] | None = None
        self._needed_at = time.monotonic()
        """When something last waited for an actor."""
        self._deaths: dict[int, int] = {}

    def __enter__(self) -> ShardPool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def num_slots(self) -> int:
        """Shards that the cluster, as it is now, can train side by side.

        Raises:
            ClusterError: where no node could ever hold one, and none is to come; says what the nodes have.
        """
        return self._room.num_slots()

    def prepare(self, num_shards: int, *, after: Sequence[Platform | None] = ()) -> None:
        """Have actors loading for so many shards; see :meth:`start`."""
        self.start(num_shards, after=after)

    def start(self, num_actors: int, *, after: Sequence[Platform | None] = (), num_busy: int = 0) -> None:
        """Have ``num_actors`` actors free or asked for, as far as there are slots.

        Args:
            num_actors: as many as there is work for.
            after: where what they are to go on from was computed, as far as that is known.
            num_busy: actors at work of whom the pool itself does not know.

        Raises:
            ExecutionError: where there is no node for any, for longer than the run waits for one.
        """
        free = len(self._idle) + len(self._starting)
        num_live = free + len(self._busy) + num_busy
        for number in range(free, min(num_actors, free + self._room.num_slots() - num_live)):
            actor = self._new_actor(after[number] if number < len(after) else None)
            self._starting[actor.ready.remote()] = actor
        if self._starting and not (self._idle or self._busy or num_busy):
            self._room.wait_for_nodes(self.on_event)

    def _new_actor(self, after: Platform | None) -> Any:
        """Ask for an actor, on a device such as ``after`` names where the cluster has one."""
        resources, slot = self._context.spec.config.resources, self._room.slot
        labels = dict(slot.labels)
        kind = kind_for(after, slot, self._room.nodes()) if after is not None else None
        if kind is not None:
            labels.setdefault(ACCELERATOR_LABEL, kind)
        if self._shared_context is None:
            self._shared_context = [ray.put(self._context)]
        actor = _REMOTE.options(
            num_cpus=slot.num_cpus,
            num_gpus=slot.num_gpus,
            accelerator_type=slot.accelerator_type,
            label_selector=labels,
            scheduling_strategy="SPREAD" if resources.strategy == "spread" else "DEFAULT",
        ).remote(self._shared_context)
        if after is not None and kind is not None:
            self._platforms[actor] = after
        return actor

    def _kill(self, actor: Any) -> None:
        """End an actor that is at work."""
        ray.kill(actor)

    def _spare(self, num_waiting: int) -> None:
        """Let go of actors that nothing waits for: those still asked for at once, those that are free in a while."""
        while self._starting and len(self._starting) + len(self._idle) > num_waiting:
            self._starting.popitem()
        if num_waiting:
            self._needed_at = time.monotonic()
        elif time.monotonic() - self._needed_at > _SPARE_S:
            self._idle.clear()

    def take(self, *, fresh: bool = False) -> Any:
        """An actor for a single call; give it back with :meth:`give`. ``fresh``: one that has not trained."""
        if self._idle and not fresh:
            return self._idle.pop()
        asked_at = time.monotonic()
        while True:
            if fresh and self._idle and (not self._starting or time.monotonic() - asked_at > _SPARE_S):
                # A new process needs a slot; this one may have the last.
                ray.kill(self._idle.pop())
            self.start(len(self._idle) + 1)
            ready, _ = ray.wait(list(self._starting), num_returns=1, timeout=_POLL_S)
            for item in ready:
                actor = self._admit(item)
                if actor is not None:
                    return actor

    def give(self, actor: Any) -> None:
        """Return an actor."""
        self._idle.append(actor)

    def call(self, actor: Any, method: str, *args: object) -> Any:
        """Call a method of an actor and wait for the answer."""
        return self._get(getattr(actor, method).remote(*args))

    def outlive(self, work: Callable[[], T]) -> T:
        """The result of work with single actors, done again where one of them dies in it."""
        while True:
            try:
                return work()
            except _DEATHS as error:
                self._count_death(_NO_SHARD, error)

    def build(
        self,
        plans: Sequence[ShardPlan],
        *,
        job: BuildJob,
        handle: OnShardEvent,
        replan: Replan,
        poll: Poll = no_news,
    ) -> None:
        """Build all plans. ``handle`` commits what arrives; ``replan`` says what a shard still lacks.

        ``poll`` lets requests join: a stage that is still wanted is kept, whatever else changes.

        An actor that dies is replaced; its shard goes on from its last committed or mid-stage checkpoint.

        Raises:
            ExecutionError: where a shard fails again and again, or its recipe raises.
        """
        waiting = deque(sorted(plans, key=lambda p: -p.num_steps))  # longest first: no straggler at the end
        while True:
            changes = poll({work.plan.shard: work.plan for work in self._busy.values()})
            if changes is not None:
                waiting = deque(self._changed(changes, waiting, replan))
            if not (waiting or self._busy):
                return
            self._spare(len(waiting))
            self.start(len(waiting), after=[_after(plan) for plan in waiting])
            for actor, plan in self._matched(waiting):
                stream = actor.build.options(num_returns="streaming").remote(job, plan)
                self._busy[stream] = _Busy(actor, plan)
            ready, _ = ray.wait(
                [*self._starting, *self._busy], num_returns=1, timeout=_POLL_S, fetch_local=False
            )
            for item in ready:
                if item in self._starting:
                    self._idle += filter(None, [self._admit(item)])
                    continue
                again = self._advance(item, handle, replan)
                if again is not None:
                    waiting.appendleft(again)

    def _matched(self, waiting: deque[ShardPlan]) -> Iterator[tuple[Any, ShardPlan]]:
        """Actors that are free, each with the plan to build next; takes both off their lists."""
        while waiting and self._idle:
            at_work = [*self._starting.values(), *(work.actor for work in self._busy.values())]
            match = next_match(
                [_after(plan) for plan in waiting],
                [self._platforms.get(actor, {}) for actor in self._idle],
                [self._platforms.get(actor, {}) for actor in at_work],
            )
            if match is None:
                return
            plan = waiting[match[0]]
            del waiting[match[0]]
            yield self._idle.pop(match[1]), plan

    def _changed(self, changes: Changes, waiting: Iterable[ShardPlan], replan: Replan) -> Iterator[ShardPlan]:
        """The plans that wait after ``changes``; work in progress that is not wanted any more ends."""
        new = {plan.shard: plan for plan in changes.plans}
        for plan in waiting:
            current = new.pop(plan.shard, None) or replan(plan.shard)
            if current is not None:
                yield current
        for stream, work in list(self._busy.items()):
            new.pop(work.plan.shard, None)
            if work.plan.shard in changes.stop:
                again = self._end(stream, replan)
                if again is not None:
                    yield again
            elif work.plan.shard in changes.cut:
                work.is_cut = True
        yield from new.values()

    def _end(self, stream: Any, replan: Replan) -> ShardPlan | None:
        """End the actor behind a stream; what its shard lacks now."""
        work = self._busy.pop(stream)
        self._kill(work.actor)
        return replan(work.plan.shard)

    def share(self, value: object) -> Any:
        """Put a value where every actor can read it once."""
        return ray.put(value)

    def map(self, method: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Results of calls to any actor, in order. A call whose actor dies is made again.

        Raises:
            ExecutionError: where actors die again and again, or the recipe raises.
        """
        results: list[Any] = [None] * len(calls)
        waiting = deque(range(len(calls)))
        running: dict[Any, tuple[Any, int]] = {}
        while waiting or running:
            self._spare(len(waiting))
            self.start(len(waiting), num_busy=len(running))
            while waiting and self._idle:
                actor, number = self._idle.pop(), waiting.popleft()
                running[getattr(actor, method).remote(*calls[number])] = (actor, number)
            ready, _ = ray.wait([*self._starting, *running], num_returns=1, timeout=_POLL_S)
            for item in ready:
                if item in self._starting:
                    self._idle += filter(None, [self._admit(item)])
                    continue
                actor, number = running.pop(item)
                try:
                    results[number] = self._get(item)
                except _DEATHS as error:
                    self._count_death(_NO_SHARD, error)
                    waiting.append(number)
                else:
                    self._idle.append(actor)
        return results

    def release(self) -> None:
        """End every actor and give its resources back."""
        for work in self._busy.values():
            self._kill(work.actor)
        # Whoever is idle ends by itself once nobody holds it, and without an alarm in Ray's logs.
        self._idle.clear()
        self._starting.clear()
        self._busy.clear()
        self._room.leave()

    def _admit(self, ready: Any) -> Any | None:
        """An actor that has loaded, or None if it died of that."""
        actor = self._starting.pop(ready)
        try:
            self._platforms[actor] = self._get(ready)
        except _DEATHS as error:
            self._count_death(_NO_SHARD, error)
            return None
        return actor

    def _advance(self, stream: Any, handle: OnShardEvent, replan: Replan) -> ShardPlan | None:
        """Take the next event of a stream; the plan to queue again if its actor is done for."""
        work = self._busy[stream]
        shard = work.plan.shard
        try:
            event: ShardEvent = ray.get(next(stream))
        except StopIteration:
            del self._busy[stream]
            self._idle.append(work.actor)
            return replan(shard)
        except _DEATHS as error:
            del self._busy[stream]
            self._count_death(shard, error)
            self.on_event(Notice(text=f"shard {shard}: its actor died; going on from the last checkpoint"))
            return replan(shard)
        except RayTaskError as error:
            del self._busy[stream]
            if isinstance(error.cause, WorkerLost):  # the actor itself is well
                self._idle.append(work.actor)
                self._count_death(shard, error.cause)
                self.on_event(Notice(text=f"shard {shard}: a worker died; going on from the last checkpoint"))
                return replan(shard)
            ray.kill(work.actor)
            raise cause_of(error, shard) from None
        if isinstance(event, (StageFinished, StageProgress)):
            self._deaths.pop(shard, None)
        handle(event)
        if work.is_cut and isinstance(event, StageFinished):
            return self._end(stream, replan)
        return None

    def _count_death(self, shard: int, error: Exception) -> None:
        # Of its process a node tells; of a whole node that is silent nobody knows what runs there.
        if _PROCESS_ENDED not in str(error):
            self._on_lost()
        self._deaths[shard] = self._deaths.get(shard, 0) + 1
        if self._deaths[shard] >= _MAX_DEATHS_WITHOUT_PROGRESS:
            who = f"shard {shard}: its actor" if shard >= 0 else "shard actors"
            raise ExecutionError(
                f"{who} died {_MAX_DEATHS_WITHOUT_PROGRESS} times without getting further; "
                f"the last time: {str(error).strip().splitlines()[0]}"
            )

    def _get(self, ref: Any) -> Any:
        try:
            return ray.get(ref)
        except RayTaskError as error:
            raise cause_of(error, None) from None


_REMOTE: Any = ray.remote(ShardActorProcess)


def _after(plan: ShardPlan) -> Platform | None:
    """Where the checkpoint was computed from which a plan goes on."""
    return None if plan.start is None else plan.start.platform
