"""Private votes: the mechanism's own distribution, exactly; and what the code draws, held against it."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest

from sisa_ray.core.errors import ConfigError
from sisa_ray.core.private_vote import bernoulli_exp, private_label, private_labels

TINY = Fraction(1, 10**50)
"""More than what 60 digits of an exponential are off by, all errors together."""


@cache
def exp(x: Fraction) -> Fraction:
    """e to the power of ``x``, to 60 digits."""
    with localcontext() as context:
        context.prec = 60
        return Fraction((Decimal(x.numerator) / Decimal(x.denominator)).exp())


def accepted(votes: Sequence[int], epsilon: Fraction, num_changed: int = 1) -> list[Fraction]:
    return [exp(epsilon * (v - max(votes)) / (2 * num_changed)) for v in votes]


def by_permutations(votes: Sequence[int], epsilon: Fraction, num_changed: int = 1) -> list[Fraction]:
    """The distribution of permute-and-flip as it is defined: over every order of the labels."""
    p = accepted(votes, epsilon, num_changed)
    found = [Fraction(0)] * len(votes)
    for order in itertools.permutations(range(len(votes))):
        reached = Fraction(1, math.factorial(len(votes)))
        for label in order:
            found[label] += reached * p[label]
            reached *= 1 - p[label]
    return found


def by_integral(votes: Sequence[int], epsilon: Fraction, num_changed: int = 1) -> list[Fraction]:
    """The same in closed form: p_i times the integral over t from 0 to 1 of the product of (1 − p_j t), j ≠ i.

    t is the share of labels that come before i, each before it with probability t.
    """
    p = accepted(votes, epsilon, num_changed)
    found = []
    for label in range(len(p)):
        polynomial = [Fraction(1)]
        for other in (q for j, q in enumerate(p) if j != label):
            shifted = [Fraction(0), *polynomial]
            polynomial = [a - other * b for a, b in zip([*polynomial, Fraction(0)], shifted, strict=True)]
        found.append(p[label] * sum((c / (k + 1) for k, c in enumerate(polynomial)), Fraction(0)))
    return found


def explored(draw: Callable[[Callable[[int], int]], Any], at_least: Fraction) -> dict[Any, Fraction]:
    """Every way that ``draw`` can go, with its exact probability, but for those rarer than ``at_least``."""
    found: dict[Any, Fraction] = {}
    todo: list[tuple[int, ...]] = [()]
    while todo:
        prefix = todo.pop()
        probability = Fraction(1)
        at = 0

        def randbelow(n: int) -> int:
            nonlocal probability, at
            assert n > 0
            probability /= n
            at += 1
            if at <= len(prefix):  # noqa: B023 - called in this round alone
                return prefix[at - 1]  # noqa: B023
            raise _Branch(n)

        try:
            outcome = draw(randbelow)
        except _Branch as branch:
            if probability * branch.n >= at_least:
                todo += [(*prefix, i) for i in range(branch.n)]
            continue
        found[outcome] = found.get(outcome, Fraction(0)) + probability
    return found


class _Branch(Exception):
    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.n = n


@pytest.mark.parametrize(
    "exponent", [Fraction(0), Fraction(1, 2), Fraction(1, 3), Fraction(1), Fraction(3, 2), Fraction(2)]
)
def test_a_draw_succeeds_with_exactly_its_probability(exponent: Fraction) -> None:
    draws = explored(
        lambda randbelow: bernoulli_exp(exponent.numerator, exponent.denominator, randbelow),
        Fraction(1, 10**6),
    )
    left = 1 - sum(draws.values())
    assert left < Fraction(1, 1000)
    assert draws[True] <= exp(-exponent) + TINY
    assert exp(-exponent) <= draws[True] + left + TINY


@pytest.mark.parametrize(
    ("votes", "epsilon", "num_changed"),
    [
        ([2, 1], Fraction(1), 1),
        ([1, 1], Fraction(1), 1),
        ([0, 2, 1], Fraction(1), 1),
        ([3, 3, 2], Fraction(2), 2),
        ([1, 0, 0], Fraction(2, 3), 1),
    ],
)
def test_labels_are_drawn_with_exactly_their_probabilities(
    votes: list[int], epsilon: Fraction, num_changed: int
) -> None:
    """Every way that the code can go, up to those rarer than one in a million."""
    draws = explored(
        lambda randbelow: private_label(votes, epsilon, num_changed=num_changed, randbelow=randbelow),
        Fraction(1, 10**6),
    )
    left = 1 - sum(draws.values())
    assert left < Fraction(1, 100)
    for label, probability in enumerate(by_permutations(votes, epsilon, num_changed)):
        assert draws.get(label, Fraction(0)) <= probability + TINY
        assert probability <= draws.get(label, Fraction(0)) + left + TINY


@pytest.mark.parametrize("votes", [[4], [0, 0], [5, 3], [7, 7, 1], [9, 5, 5, 0], [3, 1, 4, 1, 5]])
@pytest.mark.parametrize("epsilon", [Fraction(1, 10), Fraction(3)])
def test_the_closed_form_is_the_definition(votes: list[int], epsilon: Fraction) -> None:
    pairs = list(zip(by_permutations(votes, epsilon), by_integral(votes, epsilon), strict=True))
    assert all(abs(a - b) < TINY for a, b in pairs)
    assert abs(sum((a for a, _ in pairs), Fraction(0)) - 1) < TINY


def neighbours(votes: Sequence[int], num_changed: int) -> Iterator[tuple[int, ...]]:
    """Votes after up to ``num_changed`` constituents have changed theirs, also to and from no vote at all."""
    seen = {tuple(votes)}
    edge = set(seen)
    for _ in range(num_changed):
        further = set()
        for now in edge:
            for source, target in itertools.permutations(range(-1, len(now)), 2):
                changed = list(now)
                if source >= 0:
                    changed[source] -= 1
                if target >= 0:
                    changed[target] += 1
                if min(changed) >= 0:
                    further.add(tuple(changed))
        edge = further - seen
        seen |= further
    yield from sorted(seen)


@pytest.mark.parametrize(
    ("num_labels", "most", "num_changed"), [(2, 6, 1), (3, 3, 1), (4, 2, 1), (5, 1, 1), (2, 4, 2), (3, 2, 2)]
)
@pytest.mark.parametrize("epsilon", [Fraction(1, 10), Fraction(1), Fraction(5)])
def test_no_label_gets_likelier_than_epsilon_allows(
    num_labels: int, most: int, num_changed: int, epsilon: Fraction
) -> None:
    """Differential privacy, held against every pair of neighbouring votes."""
    distribution = cache(lambda votes: by_integral(votes, epsilon, num_changed))
    bound = exp(epsilon)
    worst = Fraction(0)
    for votes in itertools.product(range(most + 1), repeat=num_labels):
        for other in neighbours(votes, num_changed):
            for a, b in zip(distribution(votes), distribution(other), strict=True):
                assert a <= bound * b + TINY
                worst = max(worst, a / b)
    assert worst > exp(epsilon / 2)  # or the bound would show little


@pytest.mark.parametrize("votes", [[60, 40, 0], [1000, 998, 990, 3], [20] * 6, [5000, 0]])
@pytest.mark.parametrize("epsilon", [Fraction(1, 100), Fraction(1, 2)])
def test_large_votes_are_private_too(votes: list[int], epsilon: Fraction) -> None:
    before = by_integral(votes, epsilon)
    for other in neighbours(votes, 1):
        pairs = zip(before, by_integral(other, epsilon), strict=True)
        assert all(a <= exp(epsilon) * b + TINY and b <= exp(epsilon) * a + TINY for a, b in pairs)


@pytest.mark.parametrize(
    ("votes", "epsilon", "num_changed"),
    [
        ([12, 8], Fraction(1, 4), 1),
        ([10, 10, 0], Fraction(1, 3), 1),
        ([9, 6, 5, 0], Fraction(7, 10), 1),
        ([9, 6, 5, 0], Fraction(7, 10), 3),
        ([4, 4, 4, 4, 4], Fraction(2), 1),
    ],
)
def test_drawn_labels_have_their_frequencies(votes: list[int], epsilon: Fraction, num_changed: int) -> None:
    num_rows = 20_000
    drawn = private_labels(
        np.tile(np.array(votes), (num_rows, 1)),
        epsilon,
        num_changed=num_changed,
        randbelow=random.Random(7).randrange,
    )
    expected = [float(p) * num_rows for p in by_permutations(votes, epsilon, num_changed)]
    counts = np.bincount(drawn, minlength=len(votes))
    chi_square = sum((c - e) ** 2 / e for c, e in zip(counts.tolist(), expected, strict=True))
    # The 99.9 % quantiles of chi-square with 1 to 4 degrees of freedom; the seed is fixed.
    assert chi_square < [10.83, 13.82, 16.27, 18.47][len(votes) - 2]


def test_one_row_is_drawn_as_many_are() -> None:
    votes = np.random.default_rng(3).integers(0, 9, size=(200, 5), dtype=np.uint8)
    epsilon = Fraction(1, 3)
    rows = private_labels(votes, epsilon, randbelow=random.Random(5).randrange)
    one_by_one = random.Random(5).randrange
    assert rows.tolist() == [private_label(row.tolist(), epsilon, randbelow=one_by_one) for row in votes]
    assert rows.dtype == np.int64


def test_randomness_is_secure_where_none_is_given() -> None:
    votes = np.zeros((64, 4), dtype=np.int64)
    random.seed(0)
    first = private_labels(votes, Fraction(1))
    random.seed(0)
    assert not np.array_equal(first, private_labels(votes, Fraction(1)))
    random.seed(0)
    one_by_one = [private_label([0, 0, 0, 0], Fraction(1)) for _ in range(64)]
    random.seed(0)
    assert one_by_one != [private_label([0, 0, 0, 0], Fraction(1)) for _ in range(64)]


@pytest.mark.parametrize("epsilon", [Fraction(1, 10**12), Fraction(1), Fraction(10**6)])
def test_extreme_votes_need_few_draws(epsilon: Fraction) -> None:
    """A draw with a huge exponent ends at its first failure, whatever the number of voters."""
    source, draws = random.Random(1), 0

    def randbelow(n: int) -> int:
        nonlocal draws
        draws += 1
        return source.randrange(n)

    for _ in range(100):
        private_label([10**9, 0, 5000, 10**9 - 10**6], epsilon, randbelow=randbelow)
    assert draws < 100 * 4 * 8


def test_a_clear_majority_wins_where_epsilon_is_large() -> None:
    votes = np.tile(np.array([10, 5000, 300]), (500, 1))
    assert set(private_labels(votes, Fraction(1)).tolist()) == {1}


def test_one_label_and_no_rows() -> None:
    assert private_label([3], Fraction(1)) == 0
    assert private_labels(np.zeros((0, 3), dtype=np.int64), Fraction(1)).shape == (0,)


@pytest.mark.parametrize("epsilon", [0, Fraction(0), Fraction(-1, 2), 0.1, "1", True, None])
def test_an_epsilon_that_is_no_positive_exact_number_is_refused(epsilon: Any) -> None:
    with pytest.raises(ConfigError, match=r"^epsilon: must be a positive, exact number"):
        private_label([1, 2], epsilon)
    with pytest.raises(ConfigError, match=r"^epsilon: "):
        private_labels(np.ones((1, 2), dtype=np.int64), epsilon)


@pytest.mark.parametrize("num_changed", [0, -1, 1.0, True, None])
def test_a_number_of_changed_votes_that_cannot_be_is_refused(num_changed: Any) -> None:
    with pytest.raises(ConfigError, match=r"^num_changed: must be a whole number from 1"):
        private_label([1, 2], Fraction(1), num_changed=num_changed)


@pytest.mark.parametrize("votes", [[], [1, -1], [1.0, 2.0], [True, False], ["1"], [None]])
def test_votes_that_cannot_be_are_refused(votes: Any) -> None:
    with pytest.raises(ConfigError, match=r"^votes: must "):
        private_label(votes, Fraction(1))


@pytest.mark.parametrize(
    "votes",
    [
        [[1, 2]],
        np.ones((2, 2)),
        np.ones((2, 2), dtype=bool),
        np.ones(2, dtype=np.int64),
        np.ones((2, 0), dtype=np.int64),
        np.array([[1, -1]]),
    ],
)
def test_tables_of_votes_that_cannot_be_are_refused(votes: Any) -> None:
    with pytest.raises(ConfigError, match=r"^votes: must be "):
        private_labels(votes, Fraction(1))
