"""The slow, obvious way: rebuild every shard of a small layout for every possible set or order of requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations, permutations

from hypothesis import strategies as st

from sisa_ray.planning.layouts import Layout, by_records

Record = tuple[int, int]
"""Shard (from 0) and slice (from 1)."""


def records_of(layout: Layout) -> list[Record]:
    return [
        (k, r)
        for k, row in enumerate(layout.sizes.tolist())
        for r, n in enumerate(row, 1)
        for _ in range(int(n))
    ]


def rebuild(left: Sequence[Record], gone: Iterable[Record], layout: Layout) -> float:
    """Visits of one batch: ``left`` are the records that stay, ``gone`` those that this batch erases."""
    visits = 0.0
    gone = list(gone)
    for shard in {k for k, _ in gone}:
        first = min(r for k, r in gone if k == shard)
        restart = max((r for r in layout.kept if r < first), default=0)
        for stage in range(restart + 1, layout.num_slices + 1):
            visits += layout.epochs[stage - 1] * sum(k == shard and r <= stage for k, r in left)
    return visits


def mean_batch(layout: Layout, num_requests: int) -> float:
    records = records_of(layout)
    costs = []
    for chosen in combinations(range(len(records)), num_requests):
        left = [x for i, x in enumerate(records) if i not in chosen]
        costs.append(rebuild(left, [records[i] for i in chosen], layout))
    return sum(costs) / len(costs)


def mean_sequential(layout: Layout, num_requests: int) -> float:
    records = records_of(layout)
    costs = []
    for order in permutations(range(len(records)), num_requests):
        cost = 0.0
        for done, i in enumerate(order, start=1):
            left = [x for j, x in enumerate(records) if j not in order[:done]]
            cost += rebuild(left, [records[i]], layout)
        costs.append(cost)
    return sum(costs) / len(costs)


@st.composite
def small_layouts(draw: st.DrawFn) -> Layout:
    """Up to 3 shards × 3 slices of two to six records, some slices empty, some checkpoints not kept."""
    num_shards, num_slices = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    sizes = [[0] * num_slices for _ in range(num_shards)]
    for _ in range(draw(st.integers(2, 6))):
        sizes[draw(st.integers(0, num_shards - 1))][draw(st.integers(0, num_slices - 1))] += 1
    epochs = draw(st.lists(st.integers(0, 5), min_size=num_slices, max_size=num_slices))
    kept = draw(st.sets(st.integers(1, num_slices)))
    return by_records(sizes, [float(e) for e in epochs], kept)
