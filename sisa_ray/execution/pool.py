"""The pool of shard actors: all calls into Ray for training go through here.

An actor owns a shard while there is work for it. With fewer slots than shards, shards queue for the actors
that exist; actors are released when nothing is left, so that idle clusters give their GPUs back.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)

from sisa_ray.core.errors import ClusterError, ExecutionError, SisaError
from sisa_ray.core.planner import ShardPlan
from sisa_ray.execution.actor import ActorContext, BuildJob, ShardActor
from sisa_ray.execution.events import Notice, OnEvent, ShardEvent, StageFinished, StageProgress

logger = logging.getLogger(__name__)

_POLL_S = 0.5
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
        num_cpus: float,
        num_gpus: float,
        on_event: OnEvent,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """``on_lost`` is called where an actor is out of reach, and may go on writing where it is."""
        self._context = context
        self._num_cpus = num_cpus
        self._num_gpus = num_gpus
        self.on_event = on_event
        self._on_lost = on_lost
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}
        self._busy: dict[Any, _Busy] = {}
        self._deaths: dict[int, int] = {}

    def __enter__(self) -> ShardPool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def num_slots(self) -> int:
        """Shards that the cluster, as it is now, can train side by side.

        Raises:
            ClusterError: where no node could ever hold one; says what the nodes have.
        """
        fits = 0
        seen = []
        for node in ray.nodes():
            if not node["Alive"]:
                continue
            cpus, gpus = node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)
            seen.append(f"{cpus:g} CPUs and {gpus:g} GPUs")
            by_gpu = gpus / self._num_gpus if self._num_gpus else float("inf")
            fits += int(min(cpus / self._num_cpus, by_gpu))
        if fits == 0:
            raise ClusterError(
                f"resources: a shard needs cpus_per_shard={self._num_cpus:g} and gpus_per_shard={self._num_gpus:g}, "
                f"but no node of the cluster has them (nodes: {'; '.join(seen) or 'none'}); "
                "ask for less, or add such a node"
            )
        return fits

    def start(self, num_actors: int) -> None:
        """Have ``num_actors`` actors free or loading, as far as there are slots."""
        free = len(self._idle) + len(self._starting)
        missing = min(num_actors - free, self.num_slots() - free - len(self._busy))
        for _ in range(missing):
            actor = _REMOTE.options(num_cpus=self._num_cpus, num_gpus=self._num_gpus).remote(self._context)
            self._starting[actor.ready.remote()] = actor

    def take(self, *, fresh: bool = False) -> Any:
        """An actor for a single call; give it back with :meth:`give`. ``fresh``: one that has not trained."""
        if fresh and not self._starting:
            self.start(len(self._idle) + 1)
            if not self._starting:  # every slot is taken: a new process needs one of them
                ray.kill(self._idle.pop())
                self.start(len(self._idle) + 1)
        if self._idle and not fresh:
            return self._idle.pop()
        while True:
            self.start(len(self._idle) + 1)
            ready, _ = ray.wait(list(self._starting), num_returns=1)
            actor = self._admit(ready[0])
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
            self.start(len(waiting))
            while waiting and self._idle:
                actor, plan = self._idle.pop(), waiting.popleft()
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
        ray.kill(work.actor)
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
            self.start(len(waiting))
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
            ray.kill(work.actor)
        # Whoever is idle ends by itself once nobody holds it, and without an alarm in Ray's logs.
        self._idle.clear()
        self._starting.clear()
        self._busy.clear()

    def _admit(self, ready: Any) -> Any | None:
        """An actor that has loaded, or None if it died of that."""
        actor = self._starting.pop(ready)
        try:
            self._get(ready)
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
            ray.kill(work.actor)
            raise _cause(error, shard) from None
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
            raise _cause(error, None) from None


_REMOTE: Any = ray.remote(ShardActor)


def _cause(error: RayTaskError, shard: int | None) -> SisaError:
    """The user-facing error behind a failed call."""
    cause = error.cause
    where = "" if shard is None else f"shard {shard}: "
    if isinstance(cause, SisaError):
        return cause
    return ExecutionError(
        f"{where}the recipe or its training failed with {type(cause).__name__}: {cause}\n{error}"
    )
