"""Placement: which shard and slice a record belongs to (contract clause 1).

A record's place is a keyed hash of its own subject key and stratum. It depends on nothing else in the
table, so removing a subject moves nobody, and finding one needs no index: one candidate place a stratum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sisa_ray.core.keys import derive_seed, keyed_hashes

DEFAULT_STRATUM = ""
"""Everybody's, where no strata are declared."""

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Region:
    """The shards and slices that a stratum may use: half-open ranges of shards, closed of slices (from 1)."""

    first_shard: int
    end_shard: int
    first_slice: int
    last_slice: int

    @property
    def num_shards(self) -> int:
        """Shards in it."""
        return self.end_shard - self.first_shard

    @property
    def num_slices(self) -> int:
        """Slices of each of these shards in it."""
        return self.last_slice - self.first_slice + 1


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where strata live. Declared in the spec before ingest, never computed from the table."""

    num_shards: int
    num_slices: int
    seed: int
    first_slice: int = 1
    """Appended slices come behind those that are there."""
    regions: tuple[tuple[str, Region], ...] = ()
    """Of the declared strata; without any, one default stratum spans the whole run."""

    @property
    def strata(self) -> tuple[str, ...]:
        """Names of all strata."""
        return tuple(name for name, _ in self.regions) or (DEFAULT_STRATUM,)

    def region(self, stratum: str) -> Region:
        """The region of ``stratum``.

        Raises:
            KeyError: where it is not declared.
        """
        if self.regions:
            return dict(self.regions)[stratum]
        if stratum != DEFAULT_STRATUM:
            raise KeyError(stratum)
        last_slice = self.first_slice + self.num_slices - 1
        return Region(
            first_shard=0, end_shard=self.num_shards, first_slice=self.first_slice, last_slice=last_slice
        )


def place(
    subjects: Sequence[str], layout: Layout, stratum: str = DEFAULT_STRATUM
) -> tuple[Int64Array, Int64Array]:
    """Shard (from 0) and slice (from 1) of each canonical subject key, two arrays of ``len(subjects)``.

    >>> layout = Layout(num_shards=4, num_slices=3, seed=0)
    >>> shards, slices = place(["ada", "grace", "ada"], layout)
    >>> shards[0] == shards[2] and slices[0] == slices[2]
    np.True_
    """
    region = layout.region(stratum)
    words = keyed_hashes(subjects, person="sisa place", seed=derive_seed(layout.seed, "place", stratum))
    shards = (words[:, 0] % np.uint64(region.num_shards)).astype(np.int64) + region.first_shard
    slices = (words[:, 1] % np.uint64(region.num_slices)).astype(np.int64) + region.first_slice
    return shards, slices


def candidates(subjects: Sequence[str], layout: Layout) -> Iterator[tuple[Int64Array, Int64Array]]:
    """Where each subject's records can be: :func:`place` for one stratum after the other.

    >>> sides = (("left", Region(first_shard=0, end_shard=1, first_slice=1, last_slice=1)),
    ...          ("right", Region(first_shard=1, end_shard=2, first_slice=1, last_slice=1)))
    >>> layout = Layout(num_shards=2, num_slices=1, seed=0, regions=sides)
    >>> [shards.tolist() for shards, _ in candidates(["ada"], layout)]
    [[0], [1]]
    """
    for stratum in layout.strata:
        yield place(subjects, layout, stratum)
