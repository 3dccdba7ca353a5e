"""A coordinator in simulation: a stream of requests against a layout and a batching policy.

It follows ``sisa_ray.core.batching.starts_at``: batches run one at a time, hold whatever waits when they start, and
start no later than the earliest due date less the predicted rebuild and the safety margin. Simplified: requests that
come during a batch wait for the next (a coordinator lets some join), and stages are not rounded to whole steps.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sisa_ray.core.config import UnlearningConfig
from sisa_ray.core.errors import ConfigError
from sisa_ray.planning.cost import longest_shard
from sisa_ray.planning.layouts import FloatArray, IntArray, Layout
from sisa_ray.planning.requests import Stream

_VECTORISED_FROM = 48
"""Requests of a batch from which numpy is faster than a loop."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What rebuilds run on."""

    seconds_per_visit: float
    """Of one GPU (or CPU slot), for one record trained on once."""
    num_gpus: int
    """Shards that are trained at a time."""
    overhead_s: float = 0.0
    """Seconds that a batch takes beside training: slices, publishing, purge, certificate."""

    def __post_init__(self) -> None:
        for field, value in (
            ("seconds_per_visit", self.seconds_per_visit),
            ("num_gpus", self.num_gpus),
        ):
            if not 0 < value < float("inf"):
                raise ConfigError(
                    f"{field}: must be positive and finite, not {value:g}; measure it or estimate it"
                )
        if not 0 <= self.overhead_s < float("inf"):
            raise ConfigError(f"overhead_s: must be 0 or more seconds, not {self.overhead_s:g}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What became of a stream."""

    batch_sizes: IntArray
    """(B,): requests of each batch."""
    batch_visits: FloatArray
    """(B,): record-visits of each batch."""
    gpu_seconds: float
    to_erase_s: FloatArray
    """(T,): from each request to the end of its batch."""
    num_missed: int
    """Requests that ended after their due date."""
    busy_share: float
    """Share of the time in which some batch ran."""
    num_checkpoints: int
    """Kept while nothing is being rebuilt."""

    @property
    def num_requests(self) -> int:
        """T."""
        return len(self.to_erase_s)

    @property
    def num_batches(self) -> int:
        """B."""
        return len(self.batch_sizes)

    @property
    def record_visits(self) -> float:
        """Of all batches."""
        return float(self.batch_visits.sum())

    def quantile_s(self, share: float) -> float:
        """Seconds within which that share of the requests was erased."""
        return float(np.quantile(self.to_erase_s, share))


def predicted_s(layout: Layout, machine: Machine) -> float:
    """Seconds that any batch may take at most, as ``core.planner.predicted_rebuild_s`` bounds it: all shards, whole."""
    waves = -(-layout.num_shards // machine.num_gpus)
    return waves * longest_shard(layout) * machine.seconds_per_visit + machine.overhead_s


def simulate(
    layout: Layout,
    stream: Stream,
    policy: UnlearningConfig,
    machine: Machine,
    *,
    due_s: float,
    records_per_request: int = 1,
) -> Outcome:
    """Carry out ``stream``.

    Args:
        layout: with a row for each shard (``Layout.spelled_out``).
        stream: at least one request.
        policy: as a coordinator's; ``min_subjects`` counts requests.
        machine: what it runs on.
        due_s: seconds from a request to its due date.
        records_per_request: all in one slice, as a subject's are.

    Raises:
        ConfigError: for an empty stream or a deadline that is not positive.
    """
    if not len(stream):
        raise ConfigError("stream: must have at least one request; nothing can be simulated without")
    if not due_s > 0:
        raise ConfigError(f"due_s: must be positive, not {due_s:g}; give the seconds that the law allows")
    rebuilds = _Rebuilds(layout, records_per_request)
    starts = _Starts(stream, policy, due_s - policy.safety_margin_s - predicted_s(layout, machine))
    shards, slices = stream.shard.tolist(), stream.slice.tolist()
    ends = np.empty(len(stream))
    sizes: list[int] = []
    visits: list[float] = []
    busy_s, free_s, first = 0.0, 0.0, 0
    while first < len(stream):
        start_s, end = starts.batch(first, free_s)
        if end - first < _VECTORISED_FROM:
            costs = rebuilds.of_few(shards[first:end], slices[first:end])
        else:
            costs = rebuilds.of_many(stream, first, end)
        took_s = _makespan(costs, machine.num_gpus) * machine.seconds_per_visit + machine.overhead_s
        free_s = start_s + took_s
        ends[first:end] = free_s
        visits.append(sum(costs))
        sizes.append(end - first)
        busy_s += took_s
        first = end
    to_erase_s = ends - stream.at_s
    return Outcome(
        batch_sizes=np.array(sizes),
        batch_visits=np.array(visits),
        gpu_seconds=sum(visits) * machine.seconds_per_visit,
        to_erase_s=to_erase_s,
        num_missed=int((to_erase_s > due_s).sum()),
        busy_share=min(1.0, busy_s / max(free_s, 1e-300)),
        num_checkpoints=layout.num_checkpoints,
    )


class _Starts:
    """When batches start, and how far into the stream they reach."""

    def __init__(self, stream: Stream, policy: UnlearningConfig, slack_s: float) -> None:
        self._at: list[float] = stream.at_s.tolist()
        self._policy = policy
        self._slack_s = slack_s

    def batch(self, first: int, free_s: float) -> tuple[float, int]:
        """Start of the batch whose oldest request is ``first``, and the first request that is not in it."""
        at, oldest = self._at, self._at[first]
        start = max(oldest, free_s, min(oldest + self._slack_s, self._allowed_s(first)))
        return start, bisect_right(at, start, lo=first + 1)

    def _allowed_s(self, first: int) -> float:
        policy, at = self._policy, self._at
        enough = first + policy.min_subjects - 1
        if enough >= len(at):
            return float("inf")
        match policy.batching:
            case "at_once":
                return at[enough]
            case "size":
                full = max(enough, first + policy.batch_size - 1)
                return at[full] if full < len(at) else float("inf")
            case "window":
                return max(at[enough], at[first] + policy.window_s)
            case "deadline":
                return float("inf")


class _Rebuilds:
    """Record-visits of rebuilding shards, whose records become fewer."""

    def __init__(self, layout: Layout, records_per_request: int) -> None:
        assert (layout.copies == 1).all(), "spelled_out() first"
        self._sizes = layout.sizes.copy()
        self._erased_each = float(records_per_request)
        slices = np.arange(1, layout.num_slices + 1)
        kept = np.array([0, *layout.kept])
        before = kept[np.searchsorted(kept, slices) - 1]
        tails = np.append(np.cumsum(layout.epochs[::-1])[::-1], 0.0)
        # (R, R): by the smallest slice hit, how often each slice's records are visited in the rebuild.
        self._visits_each = tails[np.maximum(slices[None, :] - 1, before[:, None])]

    def of_few(self, shards: Sequence[int], slices: Sequence[int]) -> list[float]:
        """Erase one batch, and the visits of each shard that it hit."""
        smallest: dict[int, int] = {}
        for shard, slice_ in zip(shards, slices, strict=True):
            left = self._sizes[shard, slice_ - 1] - self._erased_each
            self._sizes[shard, slice_ - 1] = max(left, 0.0)
            if slice_ < smallest.get(shard, slice_ + 1):
                smallest[shard] = slice_
        return [float(self._sizes[k] @ self._visits_each[r - 1]) for k, r in smallest.items()]

    def of_many(self, stream: Stream, first: int, end: int) -> list[float]:
        """The same, for a long batch."""
        shards, slices = stream.shard[first:end], stream.slice[first:end]
        np.subtract.at(self._sizes, (shards, slices - 1), self._erased_each)
        np.maximum(self._sizes, 0.0, out=self._sizes)
        num_slices = self._sizes.shape[1]
        smallest = np.full(len(self._sizes), num_slices + 1)
        np.minimum.at(smallest, shards, slices)
        hit = np.flatnonzero(smallest <= num_slices)
        costs: list[float] = np.einsum(
            "kr,kr->k", self._sizes[hit], self._visits_each[smallest[hit] - 1]
        ).tolist()
        return costs


def _makespan(costs: Sequence[float], num_gpus: int) -> float:
    """Visits until the last shard is done: each goes to the GPU that is free first, in the order given."""
    if len(costs) <= num_gpus:
        return max(costs)
    busy = list(costs[:num_gpus])
    heapq.heapify(busy)
    for cost in costs[num_gpus:]:
        heapq.heapreplace(busy, busy[0] + cost)
    return max(busy)
