from __future__ import annotations

from fractions import Fraction
from math import ceil
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sisa_ray.core.schedule import (
    Schedule,
    ScheduleName,
    Sweep,
    record_visits,
    stage_epochs,
    stage_steps,
    stage_weights,
)

names = st.sampled_from(get_args(ScheduleName))
positive = st.fractions(Fraction(1, 60), 100, max_denominator=60)
num_slices = st.integers(1, 12)
sweeps = st.builds(
    Sweep,
    share=st.fractions(Fraction(1, 30), Fraction(29, 30), max_denominator=30),
    power=st.integers(0, 4),
)
sizes_of = st.integers(0, 40) | st.just(0)


@st.composite
def schedules(draw: st.DrawFn) -> tuple[Schedule, int]:
    count = draw(num_slices)
    weights = st.lists(positive, min_size=count, max_size=count).map(tuple)
    schedule: Schedule = draw(names | sweeps | weights)
    return schedule, count


@st.composite
def shards(draw: st.DrawFn) -> tuple[list[int], list[Fraction], int]:
    """Sizes of the slices of a shard, its epochs and its batch size."""
    schedule, count = draw(schedules())
    sizes = draw(st.lists(sizes_of, min_size=count, max_size=count))
    return sizes, stage_epochs(schedule, count, draw(positive)), draw(st.integers(1, 20))


def owed_visits(sizes: list[int], epochs: list[Fraction]) -> Fraction:
    """What the spec owes a shard: e_r visits of each record in slices 1..r, where slice r has any."""
    return sum(
        (e * sum(sizes[: r + 1]) for r, (size, e) in enumerate(zip(sizes, epochs, strict=True)) if size),
        Fraction(0),
    )


class TestEpochs:
    @given(schedules(), positive)
    def test_budget_is_spent_exactly(self, schedule: tuple[Schedule, int], budget: Fraction) -> None:
        weights, count = schedule
        epochs = stage_epochs(weights, count, budget)
        assert sum(e * Fraction(r, count) for r, e in enumerate(epochs, start=1)) == budget
        assert all(isinstance(e, Fraction) and e > 0 for e in epochs)

    @given(num_slices, positive)
    def test_equal_is_the_papers(self, count: int, budget: Fraction) -> None:
        assert stage_epochs("equal", count, budget) == [2 * budget / (count + 1)] * count

    @given(num_slices, positive)
    def test_equal_cost_costs_the_same_at_every_stage(self, count: int, budget: Fraction) -> None:
        costs = {
            e * Fraction(r, count) for r, e in enumerate(stage_epochs("equal_cost", count, budget), start=1)
        }
        assert costs == {budget / count}

    @given(num_slices, positive)
    def test_harmonic_costs_fall_with_the_stage(self, count: int, budget: Fraction) -> None:
        epochs = stage_epochs("harmonic", count, budget)
        assert all(e * r * r == epochs[0] for r, e in enumerate(epochs, start=1))

    @given(schedules(), positive, positive)
    def test_only_proportions_of_weights_count(
        self, schedule: tuple[Schedule, int], budget: Fraction, factor: Fraction
    ) -> None:
        weights, count = schedule
        scaled = tuple(w * factor for w in stage_weights(weights, count))
        assert stage_epochs(scaled, count, budget) == stage_epochs(weights, count, budget)

    @given(sweeps, num_slices, positive)
    def test_a_sweep_sees_every_record_and_spends_the_rest_by_its_power(
        self, sweep: Sweep, count: int, budget: Fraction
    ) -> None:
        epochs = stage_epochs(sweep, count, budget)
        swept = sweep.share * budget
        early = [*epochs[:-1], epochs[-1] - swept]
        assert all(e * r**sweep.power == early[0] for r, e in enumerate(early, start=1))
        assert sum(e * Fraction(r, count) for r, e in enumerate(early, start=1)) == budget - swept

    @given(sweeps, num_slices, positive, st.integers(1, 5))
    def test_appended_stages_sweep_again(
        self, sweep: Sweep, count: int, budget: Fraction, num_appended: int
    ) -> None:
        before = stage_epochs(sweep, count, budget)
        epochs = stage_epochs(sweep, count, budget, num_stages=count + num_appended)
        assert epochs[:count] == before
        scale = (before[-1] - sweep.share * budget) * count**sweep.power
        for stage, e in enumerate(epochs[count:], start=count + 1):
            assert e == sweep.share * budget + scale / stage**sweep.power

    @given(num_slices, positive)
    def test_sweep_by_name_is_the_default(self, count: int, budget: Fraction) -> None:
        assert stage_epochs("sweep", count, budget) == stage_epochs(Sweep(), count, budget)

    def test_mnist(self) -> None:
        """paper.md's example: S=20, R=10, 15 epochs."""
        assert stage_epochs("equal", 10, 15) == [Fraction(30, 11)] * 10


