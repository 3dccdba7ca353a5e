"""The Ray side of a command: connects to Ray when it is first needed and owns the pool of shard actors."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from sisa_ray.core.identity import Spec
from sisa_ray.execution.actor import ActorContext
from sisa_ray.execution.cluster import Reach, ensure_ray, has_had_nodes
from sisa_ray.execution.events import OnEvent, ignore
from sisa_ray.execution.pool import ShardPool


class Workers:
    """Shard actors for one command, or for several. As a context manager: leaving it releases them."""

    def __init__(self) -> None:
        self._pool: ShardPool | None = None
        self._spec: Spec | None = None
        self._reach = Reach()
        self.lost_at: float | None = None
        """When shard actors were lost that may still write, on the monotonic clock; None where there are none."""

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def release(self) -> None:
        """End the actors; the next call of :meth:`pool` starts others."""
        if self._pool is not None:
            self._pool.release()
            self._pool = None

    @contextmanager
    def kept(self) -> Iterator[Workers]:
        """These workers for one command of several: the actors stay, unless the command fails."""
        try:
            yield self
        except BaseException:
            self.release()
            raise

    def join_ray(self) -> None:
        """Have Ray, for work that needs no shard actors."""
        ensure_ray()

    def note_lost(self) -> None:
        """Actors may be left that nobody can reach, and write."""
        self.lost_at = time.monotonic()

    def note_ended(self) -> None:
        """Whatever was lost has ended."""
        self.lost_at = None

    def may_lose_actors(self) -> bool:
        """Whether actors can outlive the process that they work for: on other nodes, that is."""
        return has_had_nodes()

    def require_reach(self, url: str) -> None:
        """See :meth:`~sisa_ray.execution.cluster.Reach.require`; of no concern before Ray is joined."""
        self._reach.require(url)

    def require_slots(self, spec: Spec, url: str) -> None:
        """Join Ray, and refuse at once what its cluster cannot train.

        Raises:
            ConfigError: where the storage at ``url`` is not the same for every node.
            ClusterError: where no node could ever hold a shard.
        """
        self.num_slots(spec)
        self.require_reach(url)

    def num_slots(self, spec: Spec) -> int:
        """Shards of ``spec`` that the cluster can train side by side."""
        return self.pool(spec, ignore).num_slots()

    def pool(self, spec: Spec, on_event: OnEvent) -> ShardPool:
        """The pool for runs of ``spec``; made, and Ray joined, at the first call and with every other spec."""
        if self._pool is not None and self._spec != spec:
            self.release()
        if self._pool is None:
            ensure_ray()
            self._spec = spec
            config = spec.config
            gpus = config.resources.gpus_per_shard
            if gpus == "auto":
                gpus = 1.0 if config.arithmetic.device == "cuda" else 0.0
            context = ActorContext(spec=spec, search_path=(*spec.code_dirs, *sys.path))
            self._pool = ShardPool(
                context,
                num_cpus=config.resources.cpus_per_shard,
                num_gpus=gpus,
                on_event=on_event,
                on_lost=self.note_lost,
            )
        self._pool.on_event = on_event
        return self._pool


NewWorkers = Callable[[], AbstractContextManager[Workers]]
"""How a command gets its shard actors; tests run them in their own process."""
