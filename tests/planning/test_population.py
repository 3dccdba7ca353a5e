from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sisa_ray.core.config import UnlearningConfig
from sisa_ray.core.errors import ConfigError
from sisa_ray.planning import cost
from sisa_ray.planning.layouts import even_layout
from sisa_ray.planning.population import Likelihood, Stratum, aware_layout, spread
from sisa_ray.planning.requests import weighted_stream
from sisa_ray.planning.simulator import Machine, simulate


@pytest.mark.parametrize("likelihood", get_args(Likelihood))
def test_spread_keeps_the_mean_and_rises(likelihood: Likelihood) -> None:
    classes = spread(likelihood, 5000, 0.001, num_classes=50)
    assert sum(s.num_records for s in classes) == pytest.approx(5000)
    assert sum(s.num_records * s.probability for s in classes) == pytest.approx(5.0)
    assert np.all(np.diff([s.probability for s in classes]) > -1e-12)


@pytest.mark.parametrize("likelihood", ["exponential", "pareto"])
def test_spread_has_the_quantiles_of_samples(likelihood: Likelihood) -> None:
    rng = np.random.default_rng(0)
    sampled = rng.exponential(size=10**6) if likelihood == "exponential" else 1 + rng.pareto(1.5, size=10**6)
    mean = 1.0 if likelihood == "exponential" else 3.0
    by_class = np.sort(sampled).reshape(10, -1).mean(axis=1) / mean * 0.01
    classes = spread(likelihood, 100, 0.01, num_classes=10)
    # The tail of a Pareto sample of shape 1.5 settles slowly.
    assert [s.probability for s in classes][:9] == pytest.approx(by_class[:9], rel=0.05)


@st.composite
def strata(draw: st.DrawFn) -> list[Stratum]:
    rows = draw(st.lists(st.tuples(st.integers(10_000, 10**6), st.floats(0, 1)), min_size=1, max_size=5))
    rows.append((draw(st.integers(10_000, 20_000)), 0.5))
    return [Stratum(name=str(i), num_records=n, probability=p) for i, (n, p) in enumerate(rows)]


@given(strata(), st.integers(1, 12), st.integers(1, 6))
def test_shards_share_the_requests_and_slices_the_records(
    population: list[Stratum], num_shards: int, num_slices: int
) -> None:
    layout = aware_layout(population, num_shards, [1.0] * num_slices)
    assert layout.num_records == pytest.approx(sum(s.num_records for s in population))
    assert layout.weights.sum(axis=1) == pytest.approx(np.full(num_shards, 1 / num_shards), abs=1e-6)
    for row in layout.sizes:
        assert row == pytest.approx(np.full(num_slices, row.mean()), rel=1e-6, abs=1e-6)
    density = layout.weights / np.maximum(layout.sizes, 1e-300)
    assert np.all(np.diff(density.ravel()[layout.sizes.ravel() > 1e-3]) >= -1e-6 * density.max())


@given(strata(), st.integers(1, 12))
def test_knowing_who_asks_never_costs_more(population: list[Stratum], num_shards: int) -> None:
    """Mean shard size over requests is N/S in both; likely records in late slices then save."""
    epochs = [2.0, 1.0, 1.0, 0.5]
    aware = aware_layout(population, num_shards, epochs)
    even = even_layout(aware.num_records, num_shards, epochs)
    assert cost.one_request(aware) <= cost.one_request(even) * 1.001


def test_an_aware_layout_in_simulation() -> None:
    population = spread("pareto", 4 * 10**6, 1e-3)
    layout = aware_layout(population, 10, [4.0, 2.0, 1.0, 1.0, 1.0])
    stream = weighted_stream(layout, np.arange(20_000.0), np.random.default_rng(0))
    policy = UnlearningConfig(batching="size", batch_size=4)
    machine = Machine(seconds_per_visit=1e-12, num_gpus=1)
    outcome = simulate(layout, stream, policy, machine, due_s=10**7)
    assert outcome.record_visits == pytest.approx(cost.batch(layout, 4) * outcome.num_batches, rel=0.015)


def test_bad_probabilities_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"stratum 'eu': probability must be from 0 to 1, not 1.5"):
        Stratum(name="eu", num_records=10, probability=1.5)
    with pytest.raises(ConfigError, match="stratum 'eu': num_records must be positive"):
        Stratum(name="eu", num_records=0, probability=0.5)
    with pytest.raises(ConfigError, match="mean: must be a probability above 0, not 0"):
        spread("uniform", 10, 0)
    with pytest.raises(ConfigError, match="probability must be from 0 to 1"):
        spread("pareto", 10, 0.5)
    with pytest.raises(ConfigError, match="probability: is 0 in every stratum"):
        aware_layout([Stratum(name="eu", num_records=10, probability=0)], 2, [1.0])
    with pytest.raises(ConfigError, match="layout: needs at least one stratum, shard and stage"):
        aware_layout([], 2, [1.0])