class TestSteps:
    @given(shards())
    def test_visits_are_within_one_batch_of_the_budget(
        self, shard: tuple[list[int], list[Fraction], int]
    ) -> None:
        sizes, epochs, batch_size = shard
        steps = stage_steps(sizes, epochs, batch_size)
        excess = sum(steps) * batch_size - owed_visits(sizes, epochs)
        assert 0 <= excess < batch_size

    @given(shards())
    def test_total_is_the_budget_where_no_slice_is_empty(
        self, shard: tuple[list[int], list[Fraction], int]
    ) -> None:
        """Slices of one size spend the spec's e' epochs over the shard, rounded up to a batch."""
        sizes, epochs, batch_size = shard
        equal = [7] * len(sizes)
        budget = sum((e * Fraction(r, len(sizes)) for r, e in enumerate(epochs, start=1)), Fraction(0))
        steps = stage_steps(equal, epochs, batch_size)
        assert sum(steps) == ceil(budget * 7 * len(sizes) / batch_size)

    @given(shards())
    def test_is_the_slow_obvious_way(self, shard: tuple[list[int], list[Fraction], int]) -> None:
        """After each stage, as many batches are done as all that was owed so far fills."""
        sizes, epochs, batch_size = shard
        steps = stage_steps(sizes, epochs, batch_size)
        for stage in range(1, len(sizes) + 1):
            owed = owed_visits(sizes[:stage], epochs[:stage])
            batches = owed / batch_size
            last = stage == len(sizes)
            assert sum(steps[:stage]) == (-(-batches // 1) if last else batches // 1)

    @given(shards())
    def test_no_shard_with_records_ends_untrained(self, shard: tuple[list[int], list[Fraction], int]) -> None:
        sizes, epochs, batch_size = shard
        assert (sum(stage_steps(sizes, epochs, batch_size)) > 0) == (sum(sizes) > 0)

    @given(shards(), st.data())
    def test_a_stage_depends_on_its_own_slices_alone(
        self, shard: tuple[list[int], list[Fraction], int], data: st.DataObject
    ) -> None:
        """Whatever later slices hold, and whatever they lose: a kept checkpoint stays right."""
        sizes, epochs, batch_size = shard
        stage = data.draw(st.integers(1, len(sizes)))
        rest = len(sizes) - stage
        later = data.draw(st.lists(sizes_of, min_size=rest, max_size=rest))
        steps = stage_steps([*sizes[:stage], *later], epochs, batch_size)
        assert steps[:stage] == stage_steps(sizes, epochs, batch_size)[:stage]

    @given(shards())
    def test_a_stage_with_an_empty_slice_trains_nothing(
        self, shard: tuple[list[int], list[Fraction], int]
    ) -> None:
        """Only the settling stage may: it owes what its predecessors carried on."""
        sizes, epochs, batch_size = shard
        steps = stage_steps(sizes, epochs, batch_size)
        assert all(n == 0 for size, n in zip(sizes[:-1], steps[:-1], strict=True) if size == 0)
        if sizes[-1] == 0:
            assert steps[-1] <= 1

    @given(shards(), st.data())
    def test_every_settled_stage_rounds_up(
        self, shard: tuple[list[int], list[Fraction], int], data: st.DataObject
    ) -> None:
        """After the last stage of each ingest nothing is owed; never is a whole batch too much done."""
        sizes, epochs, batch_size = shard
        settled = data.draw(st.sets(st.integers(1, len(sizes))))
        steps = stage_steps(sizes, epochs, batch_size, settle_at=settled)
        for stage in range(1, len(sizes) + 1):
            excess = sum(steps[:stage]) * batch_size - owed_visits(sizes[:stage], epochs[:stage])
            assert -batch_size < excess < batch_size
            if stage in settled:
                assert excess >= 0

    def test_worked_example(self) -> None:
        """5 owed, 4 done; 8 + 1 carried, 8 done; nothing in slice 3; 9 + 1 carried, rounded up to 12."""
        assert stage_steps([5, 3, 0, 1], [Fraction(1)] * 4, 4) == [1, 2, 0, 3]

    def test_settling_may_be_all_there_is(self) -> None:
        assert stage_steps([1, 0, 0], [Fraction(1, 7)] * 3, 64) == [0, 0, 1]
        assert stage_steps([1, 0, 0], [Fraction(1, 7)] * 3, 64, settle_at={1, 3}) == [1, 0, 0]

    def test_one_epoch_in_sixteen_slices_trains_every_stage(self) -> None:
        """The reference code's integer epochs trained one slice of these."""
        steps = stage_steps([100] * 16, stage_epochs("equal", 16, 1), 8)
        assert all(n > 0 for n in steps)
        assert sum(steps) == 200

    def test_lengths_must_agree(self) -> None:
        with pytest.raises(ValueError, match="zip"):
            stage_steps([1, 2], [Fraction(1)], 4)


class TestVisits:
    @given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 9))
    def test_counts_from_the_first_stage_on(self, steps: list[int], batch_size: int) -> None:
        assert record_visits(steps, batch_size) == sum(steps) * batch_size
        for first in range(1, len(steps) + 1):
            slow = sum(n * batch_size for stage, n in enumerate(steps, start=1) if stage >= first)
            assert record_visits(steps, batch_size, first) == slow

    @pytest.mark.parametrize(
        ("schedule", "speed_up"), [("equal", 1.43), ("equal_cost", 1.82), ("harmonic", 2.93), ("sweep", 4.36)]
    )
    def test_expected_speed_up_of_one_request_is_the_papers(
        self, schedule: ScheduleName, speed_up: float
    ) -> None:
        """paper.md, R=10: retraining a shard against restarting it at one uniform request's slice."""
        steps = stage_steps([1000] * 10, stage_epochs(schedule, 10, 15), 10)
        mean = sum(record_visits(steps, 10, first) for first in range(1, 11)) / 10
        assert record_visits(steps, 10) / mean == pytest.approx(speed_up, abs=0.01)
