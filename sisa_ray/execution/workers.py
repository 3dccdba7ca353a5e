"""The Ray side of a command: connects to Ray when it is first needed and owns the pool of shard actors."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import ray

from sisa_ray.core.identity import Spec
from sisa_ray.execution.actor import ActorContext
from sisa_ray.execution.events import OnEvent, ignore
from sisa_ray.execution.gang_pool import GangPool
from sisa_ray.execution.pool import ShardPool


def ensure_ray() -> None:
    """Join the Ray cluster that is there (``RAY_ADDRESS`` or a running one), or start a local one."""
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


class Workers:
    """Shard actors for one command, or for several. As a context manager: leaving it releases them."""

    def __init__(self) -> None:
        self._pool: ShardPool | None = None
        self._spec: Spec | None = None

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
            context = ActorContext(spec=spec, search_path=(*spec.code_dirs, *sys.path))
            kind = GangPool if spec.config.arithmetic.workers > 1 else ShardPool
            self._pool = kind(context, on_event=on_event)
        self._pool.on_event = on_event
        return self._pool


NewWorkers = Callable[[], AbstractContextManager[Workers]]
"""How a command gets its shard actors; tests run them in their own process."""
