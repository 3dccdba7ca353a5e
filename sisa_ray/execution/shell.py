"""The process of a shard actor: light until it is asked to work, so that hundreds start in no time.

Nothing here, and nothing that Ray needs to start the process, imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import ray

if TYPE_CHECKING:
    from sisa_ray.execution.actor import ShardActor


class ShardActorProcess:
    """A :class:`~sisa_ray.execution.actor.ShardActor` that is loaded by the first call.

    ``context`` is a list of one reference to its :class:`~sisa_ray.execution.actor.ActorContext`: Ray leaves what is
    nested alone, and so does not load it, and torch with it, to start the process.
    """

    def __init__(self, context: Sequence[Any]) -> None:
        self._context = context
        self._loaded: ShardActor | None = None

    @property
    def _actor(self) -> ShardActor:
        if self._loaded is None:
            module = import_module("sisa_ray.execution.actor")
            self._loaded = module.ShardActor(ray.get(self._context[0]))
        assert self._loaded is not None
        return self._loaded

    def ready(self) -> dict[str, str]:
        """See :meth:`ShardActor.ready`."""
        return self._actor.ready()

    def build(self, job: Any, plan: Any) -> Iterator[Any]:
        """See :meth:`ShardActor.build`."""
        yield from self._actor.build(job, plan)

    def self_check_chain(self, job: Any, slices: Sequence[Any]) -> Any:
        """See :meth:`ShardActor.self_check_chain`."""
        return self._actor.self_check_chain(job, slices)

    def self_check_alone(self, job: Any, slices: Sequence[Any], between: bytes) -> Any:
        """See :meth:`ShardActor.self_check_alone`."""
        return self._actor.self_check_alone(job, slices, between)

    def predict(self, job: Any, ref: Any, table: Any) -> Any:
        """See :meth:`ShardActor.predict`."""
        return self._actor.predict(job, ref, table)

    def embed(self, job: Any, table: Any) -> Any:
        """See :meth:`ShardActor.embed`."""
        return self._actor.embed(job, table)
