"""Stage schedules: how many epochs and steps each stage trains (contract clause 5; paper, section V).

The budget fixes the sum of ``e_r * (r / R)`` over the stages to the epochs ``e'`` of training without slices;
the schedule decides how it is spread. Everything is exact: fractions, no floats.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Literal

ScheduleName = Literal["equal", "equal_cost", "harmonic", "sweep"]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Learn early, then see everybody once more: 1/r^power, and a last stage that sweeps over all slices.

    Whoever asks to be forgotten costs the sweep and, with most records in late slices, little else; and every record
    is trained on at least ``share * epochs`` times.

    Attributes:
        share: of the budget that the sweep takes, above 0 and below 1.
        power: of the stages before it.
    """

    share: Fraction = Fraction(1, 20)
    power: int = 3


Schedule = ScheduleName | Sweep | tuple[Fraction, ...]

_POWERS: dict[Schedule, int] = {"equal": 0, "equal_cost": 1, "harmonic": 2}


def stage_weights(schedule: Schedule, num_slices: int, *, num_stages: int | None = None) -> list[Fraction]:
    """Relative epochs of each stage, before they are scaled to the budget of ``num_slices``.

    ``equal`` is the paper's; ``equal_cost`` makes every stage cost the same (1/r); ``harmonic`` is 1/r²; ``sweep`` is
    :class:`Sweep` with its defaults. Stages beyond ``num_slices`` continue the formula: those of a sweep sweep again,
    and of weights that are spelled out the last one holds.
    """
    stages = range(1, (num_stages or num_slices) + 1)
    if schedule == "sweep":
        schedule = Sweep()
    if isinstance(schedule, Sweep):
        early = [Fraction(1, r**schedule.power) for r in stages]
        scale = (1 - schedule.share) / _cost(early[:num_slices])
        return [w * scale + (schedule.share if r >= num_slices else 0) for r, w in enumerate(early, start=1)]
    if isinstance(schedule, tuple):
        weights = [Fraction(w) for w in schedule]
        return (weights + weights[-1:] * len(stages))[: len(stages)]
    return [Fraction(1, r ** _POWERS[schedule]) for r in stages]


def _cost(weights: Sequence[Fraction]) -> Fraction:
    """Budget that ``weights`` epochs of the stages take: ``sum(w_r * r / R)``."""
    return sum((w * Fraction(r, len(weights)) for r, w in enumerate(weights, start=1)), Fraction(0))


def stage_epochs(
    schedule: Schedule, num_slices: int, epochs: Fraction | int, *, num_stages: int | None = None
) -> list[Fraction]:
    """Epochs ``e_r`` of each stage over slices 1..r, scaled so that ``sum(e_r * r / R) == epochs``.

    Appended stages, up to ``num_stages``, continue the formula under the same scale (contract clause 5).

    >>> stage_epochs("equal", 4, 15)[0] == Fraction(2 * 15, 4 + 1)
    True
    >>> [str(e) for e in stage_epochs("equal_cost", 3, 6)]
    ['6', '3', '2']
    """
    weights = stage_weights(schedule, num_slices, num_stages=num_stages)
    scale = Fraction(epochs) / _cost(weights[:num_slices])
    return [w * scale for w in weights]


def stage_steps(
    slice_sizes: Sequence[int],
    epochs: Sequence[Fraction],
    batch_size: int,
    *,
    settle_at: Collection[int] | None = None,
) -> list[int]:
    """Optimizer steps of each stage of one shard, each over exactly ``batch_size`` rows.

    A stage is owed ``e_r`` visits of every record in slices 1..r. What fills no step is carried to the next
    stage; the stages in ``settle_at`` (by default the last one; the last of every ingest) round up. A stage
    whose own slice is empty is owed nothing. Stage r's steps depend on slices 1..r alone.

    >>> stage_steps([10, 0, 6], [Fraction(1), Fraction(1), Fraction(1)], 4)
    [2, 0, 5]
    """
    settled = {len(slice_sizes)} if settle_at is None else settle_at
    steps: list[int] = []
    num_records = 0
    owed = Fraction(0)
    for stage, (size, stage_share) in enumerate(zip(slice_sizes, epochs, strict=True), start=1):
        num_records += size
        if size:
            owed += stage_share * num_records
        count = owed / batch_size
        # After a stage that rounded up, less than nothing may be owed: that trains nothing either.
        whole = max(0, ceil(count) if stage in settled else floor(count))
        steps.append(whole)
        owed -= whole * batch_size
    return steps


def record_visits(steps: Sequence[int], batch_size: int, first_stage: int = 1) -> int:
    """Record-visits of stages ``first_stage``..R: what the cost model counts."""
    return sum(steps[first_stage - 1 :]) * batch_size
