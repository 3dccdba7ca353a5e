"""Placement: which shard and slice a record belongs to (contract clause 1).

A record's place is a keyed hash of its own subject key and stratum. It depends on nothing else in the
table, so removing a subject moves nobody, and finding one needs no index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sisa_ray.core.keys import derive_seed, keyed_hashes

DEFAULT_STRATUM = ""


@dataclass(frozen=True, kw_only=True)
class Region:
    """The shards and slices that a stratum may use: half-open ranges of shards, closed of slices (from 1)."""

    first_shard: int
    end_shard: int
    first_slice: int
    last_slice: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where strata live. Declared in the spec before ingest, never computed from the table."""

    num_shards: int
    num_slices: int
    seed: int
    first_slice: int = 1
    """Appended slices come behind those that are there."""

    def region(self, stratum: str) -> Region:
        """The region of ``stratum``; the one default stratum spans the whole run."""
        if stratum != DEFAULT_STRATUM:
            raise KeyError(stratum)
        last_slice = self.first_slice + self.num_slices - 1
        return Region(
            first_shard=0, end_shard=self.num_shards, first_slice=self.first_slice, last_slice=last_slice
        )


def place(
    subjects: Sequence[str], layout: Layout, stratum: str = DEFAULT_STRATUM
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Shard (from 0) and slice (from 1) of each canonical subject key, two arrays of ``len(subjects)``.

    >>> layout = Layout(num_shards=4, num_slices=3, seed=0)
    >>> shards, slices = place(["ada", "grace", "ada"], layout)
    >>> shards[0] == shards[2] and slices[0] == slices[2]
    np.True_
    """
    region = layout.region(stratum)
    words = keyed_hashes(subjects, person="sisa place", seed=derive_seed(layout.seed, "place", stratum))
    num_shards = np.uint64(region.end_shard - region.first_shard)
    num_slices = np.uint64(region.last_slice - region.first_slice + 1)
    shards = (words[:, 0] % num_shards).astype(np.int64) + region.first_shard
    slices = (words[:, 1] % num_slices).astype(np.int64) + region.first_slice
    return shards, slices
