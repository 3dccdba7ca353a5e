"""Stage schedules: how many epochs and steps each stage trains (contract clause 5; paper, section V).

The budget fixes the sum of ``e_r * (r / R)`` over the stages to the epochs ``e'`` of training without slices;
the schedule decides how it is spread. Everything is exact: fractions, no floats.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fractions import Fraction
from math import ceil, floor
from typing import Literal

ScheduleName = Literal["equal", "equal_cost", "harmonic"]
Schedule = ScheduleName | tuple[Fraction, ...]


def stage_weights(schedule: Schedule, num_slices: int) -> list[Fraction]:
    """Relative epochs of each stage, before they are scaled to the budget.

    ``equal`` is the paper's; ``equal_cost`` makes every stage cost the same (1/r); ``harmonic`` is 1/r². Of weights
    that are spelled out, the last one holds for all stages beyond them.
    """
    stages = range(1, num_slices + 1)
    if schedule == "equal":
        return [Fraction(1) for _ in stages]
    if schedule == "equal_cost":
        return [Fraction(1, r) for r in stages]
    if schedule == "harmonic":
        return [Fraction(1, r * r) for r in stages]
    weights = [Fraction(w) for w in schedule]
    return (weights + weights[-1:] * num_slices)[:num_slices]


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
    weights = stage_weights(schedule, num_slices)
    total = sum((w * Fraction(r, num_slices) for r, w in enumerate(weights, start=1)), Fraction(0))
    scale = Fraction(epochs) / total
    return [w * scale for w in stage_weights(schedule, num_stages or num_slices)]


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
