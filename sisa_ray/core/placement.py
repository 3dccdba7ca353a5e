"""Where shards can train: what a slot needs, which nodes can hold one, and who builds which shard."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, inf
from typing import Literal

from sisa_ray.core.config import SisaConfig

ACCELERATOR_LABEL = "ray.io/accelerator-type"
"""The label that Ray gives every node with accelerators."""

_TINY = 1e-9
"""Ray counts in ten-thousandths: a tenth fits ten times."""

_SELECTOR = re.compile(r"(!?)(?:in\((?P<several>.*)\)|(?P<one>.*))")

Platform = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of the cluster: all that it has, whoever occupies it now."""

    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        has = f"{self.resources.get('CPU', 0):g} CPUs and {self.resources.get('GPU', 0):g} GPUs"
        kind = self.labels.get(ACCELERATOR_LABEL)
        return has + (f" ({kind})" if kind else "")


@dataclass(frozen=True, kw_only=True)
class Slot:
    """What a shard occupies while it trains, and the nodes on which it may."""

    num_cpus: float
    num_gpus: float
    accelerator_type: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    """Label -> the value that a node must have, as in Ray's label selectors."""
    holder: str = "shard"
    """What it is for: a shard, or a worker of one."""

    def on(self, node: Node) -> int:
        """How many of these a node can hold side by side.

        >>> half = Slot(num_cpus=1, num_gpus=0.5)
        >>> half.on(Node(resources={"CPU": 16, "GPU": 2}))
        4
        """
        if self.accelerator_type and f"accelerator_type:{self.accelerator_type}" not in node.resources:
            return 0
        if not all(_selects(wanted, node.labels.get(name)) for name, wanted in self.labels.items()):
            return 0
        by_cpu = node.resources.get("CPU", 0.0) / self.num_cpus if self.num_cpus else inf
        by_gpu = _by_gpu(node.resources.get("GPU", 0.0), self.num_gpus)
        return floor(min(by_cpu, by_gpu) + _TINY)

    def __str__(self) -> str:
        needs = [f"cpus_per_{self.holder}={self.num_cpus:g}", f"gpus_per_{self.holder}={self.num_gpus:g}"]
        if self.accelerator_type:
            needs.append(f"accelerator_type={self.accelerator_type}")
        if self.labels:
            needs.append("labels={" + ", ".join(f"{k}: {v}" for k, v in self.labels.items()) + "}")
        return " and ".join([", ".join(needs[:-1]), needs[-1]])


def _by_gpu(gpus: float, each: float) -> float:
    if not each:
        return inf
    # A fraction is of one GPU: what is left of two makes no third.
    return floor(gpus + _TINY) * floor(1 / each + _TINY) if each < 1 else gpus / each


def _selects(wanted: str, value: str | None) -> bool:
    """Whether a label selector (``x``, ``!x``, ``in(x, y)``, ``!in(x, y)``) takes a node's value (None: no label)."""
    match = _SELECTOR.fullmatch(wanted)
    assert match
    several = match["several"]
    values = [match["one"]] if several is None else [v.strip() for v in several.split(",")]
    return (value in values) != bool(match[1])


def slot_of(config: SisaConfig) -> Slot:
    """What a shard of a run occupies, or a single call about one; its device is resolved."""
    resources = config.resources
    return _slot(config, resources.cpus_per_shard, resources.gpus_per_shard, "shard")


def worker_slot_of(config: SisaConfig) -> Slot:
    """What each worker of a shard occupies where a shard has several."""
    resources = config.resources
    return _slot(config, resources.cpus_per_worker, resources.gpus_per_worker, "worker")


def _slot(config: SisaConfig, num_cpus: float, num_gpus: float | Literal["auto"], holder: str) -> Slot:
    if num_gpus == "auto":
        num_gpus = 1.0 if config.arithmetic.device == "cuda" else 0.0
    return Slot(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        accelerator_type=config.resources.accelerator_type,
        labels=dict(config.resources.labels),
        holder=holder,
    )


def num_slots(slot: Slot, nodes: Iterable[Node], *, num_each: int = 1) -> int:
    """Shards of ``num_each`` slots that these nodes can train side by side, were they all free."""
    return sum(slot.on(node) for node in nodes) // num_each


def lack_of(slot: Slot, nodes: Sequence[Node], *, num_each: int = 1) -> str:
    """What to tell a user whose shards find no room on these nodes."""
    seen = "; ".join(dict.fromkeys(map(str, nodes))) or "none"
    if num_each == 1:
        lack = f"resources: a shard needs {slot}, but no node of the cluster has them (nodes: {seen}); ask for less"
    else:
        lack = (
            f"arithmetic.workers: a shard needs {num_each} workers at once, each with {slot}, but the cluster has room "
            f"for {num_slots(slot, nodes)} (nodes: {seen}); ask for less, or make a run with fewer workers"
        )
    return (
        f"{lack}, add such a node, or, where an autoscaler is to bring one, set resources.max_slots and "
        "resources.wait_for_nodes_s"
    )


def kind_for(platform: Platform, slot: Slot, nodes: Iterable[Node]) -> str | None:
    """The accelerator type of a node that can hold ``slot`` and is of the device that ``platform`` names, if any.

    >>> node = Node(resources={"CPU": 8, "GPU": 1}, labels={ACCELERATOR_LABEL: "A100"})
    >>> kind_for({"device": "NVIDIA A100-SXM4-40GB"}, Slot(num_cpus=1, num_gpus=1), [node])
    'A100'
    """
    words = _words(platform.get("device", ""))
    for node in nodes:
        kind = node.labels.get(ACCELERATOR_LABEL)
        if kind and set(_words(kind)) <= set(words) and slot.on(node):
            return kind
    return None


def _words(name: str) -> list[str]:
    return re.split(r"[^A-Z0-9]+", name.upper())


def next_match(
    waiting: Sequence[Platform | None], idle: Sequence[Platform], elsewhere: Iterable[Platform]
) -> tuple[int, int] | None:
    """Which waiting chain is built next by which idle actor: their numbers, or None for neither.

    A chain of mixed platforms is exact in distribution only (contract clause 12). So a chain that goes on from a
    checkpoint is kept for an actor of that checkpoint's platform as long as there is one, idle or at work.

    Args:
        waiting: the platform of the checkpoint from which each goes on; None for one that starts from nothing.
        idle: of the actors that are free.
        elsewhere: of those that are at work or starting.

    >>> old, new = {"torch": "2.12"}, {"torch": "2.13"}
    >>> next_match([None, old], [old], [])
    (1, 0)
    >>> next_match([old], [new], [old]), next_match([old], [new], [new])
    (None, (0, 0))
    """
    for number, platform in enumerate(waiting):
        if platform is not None and platform in idle:
            return number, idle.index(platform)
    there = list(elsewhere)
    for number, platform in enumerate(waiting):
        if idle and (platform is None or platform not in there):
            return number, 0
    return None
