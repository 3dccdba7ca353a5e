"""Which checkpoints a run keeps (``keep_checkpoints``)."""

from __future__ import annotations

from collections.abc import Collection

from sisa_ray.core.fields import KeepCheckpoints


def kept_stages(
    keep: KeepCheckpoints, *, num_stages: int, num_shards: int, checkpoint_bytes: int | None
) -> set[int]:
    """Stages whose checkpoints are kept; the last one, the constituent, always is.

    With a budget in bytes, as many stages as fit are spread evenly. Until the size of a checkpoint is known
    (``checkpoint_bytes`` is None) all are kept: they are dropped as soon as it is.

    >>> sorted(kept_stages(1000, num_stages=10, num_shards=2, checkpoint_bytes=100))
    [2, 4, 6, 8, 10]
    """
    everything = set(range(1, num_stages + 1))
    if keep == "all":
        return everything
    if isinstance(keep, tuple):
        return {*keep, num_stages}
    if checkpoint_bytes is None:
        return everything
    affordable = int(keep) // max(1, checkpoint_bytes * num_shards)
    count = min(num_stages, max(1, affordable))
    return {-(-num_stages * i // count) for i in range(1, count + 1)}


def nearest_kept(kept: Collection[int], stage: int) -> int:
    """The last kept stage before ``stage``, or 0: where a rebuild of ``stage`` starts from."""
    return max((r for r in kept if r < stage), default=0)
