"""The pool for shards that several workers build: owners that wait and occupy nothing, and actors for single calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from sisa_ray.core.placement import Platform, worker_slot_of
from sisa_ray.core.planner import ShardPlan
from sisa_ray.execution.actor import ActorContext, BuildJob, ShardActor
from sisa_ray.execution.events import OnEvent
from sisa_ray.execution.gang import run_gang
from sisa_ray.execution.pool import OnShardEvent, Poll, Replan, ShardPool, no_news
from sisa_ray.execution.room import Room

_STOP_S = 60.0


class GangPool(ShardPool):
    """A :class:`ShardPool` whose shards are built by gangs; the self-check and predictions are single calls."""

    def __init__(self, context: ActorContext, *, on_event: OnEvent, on_lost: Callable[[], None]) -> None:
        super().__init__(context, on_event=on_event, on_lost=on_lost)
        self._owners = _Owners(context, on_event=on_event, on_lost=on_lost)

    def num_slots(self) -> int:
        """Shards that the cluster, as it is now, can train side by side.

        Raises:
            ExecutionError: where there is no room for all workers of one; says what the nodes have.
        """
        return self._owners.num_slots()

    def prepare(self, num_shards: int, *, after: Sequence[Platform | None] = ()) -> None:
        """Nothing: workers are started with a shard, and owners in no time."""

    def build(
        self,
        plans: Sequence[ShardPlan],
        *,
        job: BuildJob,
        handle: OnShardEvent,
        replan: Replan,
        poll: Poll = no_news,
    ) -> None:
        """See :meth:`ShardPool.build`."""
        super().release()  # what single calls occupy, the workers may need
        self._owners.on_event = self.on_event
        self._owners.build(plans, job=job, handle=handle, replan=replan, poll=poll)

    def release(self) -> None:
        """End every actor and every gang, and give their resources back."""
        super().release()
        self._owners.release()


class _Owners(ShardPool):
    """Actors that start a shard's workers and pass on what they say."""

    def __init__(self, context: ActorContext, *, on_event: OnEvent, on_lost: Callable[[], None]) -> None:
        config = context.spec.config
        room = Room(worker_slot_of(config), config.resources, num_each=config.arithmetic.workers)
        super().__init__(replace(context, gang=run_gang), on_event=on_event, on_lost=on_lost, room=room)

    def _new_actor(self, after: Platform | None) -> Any:
        # Two at once: whoever builds can be told to stop.
        return _OWNER.options(num_cpus=0, num_gpus=0, max_concurrency=2).remote(self._context)

    def _kill(self, actor: Any) -> None:
        # Workers that were killed with their owner would leave their placement group behind for a while.
        with suppress(RayError, GetTimeoutError):
            ray.get(actor.stop.remote(), timeout=_STOP_S)
        super()._kill(actor)


_OWNER: Any = ray.remote(ShardActor)
