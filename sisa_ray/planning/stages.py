"""Cheaper stage schedules: what the budget leaves free, and what a floor for late stages costs.

The budget fixes ``Σ e_r·(r/R) = e'``, not the e_r. One uniform request in a shard of D records costs
``D·Σ e_r·(r/R)²``: an epoch of stage r costs in proportion to r, and is repeated in proportion to r again.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from sisa_ray.core.errors import ConfigError


def request_cost(epochs: Sequence[Fraction]) -> Fraction:
    """Cost of one uniform request, in epochs of the whole shard: ``Σ e_r·(r/R)²``.

    Source: section V; the paper's equal stages give ``e'·(2/3 + 1/(3R))``.

    >>> request_cost([Fraction(2, 51)] * 50) == Fraction(2, 3) + Fraction(1, 150)
    True
    """
    num_slices = len(epochs)
    return sum((e * Fraction(r, num_slices) ** 2 for r, e in enumerate(epochs, start=1)), Fraction(0))


def budget(epochs: Sequence[Fraction]) -> Fraction:
    """What the stages cost to train, in epochs of the whole shard: ``Σ e_r·(r/R)``. Source: section V."""
    num_slices = len(epochs)
    return sum((e * Fraction(r, num_slices) for r, e in enumerate(epochs, start=1)), Fraction(0))


def last_exposure(epochs: Sequence[Fraction]) -> Fraction:
    """How often records of the last slice are trained on: e_R. Records of slice r are, ``Σ_{j >= r} e_j`` times."""
    return epochs[-1]


def cheapest_epochs(epochs: Fraction | int, floors: Sequence[Fraction]) -> list[Fraction]:
    """The e_r of least ``request_cost`` with ``budget`` e' and ``e_r >= floors[r-1]``: floors, the rest to stage 1.

    Why: an epoch of stage r takes r/R of the budget and costs (r/R)², so a unit of budget costs r/R: it is best spent
    on stage 1, and what the floors do not claim goes there (a linear program with one equation).

    >>> [str(e) for e in cheapest_epochs(6, [Fraction(0), Fraction(1), Fraction(1)])]
    ['13', '1', '1']

    Raises:
        ConfigError: where the floors alone exceed the budget, or one is negative.
    """
    if not floors or min(floors) < 0:
        raise ConfigError("floors: must be one number a stage, none negative; give 0 where there is no floor")
    left = Fraction(epochs) - budget(floors)
    if left < 0:
        raise ConfigError(
            f"floors: take {float(budget(floors)):g} epochs of the shard, more than the budget of {float(epochs):g}; "
            "lower them or raise epochs"
        )
    return [floors[0] + left * len(floors), *floors[1:]]


def floored_epochs(epochs: Fraction | int, num_slices: int, share: Fraction) -> list[Fraction]:
    """The cheapest stages of which each has at least ``share`` of the paper's equal ``2e'/(R+1)`` epochs.

    ``share`` 1 is the paper's schedule; 0 trains on the first slice alone, and is no schedule. The cost of one request
    falls in a straight line with it, from 2/3 + 1/(3R) of the shard to 1/R:

    >>> from sisa_ray.core.schedule import stage_epochs
    >>> [round(float(15 / request_cost(floored_epochs(15, 50, Fraction(s, 100)))), 2) for s in (100, 50, 32, 10)]
    [1.49, 2.88, 4.37, 11.72]
    >>> round(float(15 / request_cost(stage_epochs("harmonic", 50, 15))), 2)
    4.5

    Raises:
        ConfigError: for a share that is not from 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"share: must be from 0 to 1, not {float(share):g}; 1 is the paper's schedule")
    return cheapest_epochs(epochs, [share * Fraction(2, num_slices + 1) * epochs] * num_slices)


def power_epochs(epochs: Fraction | int, num_slices: int, power: int) -> list[Fraction]:
    """Stages with ``e_r ∝ 1/r^power``: 0 is the paper's, 1 is equal_cost, 2 is harmonic.

    >>> from sisa_ray.core.schedule import stage_epochs
    >>> power_epochs(15, 10, 2) == stage_epochs("harmonic", 10, 15)
    True

    Raises:
        ConfigError: for a negative power.
    """
    if power < 0:
        raise ConfigError(f"power: must be 0 or more, not {power}; negative ones make late stages longest")
    weights = [Fraction(1, r**power) for r in range(1, num_slices + 1)]
    scale = Fraction(epochs) / budget(weights)
    return [w * scale for w in weights]
