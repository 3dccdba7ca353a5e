from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sisa_ray.core.errors import ConfigError
from sisa_ray.core.schedule import stage_epochs
from sisa_ray.planning import cost
from sisa_ray.planning.checkpoints import best_kept, best_kept_of_every_number
from sisa_ray.planning.layouts import Layout, by_records, even_layout


@st.composite
def sliced(draw: st.DrawFn) -> Layout:
    """1 to 2 shards of 1 to 7 slices of unequal sizes."""
    num_slices = draw(st.integers(1, 7))
    row = st.lists(st.integers(1, 50), min_size=num_slices, max_size=num_slices)
    return by_records(draw(st.lists(row, min_size=1, max_size=2)), [float(e) for e in draw(row)])


@given(sliced(), st.integers(1, 9))
def test_no_choice_of_as_many_is_better(layout: Layout, num_requests: int) -> None:
    last = layout.num_slices
    num_requests = min(num_requests, int(layout.num_records))
    found = best_kept_of_every_number(layout, last, num_requests)
    assert [len(kept) for kept in found] == list(range(1, last + 1))
    for kept in found:
        best = min(
            cost.batch(layout.keeping(chosen), num_requests)
            for chosen in combinations(range(1, last), len(kept) - 1)
        )
        assert cost.batch(layout.keeping(kept), num_requests) == pytest.approx(best)


def test_is_better_than_even_spacing() -> None:
    """Ten of 50 harmonic stages, which are longest at the beginning."""
    layout = even_layout(50_000, 20, stage_epochs("harmonic", 50, 15))
    chosen = cost.one_request(layout.keeping(best_kept(layout, 10, 1)))
    evenly = cost.one_request(layout.keeping(range(5, 51, 5)))
    assert chosen < 0.93 * evenly


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="kept: must be at least 1 checkpoint a shard, not 0"):
        best_kept(even_layout(100, 2, [1.0]), 0, 1)
    with pytest.raises(ConfigError, match="num_slices: must be at most 2000"):
        best_kept(even_layout(10_000, 2, [1.0] * 2001), 2, 1)
