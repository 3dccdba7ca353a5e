from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sisa_ray.core.config import UnlearningConfig
from sisa_ray.core.errors import ConfigError
from sisa_ray.core.schedule import Schedule, stage_epochs
from sisa_ray.core.strata import StratumConfig, check_strata
from sisa_ray.planning import cost
from sisa_ray.planning.layouts import even_layout
from sisa_ray.planning.population import Stratum, spread
from sisa_ray.planning.requests import weighted_stream
from sisa_ray.planning.simulator import Machine, simulate
from sisa_ray.planning.strata import WAYS, Regions, Way, expected_layout, plan_strata, regions_of

US = Stratum(name="us", num_records=225_000, probability=0.01)
EU = Stratum(name="eu", num_records=25_000, probability=0.1)

populations = st.lists(st.tuples(st.integers(1, 10_000), st.floats(0.001, 1)), min_size=1, max_size=12).map(
    lambda rows: [Stratum(name=f"s{i}", num_records=n, probability=p) for i, (n, p) in enumerate(rows)]
)


def simulated(
    regions: Regions, strata: list[Stratum], epochs: list[Fraction], batch_size: int
) -> tuple[float, float]:
    """Record-visits of a batch, requests drawn by stratum where the regions have them: mean and standard error."""
    layout = expected_layout(strata, regions, 20, epochs).spelled_out()
    rng = np.random.default_rng(0)
    policy = UnlearningConfig(batching="size", batch_size=batch_size)
    machine = Machine(seconds_per_visit=1e-9, num_gpus=1)
    at_s = np.arange(1.0, batch_size + 1)
    visits = [
        simulate(layout, weighted_stream(layout, at_s, rng), policy, machine, due_s=1e9).record_visits
        for _ in range(1500)
    ]
    return float(np.mean(visits)), float(np.std(visits) / len(visits) ** 0.5)


def as_config(regions: Regions) -> list[StratumConfig]:
    return [
        StratumConfig(
            name=name,
            shards=(r.first_shard, r.end_shard - 1),
            slices=(r.first_slice, r.last_slice),
        )
        for name, r in regions.items()
    ]


@settings(max_examples=150)
@given(populations, st.sampled_from(WAYS), st.integers(1, 30), st.integers(1, 30))
def test_every_way_is_a_layout_that_a_run_accepts(
    strata: list[Stratum], way: Way, num_shards: int, num_slices: int
) -> None:
    regions = regions_of(way, strata, num_shards=num_shards, num_slices=num_slices)
    check_strata(as_config(regions), num_shards=num_shards, num_slices=num_slices)
    layout = expected_layout(strata, regions, num_shards, [1.0] * num_slices)
    assert layout.num_shards == num_shards
    assert layout.num_records == pytest.approx(sum(s.num_records for s in strata))


@pytest.mark.parametrize("schedule", ["equal", "harmonic"])
def test_without_knowledge_it_is_the_even_layout(schedule: Schedule) -> None:
    epochs = stage_epochs(schedule, 10, 15)
    regions = regions_of("uniform", [US, EU], num_shards=20, num_slices=10)
    layout = expected_layout([US, EU], regions, 20, epochs)
    assert cost.batch(layout, 8) == pytest.approx(cost.batch(even_layout(250_000, 20, epochs), 8))


@pytest.mark.parametrize("schedule", ["equal", "harmonic"])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_what_is_predicted_is_what_is_simulated(schedule: Schedule, batch_size: int) -> None:
    epochs = stage_epochs(schedule, 50, 10)
    plan = plan_strata([US, EU], 20, epochs, batch_size=batch_size)
    for design in plan.alternatives:
        mean, error = simulated(design.regions, [US, EU], epochs, batch_size)
        assert error < 0.05 * mean
        assert abs(design.visits - mean) < 4 * error


def test_a_tenth_that_asks_ten_times_as_often_goes_to_the_last_tenth_of_slices() -> None:
    plan = plan_strata([EU, US], 20, stage_epochs("harmonic", 50, 10), batch_size=8)
    best = plan.recommended
    assert best.way == "late_slices"
    assert {name: (r.first_slice, r.last_slice) for name, r in best.regions.items()} == {
        "us": (1, 45),
        "eu": (46, 50),
    }
    assert best.gain == pytest.approx(1.744, abs=0.001)
    assert best.strata_per_model == 2, "every model learns of everybody"
    assert plan.if_wrong["as the prior says"] == best.gain
    assert (
        plan.if_wrong["squares of the ratios"] > best.gain > plan.if_wrong["square roots of the ratios"] > 1
    )
    assert plan.if_wrong["all alike"] == pytest.approx(1.0)
    assert 0.85 < plan.if_wrong["the other way round"] < 1


def test_shards_of_their_own_save_nothing_for_one_request() -> None:
    """Algorithm 1: a shard of likely records is small, and is hit as much more often."""
    many = [
        Stratum(name="a", num_records=500_000, probability=0.02),
        Stratum(name="b", num_records=500_000, probability=0.08),
    ]
    plan = plan_strata(many, 20, [1.0], batch_size=1)
    by_requests = next(d for d in plan.alternatives if d.way == "shards_by_requests")
    assert by_requests.gain == pytest.approx(1.0, abs=1e-3)
    assert by_requests.requests_per_shard == pytest.approx(2500)


@pytest.mark.parametrize("likelihood", ["exponential", "pareto"])
def test_the_more_unequal_the_more_is_saved(likelihood: str) -> None:
    strata = spread(likelihood, 250_000, 0.01, num_classes=10)  # type: ignore[arg-type]
    plan = plan_strata(strata, 20, stage_epochs("equal", 50, 10), batch_size=8)
    assert plan.recommended.way == "late_slices"
    assert plan.recommended.gain > 1.2
    even = plan_strata(
        spread("uniform", 250_000, 0.01, num_classes=10), 20, stage_epochs("equal", 50, 10), batch_size=8
    )
    assert even.recommended.gain == pytest.approx(1.0)


def test_the_bound_decides_where_it_has_to() -> None:
    epochs = stage_epochs("equal", 50, 10)
    free = plan_strata([US, EU], 20, epochs, batch_size=40)
    assert free.recommended.way == "late_slices"
    bound = plan_strata([US, EU], 20, epochs, batch_size=40, max_requests_per_shard=240)
    assert bound.recommended.requests_per_shard == pytest.approx(237.5)
    with pytest.raises(
        ConfigError, match=r"max_requests_per_shard: must be at least 237\.5 with num_shards 20, not 1;"
    ):
        plan_strata([US, EU], 20, epochs, max_requests_per_shard=1)


@pytest.mark.parametrize(
    ("strata", "num_shards", "batch_size", "message"),
    [
        ([], 20, 1, "strata: must be from 1 to 1000, not 0"),
        ([US, US], 20, 1, "strata: 'us' is given twice"),
        ([US], 0, 1, "num_shards: must be at least 1, not 0"),
        (
            [US],
            20,
            225_001,
            "batch_size: must be from 1 to the 225,000 records, not 225001; nobody goes twice",
        ),
        ([US], 20, 0, "batch_size: must be from 1 to the 225,000 records, not 0"),
        ([US], 22_501, 1, "num_shards × num_slices: must be at most the 225,000 records, not 22501 × 10"),
        ([Stratum(name="us", num_records=5000, probability=0)], 20, 1, "probability: is 0 in every stratum"),
    ],
)
def test_priors_that_describe_nothing_are_refused(
    strata: list[Stratum], num_shards: int, batch_size: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan_strata(strata, num_shards, [1.0] * 10, batch_size=batch_size)
