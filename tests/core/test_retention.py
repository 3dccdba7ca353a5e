from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sisa_ray.core.retention import kept_stages, nearest_kept

counts = st.integers(1, 60)


def kept(
    keep: object, *, num_stages: int = 10, num_shards: int = 2, checkpoint_bytes: int | None = 100
) -> set[int]:
    assert keep == "all" or isinstance(keep, (int, tuple))
    return kept_stages(
        keep,
        num_stages=num_stages,
        num_shards=num_shards,
        checkpoint_bytes=checkpoint_bytes,
    )


def test_all() -> None:
    assert kept("all") == set(range(1, 11))


def test_lists_keep_the_constituent_too() -> None:
    assert kept((3, 7)) == {3, 7, 10}
    assert kept(()) == {10}
    assert kept((10,)) == {10}


@given(st.integers(1, 10**6), counts, counts, st.integers(1, 5000))
def test_a_budget_in_bytes_is_kept_and_used(budget: int, num_stages: int, num_shards: int, size: int) -> None:
    stages = kept(budget, num_stages=num_stages, num_shards=num_shards, checkpoint_bytes=size)
    assert stages <= set(range(1, num_stages + 1))
    assert num_stages in stages
    cost = size * num_shards
    # The constituents are kept whatever the budget says.
    assert len(stages) * cost <= max(budget, cost)
    assert len(stages) == num_stages or (len(stages) + 1) * cost > budget


@given(st.integers(1, 10**6), counts, counts)
def test_a_budget_spreads_its_stages_evenly(budget: int, num_stages: int, num_shards: int) -> None:
    stages = sorted(kept(budget, num_stages=num_stages, num_shards=num_shards))
    gaps = [b - a for a, b in zip([0, *stages], stages, strict=False)]
    assert max(gaps) - min(gaps) <= 1


def test_a_budget_waits_until_a_size_is_known() -> None:
    assert kept(1, checkpoint_bytes=None) == set(range(1, 11))
    assert kept(1, checkpoint_bytes=0) == {10}


@given(st.sets(st.integers(1, 30)), st.integers(1, 31))
def test_nearest_kept_is_the_last_before(stages: set[int], stage: int) -> None:
    slow = 0
    for r in range(1, stage):
        if r in stages:
            slow = r
    assert nearest_kept(stages, stage) == slow
