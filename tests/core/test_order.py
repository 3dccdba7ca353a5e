from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sisa_ray.core.keys import UInt64Array
from sisa_ray.core.order import (
    bucket_order,
    buckets_of,
    epoch_order,
    epoch_seed,
    record_hashes,
    within_bucket_order,
)

ids = st.lists(st.text(max_size=6), unique=True, max_size=60)
seeds = st.integers(0, 2**63 - 1)
bucket_counts = st.integers(1, 9)


def hashes_of(keys: list[str]) -> UInt64Array:
    return record_hashes(keys, seed=7)


def test_golden() -> None:
    """The order of every epoch of every run: a change of these changes all bits."""
    golden = [9754384950153407408, 9658400414011019490, 15655966849422321589]
    assert record_hashes(["ada", "grace", "17"], seed=0).tolist() == golden
    assert epoch_seed(seed=1, shard=2, stage=3, epoch=4) == 2533157748873919413
    hashes = hashes_of([str(i) for i in range(10)])
    assert epoch_order(hashes, 1, 99).tolist() == [9, 0, 7, 1, 4, 3, 8, 2, 5, 6]
    assert epoch_order(hashes, 4, 99).tolist() == [1, 5, 4, 3, 8, 9, 2, 6, 0, 7]
    assert bucket_order(4, 99).tolist() == [3, 2, 0, 1]
    assert buckets_of(hashes, 4).tolist() == [1, 3, 0, 2, 2, 3, 0, 1, 2, 0]


@given(ids, seeds, bucket_counts)
def test_visits_every_record_once(keys: list[str], seed: int, num_buckets: int) -> None:
    order = epoch_order(hashes_of(keys), num_buckets, seed)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(len(keys)))


@given(ids, seeds, bucket_counts, st.data())
def test_removals_keep_the_order_of_all_others(
    keys: list[str], seed: int, num_buckets: int, data: st.DataObject
) -> None:
    gone = data.draw(st.sets(st.sampled_from(keys))) if keys else set()
    rest = [k for k in keys if k not in gone]
    before = [keys[i] for i in epoch_order(hashes_of(keys), num_buckets, seed)]
    after = [rest[i] for i in epoch_order(hashes_of(rest), num_buckets, seed)]
    assert after == [k for k in before if k not in gone]


@given(ids, seeds, bucket_counts, st.data())
def test_order_of_the_input_does_not_show(
    keys: list[str], seed: int, num_buckets: int, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(keys))
    one = [keys[i] for i in epoch_order(hashes_of(keys), num_buckets, seed)]
    two = [shuffled[i] for i in epoch_order(hashes_of(shuffled), num_buckets, seed)]
    assert one == two


@given(ids, seeds, bucket_counts)
def test_streaming_bucket_by_bucket_is_the_same_order(keys: list[str], seed: int, num_buckets: int) -> None:
    hashes = hashes_of(keys)
    buckets = buckets_of(hashes, num_buckets)
    streamed: list[int] = []
    for bucket in bucket_order(num_buckets, seed):
        positions = np.flatnonzero(buckets == bucket)
        streamed += positions[within_bucket_order(hashes[positions], seed)].tolist()
    assert streamed == epoch_order(hashes, num_buckets, seed).tolist()


@given(st.lists(st.integers(0, 2), max_size=30), seeds, bucket_counts)
def test_equal_hashes_keep_the_order_of_the_input(values: list[int], seed: int, num_buckets: int) -> None:
    """So that the two loaders agree, and removals disturb nobody, even where hashes collide."""
    hashes = np.array(values, dtype=np.uint64)
    order = epoch_order(hashes, num_buckets, seed).tolist()
    for value in set(values):
        same = [i for i in order if values[i] == value]
        assert same == sorted(same)


@given(ids, bucket_counts)
def test_buckets_belong_to_records_not_to_epochs(keys: list[str], num_buckets: int) -> None:
    buckets = buckets_of(hashes_of(keys), num_buckets).tolist()
    assert buckets == [int(record_hashes([k], seed=7)[0]) % num_buckets for k in keys]


@given(seeds, st.integers(1, 40))
def test_bucket_order_is_a_permutation(seed: int, num_buckets: int) -> None:
    assert sorted(bucket_order(num_buckets, seed).tolist()) == list(range(num_buckets))


def test_epochs_stages_shards_and_seeds_differ() -> None:
    hashes = hashes_of([str(i) for i in range(100)])
    paths = [(s, k, r, e) for s in (0, 1) for k in (0, 1) for r in (1, 2) for e in (0, 1)]
    orders = {
        tuple(epoch_order(hashes, 3, epoch_seed(seed=s, shard=k, stage=r, epoch=e)).tolist())
        for s, k, r, e in paths
    }
    assert len(orders) == len(paths)


def test_every_place_is_equally_likely() -> None:
    """Over 2,000 epochs, one record's place among ten is uniform (chi-square, 9 degrees of freedom)."""
    hashes = hashes_of([str(i) for i in range(10)])
    for num_buckets in (1, 4):
        places = np.zeros((10, 10))
        for epoch in range(2000):
            order = epoch_order(hashes, num_buckets, epoch_seed(seed=0, shard=0, stage=1, epoch=epoch))
            places[order, np.arange(10)] += 1
        if num_buckets == 1:
            assert (((places - 200) ** 2 / 200).sum(axis=1) < 50).all()
        assert (places.sum(axis=1) == 2000).all()
        # Each record leads and trails at times, whatever its bucket.
        assert (places[:, 0] > 50).all()
        assert (places[:, -1] > 50).all()


def test_no_records() -> None:
    assert epoch_order(hashes_of([]), 1, 5).shape == (0,)
    assert epoch_order(hashes_of([]), 3, 5).shape == (0,)
