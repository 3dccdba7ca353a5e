"""From priors to where strata should be: candidate layouts, their costs, and what a wrong prior costs (section VII).

A stratum's records are spread over its region by a keyed hash, so a layout is one region a stratum. Regions are
declared before ingest, from what is known beforehand, and never computed from the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Literal

import numpy as np

from sisa_ray.core.errors import ConfigError
from sisa_ray.core.fields import shown
from sisa_ray.core.partition import Region
from sisa_ray.core.strata import MAX_STRATA
from sisa_ray.planning import cost
from sisa_ray.planning.layouts import FloatArray, Layout
from sisa_ray.planning.population import Stratum

Regions = Mapping[str, Region]
Way = Literal["uniform", "late_slices", "shards_by_requests", "shards_by_records"]
WAYS: tuple[Way, ...] = ("uniform", "late_slices", "shards_by_requests", "shards_by_records")
"""Nothing known; likely strata in late slices of every shard; in shards of their own, as many as they have requests
(algorithm 1), or records."""


@dataclass(frozen=True, kw_only=True)
class StrataDesign:
    """One way to lay strata out, and what it is expected to cost."""

    way: Way
    regions: Regions
    visits: float
    """Record-visits of a batch."""
    gain: float
    """How many times less than without strata."""
    requests_per_shard: float
    """Expected requests of the shard that has most, E(χ): when each record goes with its prior probability."""
    strata_per_model: float
    """Strata that a constituent learns from, in the mean."""


@dataclass(frozen=True, kw_only=True)
class StrataPlan:
    """The cheapest way, the others, and what is lost where the prior is wrong."""

    recommended: StrataDesign
    alternatives: tuple[StrataDesign, ...]
    if_wrong: dict[str, float]
    """The gain of the recommended way where requests really are otherwise; below 1 is a loss."""


def plan_strata(
    strata: Sequence[Stratum],
    num_shards: int,
    epochs: Sequence[Fraction | float],
    *,
    batch_size: int = 1,
    max_requests_per_shard: float | None = None,
) -> StrataPlan:
    """Recommend regions for ``strata``.

    Args:
        strata: with expected sizes and prior probabilities.
        num_shards: S.
        epochs: e_r of each stage (``stage_epochs``).
        batch_size: requests K that are carried out together.
        max_requests_per_shard: algorithm 1's bound C on the expected requests of a shard.

    Source: section VII. Likely records in late slices are what saves: a shard of likely records alone (algorithm 1) is
    small, but is hit more often, which cancels out.

    Raises:
        ConfigError: for priors that describe no requests, or a bound that no way keeps.
    """
    _check(strata, num_shards, len(epochs), batch_size)
    designs = [_design(way, strata, num_shards, epochs, batch_size) for way in WAYS]
    allowed = designs
    if max_requests_per_shard is not None:
        allowed = [d for d in designs if d.requests_per_shard <= max_requests_per_shard]
        if not allowed:
            least = min(d.requests_per_shard for d in designs)
            raise ConfigError(
                f"max_requests_per_shard: must be at least {least:.4g} with num_shards {num_shards}, not "
                f"{max_requests_per_shard:g}; raise it, or num_shards"
            )
    best = min(allowed, key=lambda d: d.visits)
    wrong = {
        name: _gain(best.regions, truth(strata), num_shards, epochs, batch_size)
        for name, truth in TRUTHS.items()
    }
    return StrataPlan(recommended=best, alternatives=tuple(designs), if_wrong=wrong)


def regions_of(way: Way, strata: Sequence[Stratum], *, num_shards: int, num_slices: int) -> dict[str, Region]:
    """Where each stratum is, the least likely first.

    >>> home = Stratum(name="home", num_records=900, probability=0.01)
    >>> abroad = Stratum(name="abroad", num_records=100, probability=0.1)
    >>> regions = regions_of("late_slices", [home, abroad], num_shards=4, num_slices=10)
    >>> [(name, r.first_slice, r.last_slice) for name, r in regions.items()]
    [('home', 1, 9), ('abroad', 10, 10)]
    """
    rising = sorted(strata, key=lambda s: (s.probability, s.name))
    records = np.array([s.num_records for s in rising])
    requests = records * np.array([s.probability for s in rising])
    shards = slices = [(0, 0)] * len(rising)
    match way:
        case "uniform":
            shards, slices = [(0, num_shards)] * len(rising), [(0, num_slices)] * len(rising)
        case "late_slices":
            shards, slices = [(0, num_shards)] * len(rising), _ranges(records, num_slices)
        case "shards_by_requests":
            shards, slices = _ranges(requests, num_shards), [(0, num_slices)] * len(rising)
        case "shards_by_records":
            shards, slices = _ranges(records, num_shards), [(0, num_slices)] * len(rising)
    return {
        s.name: Region(first_shard=k[0], end_shard=k[1], first_slice=r[0] + 1, last_slice=r[1])
        for s, k, r in zip(rising, shards, slices, strict=True)
    }


def expected_layout(
    strata: Sequence[Stratum],
    regions: Regions,
    num_shards: int,
    epochs: Sequence[Fraction | float],
) -> Layout:
    """The layout to be expected where each stratum is spread over its region; all checkpoints are kept.

    Raises:
        ConfigError: where nobody asks.
    """
    num_slices = len(epochs)
    edges = sorted({0, num_shards, *(e for r in regions.values() for e in (r.first_shard, r.end_shard))})
    sizes = np.zeros((len(edges) - 1, num_slices))
    requests = np.zeros_like(sizes)
    for stratum in strata:
        region = regions[stratum.name]
        each = stratum.num_records / (region.num_shards * region.num_slices)
        kinds = slice(edges.index(region.first_shard), edges.index(region.end_shard))
        sizes[kinds, region.first_slice - 1 : region.last_slice] += each
        requests[kinds, region.first_slice - 1 : region.last_slice] += each * stratum.probability
    copies = np.diff(edges)
    total = float(copies @ requests.sum(axis=1))
    if not total > 0:
        raise ConfigError(
            "probability: is 0 in every stratum; without requests there is nothing to be planned"
        )
    return Layout(
        sizes=sizes,
        weights=requests / total,
        copies=copies,
        epochs=np.array([float(e) for e in epochs]),
        kept=tuple(range(1, num_slices + 1)),
    )


def _with(strata: Sequence[Stratum], probabilities: FloatArray) -> list[Stratum]:
    scale = min(1.0, 1 / max(1e-300, float(probabilities.max())))
    return [
        Stratum(name=s.name, num_records=s.num_records, probability=float(p) * scale)
        for s, p in zip(strata, probabilities, strict=True)
    ]


def _powers(power: float) -> Callable[[Sequence[Stratum]], list[Stratum]]:
    def change(strata: Sequence[Stratum]) -> list[Stratum]:
        rates = np.array([s.probability for s in strata])
        least = rates[rates > 0].min()
        return _with(strata, least * (np.maximum(rates, least / 100) / least) ** power)

    return change


TRUTHS: dict[str, Callable[[Sequence[Stratum]], list[Stratum]]] = {
    "as the prior says": list,
    "squares of the ratios": _powers(2.0),
    "square roots of the ratios": _powers(0.5),
    "all alike": _powers(0.0),
    "the other way round": _powers(-1.0),
}
"""What might be true instead of a prior."""


def _gain(
    regions: Regions,
    truth: Sequence[Stratum],
    num_shards: int,
    epochs: Sequence[Fraction | float],
    batch_size: int,
) -> float:
    """How many times cheaper than without strata a batch is, where ``truth`` holds."""
    plain = regions_of("uniform", truth, num_shards=num_shards, num_slices=len(epochs))
    without, with_ = (
        cost.batch(expected_layout(truth, where, num_shards, epochs), batch_size)
        for where in (plain, regions)
    )
    return without / with_ if with_ > 0 else float("inf")


def _design(
    way: Way, strata: Sequence[Stratum], num_shards: int, epochs: Sequence[Fraction | float], batch_size: int
) -> StrataDesign:
    regions = regions_of(way, strata, num_shards=num_shards, num_slices=len(epochs))
    layout = expected_layout(strata, regions, num_shards, epochs)
    expected = sum(s.num_records * s.probability for s in strata)
    return StrataDesign(
        way=way,
        regions=regions,
        visits=cost.batch(layout, batch_size),
        gain=_gain(regions, strata, num_shards, epochs, batch_size),
        requests_per_shard=float(layout.weights.sum(axis=1).max()) * expected,
        strata_per_model=sum(r.num_shards for r in regions.values()) / num_shards,
    )


def _ranges(weights: FloatArray, whole: int) -> list[tuple[int, int]]:
    """Half-open ranges of 0..whole in proportion to ``weights``; small ones share one with their neighbours."""
    reach = np.cumsum(weights) / weights.sum()
    edges = [0, *(int(e) for e in np.floor(reach * whole + 0.5))]
    edges[-1] = whole
    starts = [min(edge, whole - 1) for edge in edges[:-1]]
    return [(start, max(end, start + 1)) for start, (_, end) in zip(starts, pairwise(edges), strict=True)]


def _check(strata: Sequence[Stratum], num_shards: int, num_slices: int, batch_size: int) -> None:
    if not 1 <= len(strata) <= MAX_STRATA:
        raise ConfigError(
            f"strata: must be from 1 to {MAX_STRATA}, not {len(strata)}; join those that are alike"
        )
    names = [s.name for s in strata]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"strata: {shown(twice[0])} is given twice; give each a name of its own")
    if num_shards < 1:
        raise ConfigError(f"num_shards: must be at least 1, not {num_shards}")
    num_records = sum(s.num_records for s in strata)
    if num_shards * num_slices > num_records:
        raise ConfigError(
            f"num_shards × num_slices: must be at most the {num_records:,.0f} records, not {num_shards} × {num_slices}"
            "; lower them"
        )
    if not 1 <= batch_size <= num_records:
        raise ConfigError(
            f"batch_size: must be from 1 to the {num_records:,.0f} records, not {batch_size}; nobody goes twice"
        )
