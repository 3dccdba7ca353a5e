"""Strata: people who are alike in how likely they are to be erased, and where their records may be (section VII).

They are declared before ingest, from what is known beforehand, and are part of a run's identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BeforeValidator

from sisa_ray.core.fields import Text, shown
from sisa_ray.core.partition import Region
from sisa_ray.core.section import Section

MAX_STRATA = 1000
"""A person who wants to be erased may be in any stratum, so each costs the look into another slice."""


def _to_range(value: object) -> tuple[int, int] | None:
    if value is None:
        return None
    numbers: Sequence[Any] = value if isinstance(value, (list, tuple)) else ()
    whole = [n for n in numbers if isinstance(n, int) and not isinstance(n, bool)]
    if len(numbers) != 2 or len(whole) != 2 or not 0 <= whole[0] <= whole[1]:
        raise ValueError(f"must be the first and the last, such as [0, 9], not {shown(value)}")
    return whole[0], whole[1]


Range = Annotated[tuple[int, int] | None, BeforeValidator(_to_range)]


class StratumConfig(Section):
    """One stratum: the value of its people in the stratum column, and the first and last of its shards and slices."""

    name: Text
    shards: Range = None
    """From 0; all of them unless given."""
    slices: Range = None
    """From 1; all of them unless given."""

    def region(self, *, num_shards: int, num_slices: int) -> Region:
        """Where its records of the first ingest are."""
        first_shard, last_shard = self.shards or (0, num_shards - 1)
        first_slice, last_slice = self.slices or (1, num_slices)
        return Region(
            first_shard=first_shard, end_shard=last_shard + 1, first_slice=first_slice, last_slice=last_slice
        )


def _to_list(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return tuple(value)
    raise ValueError(f"must be a list of strata such as {{name: eu, slices: [46, 50]}}, not {shown(value)}")


Strata = Annotated[tuple[StratumConfig, ...], BeforeValidator(_to_list)]


def check_strata(strata: Sequence[StratumConfig], *, num_shards: int, num_slices: int) -> None:
    """Strata must have names of their own, lie within the run, and leave no slice to nobody.

    Raises:
        ValueError: saying which does not, and what to do.
    """
    if len(strata) > MAX_STRATA:
        raise ValueError(f"must be at most {MAX_STRATA} strata, not {len(strata)}; join those that are alike")
    names = [stratum.name for stratum in strata]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"has the stratum {shown(twice[0])} twice; give each a name of its own")
    for stratum in strata:
        if stratum.shards is not None and stratum.shards[1] >= num_shards:
            raise ValueError(
                f"stratum {shown(stratum.name)} has shards {list(stratum.shards)}, but shards are 0..{num_shards - 1} "
                "(num_shards); end it there"
            )
        if stratum.slices is not None and (stratum.slices[0] < 1 or stratum.slices[1] > num_slices):
            raise ValueError(
                f"stratum {shown(stratum.name)} has slices {list(stratum.slices)}, but slices are 1..{num_slices} "
                "(num_slices); keep within them"
            )
    regions = [s.region(num_shards=num_shards, num_slices=num_slices) for s in strata]
    if empty := _nobodys(regions, num_shards, num_slices):
        raise ValueError(
            f"no stratum has slice {empty[1]} of shard {empty[0]}, so that it would stay empty; "
            "widen the shards or slices of a stratum"
        )


def _nobodys(regions: Sequence[Region], num_shards: int, num_slices: int) -> tuple[int, int] | None:
    """Some (shard, slice) that no region has."""
    if not regions:
        return None
    edges = sorted({0, num_shards, *(r.first_shard for r in regions), *(r.end_shard for r in regions)})
    for shard, end in pairwise(edges):
        here = sorted(
            (r.first_slice, r.last_slice) for r in regions if r.first_shard <= shard and end <= r.end_shard
        )
        reached = 0
        for first, last in here:
            if first > reached + 1:
                break
            reached = max(reached, last)
        if reached < num_slices:
            return shard, reached + 1
    return None
