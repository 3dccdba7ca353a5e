from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sisa_ray.core import partition
from sisa_ray.core.keys import derive_seed
from sisa_ray.core.partition import DEFAULT_STRATUM, Layout, Region, candidates, place

layouts = st.builds(
    Layout, num_shards=st.integers(1, 30), num_slices=st.integers(1, 30), seed=st.integers(0, 2**63 - 1)
)
subjects = st.lists(st.text(max_size=8), unique=True, max_size=40)


def test_golden() -> None:
    """Where everybody is: a change of these loses every subject of every existing run."""
    shards, slices = place(["ada", "grace", "17", "", "é"], Layout(num_shards=20, num_slices=10, seed=0))
    assert shards.tolist() == [2, 9, 2, 19, 7]
    assert slices.tolist() == [9, 2, 3, 10, 5]


@given(subjects, layouts)
def test_is_the_slow_obvious_hash(keys: list[str], layout: Layout) -> None:
    seed = derive_seed(layout.seed, "place", "").to_bytes(8, "little")
    shards, slices = place(keys, layout)
    for key, shard, slice_ in zip(keys, shards.tolist(), slices.tolist(), strict=True):
        digest = hashlib.blake2b(key.encode(), digest_size=16, key=seed, person=b"sisa place").digest()
        assert shard == int.from_bytes(digest[:8], "little") % layout.num_shards
        assert slice_ == 1 + int.from_bytes(digest[8:], "little") % layout.num_slices


@given(subjects, layouts, st.data())
def test_removals_and_company_move_nobody(keys: list[str], layout: Layout, data: st.DataObject) -> None:
    gone = data.draw(st.sets(st.sampled_from(keys))) if keys else set()
    rest = data.draw(st.permutations([k for k in keys if k not in gone]))
    before = dict(zip(keys, zip(*map(np.ndarray.tolist, place(keys, layout)), strict=True), strict=True))
    after = dict(zip(rest, zip(*map(np.ndarray.tolist, place(rest, layout)), strict=True), strict=True))
    assert after == {k: before[k] for k in rest}


@given(layouts)
def test_stays_in_range(layout: Layout) -> None:
    shards, slices = place([str(i) for i in range(200)], layout)
    assert shards.dtype == slices.dtype == np.int64
    assert 0 <= shards.min() <= shards.max() < layout.num_shards
    assert 1 <= slices.min() <= slices.max() <= layout.num_slices


def test_no_subjects() -> None:
    shards, slices = place([], Layout(num_shards=2, num_slices=2, seed=0))
    assert shards.shape == slices.shape == (0,)


@given(st.integers(0, 2**63 - 1))
@settings(max_examples=10, deadline=None)
def test_is_balanced(seed: int) -> None:
    """20,000 subjects over 8 × 5 slices: a chi-square far below what a biased hash would give."""
    shards, slices = place([str(i) for i in range(20_000)], Layout(num_shards=8, num_slices=5, seed=seed))
    counts = np.bincount(shards * 5 + slices - 1, minlength=40)
    expected = 20_000 / 40
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 120  # 39 degrees of freedom: exceeded once in 10^9


def test_shard_and_slice_are_independent_and_keyed_by_the_seed() -> None:
    keys = [str(i) for i in range(4000)]
    shards, slices = place(keys, Layout(num_shards=4, num_slices=4, seed=0))
    assert 0.2 < np.mean(shards == slices - 1) < 0.3
    other_shards, other_slices = place(keys, Layout(num_shards=4, num_slices=4, seed=1))
    assert 0.2 < np.mean(shards == other_shards) < 0.3
    assert 0.2 < np.mean(slices == other_slices) < 0.3


def test_strata_are_keyed_apart_and_stay_in_their_region() -> None:
    keys = [str(i) for i in range(4000)]
    everywhere = Region(first_shard=0, end_shard=4, first_slice=1, last_slice=5)
    late = Region(first_shard=2, end_shard=4, first_slice=3, last_slice=5)
    regions = (("late", late), ("east", everywhere), ("west", everywhere))
    layout = Layout(num_shards=4, num_slices=5, seed=0, regions=regions)
    shards, slices = place(keys, layout, "late")
    assert set(shards.tolist()) == {2, 3}
    assert set(slices.tolist()) == {3, 4, 5}
    # The same region under two names: placement must not be the same draw.
    east, west = place(keys, layout, "east"), place(keys, layout, "west")
    assert 0.2 < np.mean(east[0] == west[0]) < 0.3


def test_one_stratum_spans_the_run() -> None:
    layout = Layout(num_shards=4, num_slices=5, seed=0)
    assert layout.region(DEFAULT_STRATUM) == Region(first_shard=0, end_shard=4, first_slice=1, last_slice=5)
    with pytest.raises(KeyError, match="undeclared"):
        layout.region("undeclared")
    assert partition.place.__defaults__ == (DEFAULT_STRATUM,)


@given(subjects)
def test_who_is_in_any_stratum_is_among_the_candidates(keys: list[str]) -> None:
    early = Region(first_shard=0, end_shard=4, first_slice=1, last_slice=2)
    late = Region(first_shard=2, end_shard=4, first_slice=3, last_slice=5)
    layout = Layout(num_shards=4, num_slices=5, seed=7, regions=(("early", early), ("late", late)))
    assert layout.strata == ("early", "late")
    found = list(candidates(keys, layout))
    assert len(found) == 2
    for stratum, (shards, slices) in zip(layout.strata, found, strict=True):
        there = place(keys, layout, stratum)
        assert (shards == there[0]).all()
        assert (slices == there[1]).all()
    with pytest.raises(KeyError):
        layout.region(DEFAULT_STRATUM)
