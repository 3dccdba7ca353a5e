from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sisa_ray.core.errors import ConfigError
from sisa_ray.planning.designs import Design
from sisa_ray.planning.scenario import DAY_S
from sisa_ray.planning.search import make_plan, pareto_front, whole_layout
from tests.planning.test_scenario import scenario

DEAR: dict[str, Any] = {
    "num_records": 2_000_000,
    "seconds_per_visit": 1e-3,
    "requests_per_day": 20,
    "num_gpus": 8,
    "checkpoint_bytes": "300MB",
    "accuracy": {1: 0.95, 5: 0.945, 20: 0.92},
}


def point(design: Design) -> tuple[float, ...]:
    return (design.money_per_month, design.accuracy_loss, design.num_shards, design.worst_erase_s)


def test_the_recommendation_keeps_every_bound() -> None:
    given = scenario(**DEAR, storage_budget="20GB", max_accuracy_loss=0.01, erase_within_days=3)
    plan = make_plan(given)
    best = plan.recommended
    assert best.accuracy_loss <= 0.01
    assert best.storage_bytes <= 20e9
    assert best.worst_erase_s <= 3 * DAY_S + 1
    assert plan.simulated.num_missed == 0
    assert plan.simulated.erased_within_s[2] <= best.worst_erase_s
    assert abs(plan.simulated.relative_error) < 0.05
    assert best.gpu_hours_per_month < plan.retrain_gpu_hours_per_month


def test_nothing_much_cheaper_is_allowed() -> None:
    given = scenario(**DEAR)
    plan = make_plan(given)
    allowed = [d.money_per_month for d in plan.alternatives if d.accuracy_loss <= given.max_accuracy_loss]
    assert min(allowed) <= plan.recommended.money_per_month <= 1.05 * min(allowed) + 1


def test_cheap_retraining_is_not_sharded() -> None:
    best = make_plan(scenario(requests_per_day=2)).recommended
    assert (best.num_shards, best.num_slices, best.batching) == (1, 1, "at_once")


def test_the_front_is_what_nothing_beats() -> None:
    front = make_plan(scenario(**DEAR)).alternatives
    assert len(front) > 5
    for design in front:
        for other in front:
            beats = all(a <= b for a, b in zip(point(other), point(design), strict=True))
            assert not beats or other == design


def test_the_front_drops_what_is_beaten() -> None:
    best = make_plan(scenario()).recommended
    worse = replace(best, money_per_month=best.money_per_month + 1)
    slower_cheaper = replace(best, money_per_month=0.0, worst_erase_s=best.worst_erase_s + 1)
    assert pareto_front([worse, best, slower_cheaper]) == [slower_cheaper, best]


def test_a_smaller_budget_keeps_fewer_checkpoints() -> None:
    fixed = {**DEAR, "shards": [20], "slices": [50], "max_accuracy_loss": 0.2}
    rich = make_plan(scenario(**fixed)).recommended
    poor = make_plan(scenario(**fixed, storage_budget="12GB")).recommended
    assert len(poor.kept) == 2 < len(rich.kept)
    assert poor.gpu_hours_per_month > rich.gpu_hours_per_month


def test_whole_layouts_are_even() -> None:
    given = scenario(num_records=1003, requests_per_day=0.1, shards=[4], slices=[3])
    layout = whole_layout(given, make_plan(given).recommended)
    assert layout.num_records == 1003
    assert layout.sizes.max() - layout.sizes.min() == 1


def test_a_simulation_leaves_the_smallest_shards_about_as_large_as_they_were() -> None:
    tiny = make_plan(scenario(num_records=50, requests_per_day=0.01))
    assert tiny.simulated.num_requests == 40  # two in each of twenty repetitions
    assert abs(tiny.simulated.relative_error) < 0.05


def test_the_same_seed_gives_the_same_plan() -> None:
    assert make_plan(scenario(), seed=3) == make_plan(scenario(), seed=3)
    assert make_plan(scenario(), seed=3).simulated != make_plan(scenario(), seed=4).simulated


def test_assumptions_are_what_was_not_given() -> None:
    assumed = "\n".join(make_plan(scenario()).assumptions)
    assert "no accuracy curve: at most 20 shards" in assumed
    assert "a GPU-hour costs 2" in assumed
    told = "\n".join(make_plan(scenario(gpu_hour_price=3, accuracy={1: 0.9, 20: 0.8})).assumptions)
    assert "straight line over their logarithm" in told
    assert "GPU-hour costs" not in told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"seconds_per_visit": 10},
            "num_gpus: must rebuild everything twice .* within 7 days, and 1 take at least",
        ),
        (
            {"shards": [5], "storage_budget": "9MB"},
            "storage_budget: must hold at least 10,000,000 bytes, .* 5 shards",
        ),
        (
            {"shards": [30_000], "slices": [50]},
            "num_records: must be at least one for each of 30000 × 50 slices",
        ),
        (
            {"accuracy": {1: 0.9, 20: 0.8}, "shards": [20], "max_accuracy_loss": 0.01},
            "max_accuracy_loss: must be at least 0.1000, not 0.01",
        ),
    ],
)
def test_what_cannot_be_done_names_what_stands_in_the_way(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(scenario(**changes))
