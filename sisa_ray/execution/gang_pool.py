"""The pool for shards that several workers build: owners that wait and occupy nothing, and actors for single calls."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from sisa_ray.core.errors import ExecutionError
from sisa_ray.core.planner import ShardPlan
from sisa_ray.execution.actor import ActorContext, BuildJob, ShardActor
from sisa_ray.execution.events import OnEvent
from sisa_ray.execution.gang import gang_resources, run_gang
from sisa_ray.execution.pool import OnShardEvent, Poll, Replan, ShardPool, count_places, no_news

_STOP_S = 60.0


class GangPool(ShardPool):
    """A :class:`ShardPool` whose shards are built by gangs; the self-check and predictions are single calls."""

    def __init__(self, context: ActorContext, *, num_cpus: float, num_gpus: float, on_event: OnEvent) -> None:
        super().__init__(context, num_cpus=num_cpus, num_gpus=num_gpus, on_event=on_event)
        self._owners = _Owners(context, on_event=on_event)

    def num_slots(self) -> int:
        """Shards that the cluster, as it is now, can train side by side.

        Raises:
            ExecutionError: where there is no room for all workers of one; says what the nodes have.
        """
        return self._owners.num_slots()

    def prepare(self, num_shards: int) -> None:
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

    def __init__(self, context: ActorContext, *, on_event: OnEvent) -> None:
        super().__init__(replace(context, gang=run_gang), num_cpus=0, num_gpus=0, on_event=on_event)

    def _num_actors(self) -> int:
        spec = self._context.spec
        num_workers, each = spec.config.arithmetic.workers, gang_resources(spec)
        places, seen = count_places(each["CPU"], each.get("GPU", 0.0))
        if places < num_workers:
            raise ExecutionError(
                f"arithmetic.workers: a shard needs {num_workers} workers at once, each with "
                f"cpus_per_worker={each['CPU']:g} and gpus_per_worker={each.get('GPU', 0):g}, but the cluster has room "
                f"for {places} (nodes: {seen}); add nodes, or make a run with fewer workers"
            )
        return places // num_workers

    def _new_actor(self) -> Any:
        # Two at once: whoever builds can be told to stop.
        return _OWNER.options(num_cpus=0, num_gpus=0, max_concurrency=2).remote(self._context)

    def _kill(self, actor: Any) -> None:
        # Workers that were killed with their owner would leave their placement group behind for a while.
        with suppress(RayError, GetTimeoutError):
            ray.get(actor.stop.remote(), timeout=_STOP_S)
        super()._kill(actor)


_OWNER: Any = ray.remote(ShardActor)
