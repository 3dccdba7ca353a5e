from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sisa_ray.core.errors import ConfigError
from sisa_ray.core.schedule import stage_epochs
from sisa_ray.planning import cost, stages
from sisa_ray.planning.layouts import even_layout

fractions = st.fractions(0, 5, max_denominator=20)


@given(st.lists(fractions, min_size=1, max_size=8), st.data())
def test_no_other_stages_above_the_floors_are_cheaper(floors: list[Fraction], data: st.DataObject) -> None:
    epochs = stages.budget(floors) + data.draw(fractions) + 1
    cheapest = stages.cheapest_epochs(epochs, floors)
    assert stages.budget(cheapest) == epochs
    assert all(e >= floor for e, floor in zip(cheapest, floors, strict=True))
    shares = data.draw(st.lists(st.integers(0, 9), min_size=len(floors), max_size=len(floors)).filter(any))
    left = epochs - stages.budget(floors)
    other = [
        floor + left * Fraction(share, sum(shares)) * Fraction(len(floors), r)
        for r, (floor, share) in enumerate(zip(floors, shares, strict=True), start=1)
    ]
    assert stages.budget(other) == epochs
    assert stages.request_cost(cheapest) <= stages.request_cost(other)


@given(st.integers(1, 30), st.fractions(0, 1, max_denominator=50))
def test_cost_falls_in_a_straight_line_with_the_floor(num_slices: int, share: Fraction) -> None:
    epochs = stages.floored_epochs(15, num_slices, share)
    equal, first = Fraction(2, 3) + Fraction(1, 3 * num_slices), Fraction(1, num_slices)
    assert stages.request_cost(epochs) == 15 * (share * equal + (1 - share) * first)


def test_floor_of_one_is_the_papers_schedule() -> None:
    assert stages.floored_epochs(15, 10, Fraction(1)) == stage_epochs("equal", 10, 15)


@pytest.mark.parametrize(("power", "name"), [(0, "equal"), (1, "equal_cost"), (2, "harmonic")])
def test_powers_are_the_named_schedules(power: int, name: str) -> None:
    assert stages.power_epochs(15, 7, power) == stage_epochs(name, 7, 15)  # type: ignore[arg-type]


def test_request_cost_is_what_the_cost_model_says() -> None:
    """The record itself, one of very many, aside."""
    epochs = stages.floored_epochs(15, 20, Fraction(1, 4))
    layout = even_layout(10**9, 10, epochs)
    assert cost.one_request(layout) / 10**8 == pytest.approx(float(stages.request_cost(epochs)), rel=1e-6)


def test_impossible_floors_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"floors: take 1.5 epochs of the shard, more than the budget of 1"):
        stages.cheapest_epochs(1, [Fraction(1), Fraction(1)])
    with pytest.raises(ConfigError, match="floors: must be one number a stage, none negative"):
        stages.cheapest_epochs(1, [])
    with pytest.raises(ConfigError, match=r"share: must be from 0 to 1, not 1.5"):
        stages.floored_epochs(1, 4, Fraction(3, 2))
    with pytest.raises(ConfigError, match="power: must be 0 or more, not -1"):
        stages.power_epochs(1, 4, -1)
