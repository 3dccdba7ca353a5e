"""The room that the cluster has for shards: how many may be asked for, and when there is no hope."""

from __future__ import annotations

import time

import ray

from sisa_ray.core.config import ResourcesConfig
from sisa_ray.core.errors import ClusterError
from sisa_ray.core.placement import Node, Slot, lack_of, num_slots
from sisa_ray.execution.events import Notice, OnEvent

_LOOK_S = 2.0
"""Seconds for which the nodes are taken to be as they were: looking asks the head node."""
_BACK_S = 120.0
"""Seconds in which a node that died may be back."""


def cluster_nodes() -> tuple[Node, ...]:
    """The nodes of the cluster that are alive."""
    return tuple(
        Node(resources=node["Resources"], labels=node.get("Labels") or {})
        for node in ray.nodes()
        if node["Alive"]
    )


class Room:
    """How many shards may be under way on this cluster, as its nodes come and go; each has ``num_each`` slots."""

    def __init__(self, slot: Slot, resources: ResourcesConfig, *, num_each: int = 1) -> None:
        self.slot = slot
        self._num_each = num_each
        self._resources = resources
        self._nodes: tuple[Node, ...] = ()
        self._looked_at = float("-inf")
        self._had_room = False
        self._waiting_since: float | None = None

    def nodes(self) -> tuple[Node, ...]:
        """The nodes, as they were a moment ago."""
        if time.monotonic() - self._looked_at > _LOOK_S:
            self._nodes, self._looked_at = cluster_nodes(), time.monotonic()
        return self._nodes

    def num_slots(self) -> int:
        """Shards that may be under way at once.

        Raises:
            ClusterError: where no node could ever hold one, and none is to come; says what the nodes have.
        """
        fits = self._fits()
        self._had_room = self._had_room or fits > 0
        if fits == 0 and not self._patience_s:
            raise ClusterError(self._lack())
        limit = self._resources.max_slots
        # Whoever is asked for and fits nowhere is what an autoscaler sees.
        return max(1, fits) if limit == "auto" else limit

    def wait_for_nodes(self, on_event: OnEvent) -> None:
        """To be called again and again while shards wait: gives up once no node has come for too long.

        Raises:
            ClusterError: what the nodes have, then.
        """
        if self._fits():
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = time.monotonic()
            on_event(
                Notice(text=f"no node can hold a shard; waiting for one, up to {self._patience_s:,.0f} s")
            )
        elif time.monotonic() - self._waiting_since > self._patience_s:
            self._waiting_since = None
            raise ClusterError(self._lack())

    def leave(self) -> None:
        """Nobody waits any more."""
        self._waiting_since = None

    def _fits(self) -> int:
        return num_slots(self.slot, self.nodes(), num_each=self._num_each)

    def _lack(self) -> str:
        return lack_of(self.slot, self.nodes(), num_each=self._num_each)

    @property
    def _patience_s(self) -> float:
        return max(self._resources.wait_for_nodes_s, _BACK_S if self._had_room else 0.0)
