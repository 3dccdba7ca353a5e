from __future__ import annotations

from typing import Any

import pytest

from sisa_ray.planning import cost
from sisa_ray.planning.designs import MONTH_S, Load, Policy, evaluate, layout_of, load_of, open_s
from sisa_ray.planning.scenario import DAY_S, Scenario
from sisa_ray.planning.search import check_by_simulation
from tests.planning.test_scenario import scenario


def test_a_quiet_run_handles_requests_one_by_one() -> None:
    quiet = scenario()
    layout = layout_of(quiet, 10, 5, "equal")
    assert load_of(quiet, layout, 0.0).size == pytest.approx(1, abs=1e-4)
    one = cost.one_request(layout.keeping([2]))
    design = evaluate(quiet, layout.keeping([2]), "equal", "at_once", 0.0, Load(size=1.0, visits=one))
    assert design.visits_per_month == pytest.approx(4 * 30 * one)
    assert design.gpu_hours_per_month == pytest.approx(120 * one * 2e-5 / 3600)
    assert design.storage_bytes == 10 * 2 * 2_000_000
    assert design.money_per_month == pytest.approx(2 * design.gpu_hours_per_month + 0.04 * 0.023)


def test_windows_must_leave_time_for_two_rebuilds() -> None:
    slow = scenario(seconds_per_visit=0.5, num_gpus=10)  # a shard of ten takes 0.52 days
    layout = layout_of(slow, 10, 1, "equal")
    assert open_s(slow, layout, "window", 6 * DAY_S) == 6 * DAY_S
    assert open_s(slow, layout, "window", 6.6 * DAY_S) is None
    assert open_s(slow, layout, "deadline", 0) is None
    patient = scenario(seconds_per_visit=0.5, num_gpus=10, erase_within_days=30)
    assert open_s(patient, layout, "deadline", 0) == pytest.approx(27 * DAY_S - 45_060)
    assert open_s(scenario(seconds_per_visit=4.0), layout, "at_once", 0) is None


@pytest.mark.parametrize(
    ("changes", "window_s"),
    [
        ({}, 0.0),
        ({"requests_per_day": 40}, 6 * 3600.0),
        ({"requests_per_day": 100, "arrivals": "exponential"}, DAY_S),
        ({"seconds_per_visit": 2e-2, "requests_per_day": 100, "num_gpus": 4}, 0.0),
        ({"seconds_per_visit": 2e-1, "requests_per_day": 100, "num_gpus": 20}, 0.0),
    ],
)
def test_expectations_agree_with_simulation(changes: dict[str, Any], window_s: float) -> None:
    """A few per cent: what waits during a rebuild makes batches whose number is itself random."""
    given: Scenario = scenario(**{"num_records": 600_000, **changes})
    layout = layout_of(given, 20, 10, "equal").keeping([2, 5])
    policy: Policy = "window" if window_s else "at_once"
    design = evaluate(given, layout, "equal", policy, window_s, load_of(given, layout, window_s))
    check = check_by_simulation(given, design)
    assert check.relative_error == pytest.approx(0, abs=0.05)
    assert check.erased_within_s[2] <= design.worst_erase_s
    assert check.num_missed == 0


def test_the_policy_is_a_coordinators() -> None:
    given = scenario(basis="custom", custom_days=20)
    layout = layout_of(given, 2, 1, "equal")
    policy = evaluate(given, layout, "equal", "window", 900.0, load_of(given, layout, 900.0)).policy(given)
    assert (policy.batching, policy.window_s, policy.basis, policy.custom_days) == (
        "window",
        900,
        "custom",
        20,
    )
    assert MONTH_S == 30 * DAY_S
