"""The simulated shard actors, and the pool that a coordinator builds with: the mirror of ``pool.py``."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial as bound
from typing import TYPE_CHECKING

from sisa_ray.core import planner
from sisa_ray.core import step as steps
from sisa_ray.core.errors import ExecutionError, SisaError, StorageError
from sisa_ray.core.planner import Lineage, ShardPlan, StagePlan
from sisa_ray.core.records import CheckpointLost, StageBuilt, StageRef
from tests.core.builders import digest_of
from tests.core.cluster_store import SIZE_BYTES, STEP_S, Group, Steps, Wait

if TYPE_CHECKING:
    from tests.core.cluster_coordinator import Coordinator

_MAX_DEATHS = 5


class Stopping(SisaError):
    """The coordinator is asked to stop."""


class Died(Exception):
    """The end of an actor."""


Event = StageBuilt | CheckpointLost | StorageError | Died | None
"""What an actor's stream brings; None is its end."""


@dataclass(eq=False)
class Actor:
    """A shard actor at work on a plan."""

    group: Group
    plan: ShardPlan
    events: deque[Event] = field(default_factory=deque)
    writing: set[str] = field(default_factory=set)
    is_cut: bool = False


class Pool:
    """The actors of one coordinator."""

    def __init__(self, owner: Coordinator) -> None:
        self.owner = owner
        self._world = owner.world
        self._busy: dict[int, Actor] = {}
        self._deaths: dict[int, int] = {}

    @property
    def actors(self) -> list[Actor]:
        return list(self._busy.values())

    def writing(self) -> set[str]:
        """Objects that no record names yet."""
        return {path for actor in self._busy.values() for path in actor.writing}

    def release(self) -> None:
        for actor in self._busy.values():
            self._world.kill(actor.group)
        self._busy.clear()

    def build(self, plans: Sequence[ShardPlan]) -> Steps:
        """As ``ShardPool.build`` with the callbacks of ``Session``."""
        owner, world = self.owner, self._world
        self._busy.clear()
        waiting = deque(sorted(plans, key=lambda p: -p.num_steps))
        while True:
            if (yield from self._poll()):
                waiting = deque(self._changed(waiting))
            if not (waiting or self._busy):
                return
            while waiting and len(self._busy) < world.num_slots:
                self._start(waiting.popleft())
            ready = [actor for actor in self._busy.values() if actor.events]
            if not ready:
                moment = world.moment()
                wake = steps.wakes_at(owner.spec, owner.run.state, moment)
                left_s = None if wake is None else (wake - moment.now).total_seconds()
                # A purge's back-off may be over: that is none of a build's business.
                yield Wait(owner.news, left_s if left_s is not None and left_s > 0 else None)
                continue
            again = yield from self._advance(world.rng.choice(ready))
            if again is not None:
                waiting.appendleft(again)

    def _poll(self) -> Steps:
        """Let requests join; whether slices changed."""
        owner = self.owner
        is_changed = False
        while True:
            if owner.is_stopping:
                raise Stopping
            yield from owner.run.lock.taken()
            decision = steps.join(owner.spec, owner.run.state, moment=self._world.moment())
            owner.run.lock.free()
            if decision is None:
                return is_changed
            yield from owner.execute(decision)
            if isinstance(decision, steps.RewriteSlices):
                is_changed = True
                self._world.seen["batch joined a build"] += 1

    def _changed(self, waiting: Iterable[ShardPlan]) -> Iterator[ShardPlan]:
        """As ``Session._changes`` and ``ShardPool._changed``."""
        owner = self.owner
        state = owner.run.state
        lineage = Lineage(owner.spec, state)
        new = {plan.shard: plan for plan in planner.missing_stages(owner.spec, state, lineage)}
        for plan in waiting:
            current = new.pop(plan.shard, None) or self._replan(plan.shard)
            if current is not None:
                yield current
        for shard, actor in list(self._busy.items()):
            new.pop(shard, None)
            keys = lineage.keys(shard)
            left = [s for s in actor.plan.stages if not self._is_built(shard, s)]
            stale = [s.stage for s in left if keys[s.stage - 1] != s.key]
            if stale and stale[0] == left[0].stage:
                self._world.seen["stage stopped"] += 1
                again = self._end(actor)
                if again is not None:
                    yield again
            elif stale:
                self._world.seen["plan cut"] += 1
                actor.is_cut = True
        yield from new.values()

    def _is_built(self, shard: int, stage: StagePlan) -> bool:
        ref = self.owner.run.state.stages.get((shard, stage.stage))
        return ref is not None and ref.key == stage.key

    def _replan(self, shard: int) -> ShardPlan | None:
        owner = self.owner
        state = owner.run.state
        plans = planner.missing_stages(owner.spec, state, Lineage(owner.spec, state), (shard,))
        return plans[0] if plans else None

    def _end(self, actor: Actor) -> ShardPlan | None:
        del self._busy[actor.plan.shard]
        self._world.kill(actor.group)
        return self._replan(actor.plan.shard)

    def _advance(self, actor: Actor) -> Steps:
        """Take the next event of an actor; the plan to queue again."""
        shard = actor.plan.shard
        event = actor.events.popleft()
        if event is None:
            del self._busy[shard]
            return self._replan(shard)
        if isinstance(event, Died):
            self._world.seen["actor died"] += 1
            self._deaths[shard] = self._deaths.get(shard, 0) + 1
            if self._deaths[shard] >= _MAX_DEATHS:
                raise ExecutionError(f"shard {shard}: its actor died {_MAX_DEATHS} times")
            return self._end(actor)
        if isinstance(event, StorageError):
            self._end(actor)
            raise event
        if isinstance(event, StageBuilt):
            self._deaths.pop(shard, None)
        yield from self.owner.run.commit(event)
        if isinstance(event, StageBuilt):
            actor.writing.discard(event.ref.path or "")
            if actor.is_cut:
                return self._end(actor)
        return None

    def _start(self, plan: ShardPlan) -> None:
        group = Group(f"{self.owner.attempt}/shard{plan.shard}")
        actor = Actor(group, plan)
        group.on_crash = lambda: self._emit(actor, Died())
        self._busy[plan.shard] = actor
        self._world.loop.spawn(self._train(actor), group, self._world.latency())

    def _emit(self, actor: Actor, event: Event) -> None:
        actor.events.append(event)
        self._world.loop.notify(self.owner.news, self._world.latency())

    def _train(self, actor: Actor) -> Steps:
        """What runs in the actor: each stage from the bytes before it; payload first, then the event."""
        world, owner, plan = self._world, self.owner, actor.plan
        attempt, here = owner.attempt, world.store.objects
        previous = ""
        if plan.start is not None:
            if plan.start.path not in here:
                lost = CheckpointLost(shard=plan.shard, stage=plan.start.stage, reason="digest")
                self._emit(actor, lost)
                self._emit(actor, None)
                return
            previous = plan.start.file_digest
        try:
            for stage in plan.stages:
                paths = [s.path for s in plan.slices[: stage.stage] if s.path]
                seen = frozenset().union(*(owner.run.get(path).held for path in paths))
                pace = world.pace()
                partial = f"partials/{stage.key}/{plan.shard}-{stage.stage}/{attempt}"
                has_partial = world.rng.random() < 0.2
                if has_partial:
                    yield stage.num_steps * STEP_S * pace / 2
                    actor.writing.add(partial)
                    yield from self._put(actor, partial, seen, "")
                yield stage.num_steps * STEP_S * pace / (2 if has_partial else 1)
                digest = digest_of("state", stage.key, previous, owner.platform)
                path = (
                    f"checkpoints/{plan.shard}/{stage.stage}/{attempt}/{stage.key[:8]}"
                    if stage.keep
                    else None
                )
                if path is not None:
                    actor.writing.add(path)
                    yield from self._put(actor, path, seen, digest)
                world.referee.saw(digest, seen)
                self._emit(actor, StageBuilt(ref=self._ref(plan.shard, stage, path, digest, pace)))
                if has_partial:
                    yield from world.act(
                        actor.group, f"delete own {partial}", bound(world.store.delete, partial)
                    )
                    actor.writing.discard(partial)
                previous = digest
        except StorageError as error:
            self._emit(actor, error)
        else:
            self._emit(actor, None)

    def _put(self, actor: Actor, path: str, held: frozenset[str], content: str) -> Steps:
        put, attempt = self._world.put, self.owner.attempt
        return self._world.act(actor.group, f"put {path}", lambda: put(path, held, content, attempt))

    def _ref(self, shard: int, stage: StagePlan, path: str | None, digest: str, pace: float) -> StageRef:
        return StageRef(
            shard=shard,
            stage=stage.stage,
            key=stage.key,
            path=path,
            file_digest=digest,
            size_bytes=SIZE_BYTES,
            num_steps=stage.num_steps,
            record_visits=stage.num_steps * 2,
            seconds=stage.num_steps * STEP_S * pace,
            platform={"device": self.owner.platform},
        )
