"""Aggregation against oracles written row by row."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sisa_ray.core.errors import ConfigError, IntegrityError, RecipeError
from sisa_ray.learning.ensemble import Floats, Rule, aggregate, predict_constituent, rule_for
from tests.learning.sources import arithmetic, load, make_slices, recipe, train
from tests.learning.stages import of

PROBABILITIES = st.integers(0, 2**32 - 1).map(
    # Quarters: sums are exact, and ties are common.
    lambda seed: np.random.default_rng(seed).integers(0, 5, (5, 7, 3)).astype(np.float64) / 4
)


def majority(rows: Floats) -> tuple[int, float]:
    """Most votes; then the highest sum among the tied; then the lowest label."""
    votes = Counter(int(row.argmax()) for row in rows)
    label = min(votes, key=lambda c: (-votes[c], -rows[:, c].sum(), c))
    return label, votes[label] / len(rows)


@given(PROBABILITIES)
def test_majority(predictions: Floats) -> None:
    said = aggregate("majority", predictions, [1] * 5, task="classification")
    expected = [majority(predictions[:, n]) for n in range(7)]
    assert list(zip(said.values.tolist(), said.agreement.tolist(), strict=True)) == expected  # type: ignore[union-attr]
    assert said.probabilities is not None
    assert np.allclose(said.probabilities.sum(axis=1), 1)
    assert said.values.dtype == np.int64


@given(PROBABILITIES, st.permutations(range(5)))
def test_the_order_of_voters_does_not_matter_to_exact_sums(predictions: Floats, order: list[int]) -> None:
    for rule in ("majority", "mean"):
        a = aggregate(rule, predictions, [1] * 5, task="classification")
        b = aggregate(rule, predictions[order], [1] * 5, task="classification")
        assert np.array_equal(a.values, b.values)


@given(PROBABILITIES, st.lists(st.integers(1, 9), min_size=5, max_size=5))
def test_weights_count_like_so_many_voters(predictions: Floats, weights: list[int]) -> None:
    weighted = aggregate("size_weighted", predictions, weights, task="classification")
    repeated = np.repeat(predictions, weights, axis=0)
    mean = aggregate("mean", repeated, [1] * len(repeated), task="classification")
    assert weighted.probabilities is not None
    assert mean.probabilities is not None
    assert np.allclose(weighted.probabilities, mean.probabilities)
    assert np.array_equal(weighted.values, mean.values)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 2)])
def test_regression(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape)
    weights = [1, 2, 3, 4]
    expected: dict[Rule, Floats] = {
        "mean": values.mean(axis=0),
        "median": np.median(values, axis=0),
        "size_weighted": np.average(values, axis=0, weights=weights),
    }
    for rule, answer in expected.items():
        said = aggregate(rule, values, weights, task="regression")
        assert np.allclose(said.values, answer)
        assert said.probabilities is None
        assert said.agreement is None


def test_sums_run_in_the_order_of_the_shards_whatever_the_layout() -> None:
    values = np.random.default_rng(0).normal(size=(9, 5, 3))
    total = np.zeros((5, 3))
    for voter in values:
        total = total + voter
    for layout in (values, np.asfortranarray(values)):
        said = aggregate("mean", layout, [1] * 9, task="regression")
        assert said.values.tobytes() == (total / 9).tobytes()


def test_rules() -> None:
    assert rule_for("auto", "classification") == "majority"
    assert rule_for("auto", "regression") == "mean"
    assert rule_for("median", "regression") == "median"
    with pytest.raises(ConfigError, match=r"for classification it must be auto, majority, .* not 'median'"):
        rule_for("median", "classification")


def test_no_rows_and_no_checkpoint() -> None:
    make = recipe("Plain")
    slices = make_slices([6])
    state = train(make, load(slices, make))
    assert predict_constituent(make, state, slices[0].table.slice(0, 0), arithmetic()).shape == (0, 3)
    with pytest.raises(IntegrityError):
        predict_constituent(make, b"nonsense", slices[0].table, arithmetic())


def test_an_answer_of_the_wrong_shape_is_refused() -> None:
    from tests.learning.recipes import Plain

    class TooFew(Plain):
        def predict(self, model, batch):  # type: ignore[no-untyped-def]
            return super().predict(model, batch)[:-1]

    make = of(TooFew)
    slices = make_slices([6])
    state = train(make, load(slices, make))
    with pytest.raises(RecipeError, match=r"TooFew\.predict: must return \d+ rows"):
        predict_constituent(make, state, slices[0].table, arithmetic())
