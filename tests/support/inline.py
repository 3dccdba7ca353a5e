"""Shard actors in the test's own process: the real actor class without Ray around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from sisa_ray.core.identity import Spec
from sisa_ray.core.planner import ShardPlan
from sisa_ray.execution.actor import ActorContext, BuildJob, ShardActor
from sisa_ray.execution.events import OnEvent, ShardEvent
from sisa_ray.execution.workers import Workers


class InlinePool:
    """What :class:`sisa_ray.execution.pool.ShardPool` promises, one shard after the other."""

    def __init__(self, spec: Spec) -> None:
        self._context = ActorContext(spec=spec, search_path=())

    def num_slots(self) -> int:
        return 1

    def start(self, num_actors: int) -> None:
        pass

    def take(self, *, fresh: bool = False) -> ShardActor:
        return ShardActor(self._context)

    def give(self, actor: ShardActor) -> None:
        pass

    def call(self, actor: ShardActor, method: str, *args: object) -> Any:
        return getattr(actor, method)(*args)

    def outlive(self, work: Callable[[], Any]) -> Any:
        return work()

    def share(self, value: object) -> object:
        return value

    def map(self, method: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        actor = ShardActor(self._context)
        return [getattr(actor, method)(*call) for call in calls]

    def build(
        self,
        plans: Sequence[ShardPlan],
        *,
        job: BuildJob,
        handle: Callable[[ShardEvent], None],
        replan: Callable[[int], ShardPlan | None],
        poll: Callable[[Mapping[int, ShardPlan]], object] = lambda _: None,
    ) -> None:
        for first in plans:
            poll({})
            plan: ShardPlan | None = first
            while plan is not None:
                for event in ShardActor(self._context).build(job, plan):
                    handle(event)
                plan = replan(plan.shard)


class InlineWorkers(Workers):
    """Workers that never touch Ray."""

    def require_reach(self, url: str) -> None:
        pass

    def pool(self, spec: Spec, on_event: OnEvent) -> Any:
        return cast(Any, InlinePool(spec))
