"""The order of records within an epoch (contract clause 2).

Every record has a hash of its own id; an epoch's order sorts hash buckets, and records within a bucket, by
that hash mixed with the epoch's seed. Removing a record leaves the relative order of all others alone, and
data larger than memory can stream one bucket at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sisa_ray.core.keys import UInt64Array, derive_seed, keyed_hashes, mix64

Int64Array = npt.NDArray[np.int64]


def record_hashes(record_ids: Sequence[str], *, seed: int) -> UInt64Array:
    """A 64-bit hash of each canonical record id, shape ``(len(record_ids),)``."""
    return keyed_hashes(record_ids, person="sisa order", seed=seed)[:, 0]


def buckets_of(hashes: UInt64Array, num_buckets: int) -> Int64Array:
    """The order bucket of each record, from the low part of its hash: ``mix64`` of the whole stays free."""
    return (hashes % np.uint64(num_buckets)).astype(np.int64)


def epoch_seed(*, seed: int, shard: int, stage: int, epoch: int) -> int:
    """The seed that orders one epoch of one stage."""
    return derive_seed(seed, "epoch", shard, stage, epoch)


def bucket_order(num_buckets: int, epoch_seed: int) -> Int64Array:
    """Buckets in the order in which an epoch visits them, shape ``(num_buckets,)``."""
    keys = mix64(epoch_seed, ~np.arange(num_buckets, dtype=np.uint64))
    return np.argsort(keys, kind="stable").astype(np.int64)


def within_bucket_order(hashes: UInt64Array, epoch_seed: int) -> Int64Array:
    """Positions of one bucket's records in the order in which an epoch visits them.

    Ties (equal hashes) keep the order of the input, which is slice by slice and by record id.
    """
    return np.argsort(mix64(epoch_seed, hashes), kind="stable").astype(np.int64)


def epoch_order(hashes: UInt64Array, num_buckets: int, epoch_seed: int) -> Int64Array:
    """Positions of all records in the order in which an epoch visits them, shape ``(len(hashes),)``."""
    if num_buckets == 1:
        return within_bucket_order(hashes, epoch_seed)
    rank = np.empty(num_buckets, dtype=np.int64)
    rank[bucket_order(num_buckets, epoch_seed)] = np.arange(num_buckets)
    keys = mix64(epoch_seed, hashes)
    return np.lexsort((keys, rank[buckets_of(hashes, num_buckets)])).astype(np.int64)
