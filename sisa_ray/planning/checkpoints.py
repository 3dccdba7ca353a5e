"""Which checkpoints to keep: the best places for a given number of them, by dynamic programming.

A rebuild starts from the last kept checkpoint before the slice that was hit. So the stages between two kept ones,
a < j <= b, are all trained again if and only if a request falls in slices 1..b, and the cost is a sum over such gaps:
(cost of stages a+1..b) × (probability of a hit in 1..b). What a budget buys is found gap by gap.
"""

from __future__ import annotations

import numpy as np

from sisa_ray.core.errors import ConfigError
from sisa_ray.planning.layouts import FloatArray, IntArray, Layout

_MAX_SLICES = 2000
"""Tables of R² numbers are made."""


def best_kept(layout: Layout, num_kept: int, num_requests: float) -> tuple[int, ...]:
    """The ``num_kept`` stages (the last among them) that make a batch of K requests cheapest in expectation.

    Source: section V, with checkpoints that are not all kept. For three of ten equal stages:

    >>> from sisa_ray.planning.layouts import even_layout
    >>> best_kept(even_layout(1000, 10, [1.0] * 10), 3, 1)
    (5, 8, 10)

    Raises:
        ConfigError: for fewer than one checkpoint, or more slices than the tables hold.
    """
    return best_kept_of_every_number(layout, num_kept, num_requests)[-1]


def best_kept_of_every_number(layout: Layout, max_kept: int, num_requests: float) -> list[tuple[int, ...]]:
    """The best stages to keep for each number of them from 1 to ``max_kept`` (at most R).

    Time R²·``max_kept``, memory R².

    Raises:
        ConfigError: for fewer than one checkpoint, or more slices than the tables hold.
    """
    num_slices = layout.num_slices
    if max_kept < 1:
        raise ConfigError(
            f"kept: must be at least 1 checkpoint a shard, not {max_kept}; the last one is the model itself"
        )
    if num_slices > _MAX_SLICES:
        raise ConfigError(
            f"num_slices: must be at most {_MAX_SLICES} to place checkpoints, not {num_slices}; use fewer slices"
        )
    gap = _gap_costs(layout, num_requests)
    # best[b]: the cheapest way to stage b, which is kept, with as many kept stages as layers so far.
    best = gap[0]
    choices: list[IntArray] = [np.zeros(num_slices + 1, dtype=np.int64)]
    found: list[tuple[int, ...]] = [(num_slices,)]
    for _ in range(1, min(max_kept, num_slices)):
        through = best[:, None] + gap
        choices.append(np.argmin(through, axis=0))
        best = np.min(through, axis=0)
        found.append(_trace(choices, num_slices))
    return found


def _gap_costs(layout: Layout, num_requests: float) -> FloatArray:
    """(R+1, R+1): cost of the stages a+1..b if a and b are kept and none between; infinite unless a < b."""
    num_kinds, num_slices = layout.sizes.shape
    zero = np.zeros((num_kinds, 1))
    stage_costs = np.cumsum(layout.sizes, axis=1) * layout.epochs
    cost = np.hstack([zero, np.cumsum(stage_costs, axis=1)])
    reach = np.minimum(np.hstack([zero, np.cumsum(layout.weights, axis=1)]), 1.0)
    with np.errstate(divide="ignore"):  # the logarithm of a certain hit
        hit = -np.expm1(num_requests * np.log1p(-reach))
    weighted = layout.copies[:, None] * hit
    gap: FloatArray = (weighted * cost).sum(axis=0)[None, :] - cost.T @ weighted
    gap[np.tril_indices(num_slices + 1)] = np.inf
    return gap


def _trace(choices: list[IntArray], last: int) -> tuple[int, ...]:
    """Back from the last stage through what was chosen."""
    kept = [last]
    for chosen in reversed(choices[1:]):
        kept.append(int(chosen[kept[-1]]))
    return tuple(reversed(kept))
