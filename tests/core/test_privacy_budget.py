"""The ledger of a privacy budget: never an answer more than it pays for."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sisa_ray.core.errors import ConfigError
from sisa_ray.core.privacy_budget import Budget

amounts = st.fractions(min_value=Fraction(1, 1000), max_value=1000).filter(bool)


@pytest.mark.parametrize(
    ("total", "per_answer", "num_answers"),
    [("1", "1/10", 10), ("3/10", "1/10", 3), ("1", "3/10", 3), ("1/10", "1/5", 0), ("5", "5", 1)],
)
def test_answers_are_counted_exactly(total: str, per_answer: str, num_answers: int) -> None:
    assert Budget(Fraction(total), Fraction(per_answer)).num_answers == num_answers


@given(amounts, amounts, st.lists(st.integers(0, 500)))
def test_leases_together_stay_within_the_total_and_waste_nothing(
    total: Fraction, per_answer: Fraction, wanted: list[int]
) -> None:
    budget = Budget(total, per_answer)
    spent = 0
    for want in wanted:
        granted = budget.lease(spent, want)
        assert granted == want or spent + granted == budget.num_answers
        assert 0 <= granted <= want
        spent += granted
        assert spent * per_answer <= total
    assert (budget.num_answers + 1) * per_answer > total


def test_a_budget_that_was_lowered_grants_nothing() -> None:
    assert Budget(Fraction(1), Fraction(1, 10)).lease(11, 5) == 0


@pytest.mark.parametrize("value", [0, Fraction(-1), 0.5, True, "1", None])
def test_amounts_that_cannot_be_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^total: must be a positive, exact number"):
        Budget(value, Fraction(1))
    with pytest.raises(ConfigError, match=r"^per_answer: must be a positive, exact number"):
        Budget(Fraction(1), value)


@pytest.mark.parametrize("value", [-1, 1.0, True, None])
def test_numbers_that_cannot_be_are_refused(value: Any) -> None:
    budget = Budget(Fraction(1), Fraction(1))
    with pytest.raises(ConfigError, match=r"^spent_answers: must be a whole number from 0"):
        budget.lease(value, 1)
    with pytest.raises(ConfigError, match=r"^wanted: must be a whole number from 0"):
        budget.lease(0, value)
