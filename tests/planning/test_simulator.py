from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sisa_ray.core.config import UnlearningConfig
from sisa_ray.core.errors import ConfigError
from sisa_ray.core.schedule import stage_epochs
from sisa_ray.planning import cost
from sisa_ray.planning.layouts import FloatArray, Layout, by_records, even_layout
from sisa_ray.planning.requests import Stream, arrival_times, uniform_stream
from sisa_ray.planning.simulator import Machine, Outcome, predicted_s, simulate
from tests.planning.brute import rebuild, records_of, small_layouts

DAY_S = 86_400.0
QUICK = Machine(seconds_per_visit=1e-9, num_gpus=1)


def run(layout: Layout, at_s: FloatArray, machine: Machine = QUICK, **policy: Any) -> Outcome:
    stream = uniform_stream(layout, at_s, np.random.default_rng(0))
    margins = {"safety_margin_s": 1.0, **policy}
    return simulate(layout, stream, UnlearningConfig(**margins), machine, due_s=28 * DAY_S)


@settings(max_examples=60)
@given(small_layouts(), st.data())
def test_visits_are_those_of_rebuilding_batch_by_batch(layout: Layout, data: st.DataObject) -> None:
    records = records_of(layout)
    order = data.draw(st.permutations(range(len(records))))
    size = data.draw(st.integers(1, len(records)))
    asked = [records[i] for i in order]
    stream = Stream(
        at_s=np.arange(len(asked), dtype=float),
        shard=np.array([k for k, _ in asked]),
        slice=np.array([r for _, r in asked]),
    )
    policy = UnlearningConfig(batching="size", batch_size=size)
    outcome = simulate(layout, stream, policy, QUICK, due_s=28 * DAY_S)
    expected = 0.0
    for start in range(0, len(asked), size):
        expected += rebuild(asked[start + size :], asked[start : start + size], layout)
    assert outcome.record_visits == pytest.approx(expected)
    assert outcome.num_batches == -(-len(asked) // size)


@pytest.mark.parametrize("schedule", ["equal", "harmonic"])
@pytest.mark.parametrize("batch_size", [1, 8, 40, 200])
def test_equations_agree_with_simulation_within_one_percent(schedule: Any, batch_size: int) -> None:
    """Sizes on both sides of where numpy takes over."""
    layout = by_records(np.full((20, 10), 50_000), stage_epochs(schedule, 10, 15), kept=[1, 2, 5])
    num_requests = max(8000, 1500 * batch_size)
    at_s = np.arange(float(num_requests))
    outcome = run(layout, at_s, batching="size", batch_size=batch_size)
    left = cost.full_training(layout, num_requests / 2) / cost.full_training(layout)
    expected = cost.uniform_batch(layout, batch_size) * outcome.num_batches * left
    assert outcome.num_batches == num_requests // batch_size
    assert outcome.record_visits == pytest.approx(expected, rel=0.01)


def test_requests_one_at_a_time_agree_with_the_equation() -> None:
    layout = by_records(np.full((10, 5), 400), stage_epochs("equal_cost", 5, 4))
    outcome = run(layout, np.arange(8000.0))
    assert outcome.num_batches == 8000
    assert outcome.record_visits == pytest.approx(cost.uniform_sequential(layout, 8000), rel=0.01)


def test_windows_agree_with_the_equation() -> None:
    layout = by_records(np.full((20, 10), 10_000), stage_epochs("equal", 10, 15))
    rng = np.random.default_rng(0)
    outcome = run(layout, arrival_times("exponential", 40_000, 0.01, rng), batching="window", window_s=900)
    assert outcome.num_requests / outcome.num_batches == pytest.approx(1 + 0.01 * 900, rel=0.02)
    left = 1 - 0.5 * 40_000 / layout.num_records
    expected = cost.window(layout, 9.0) * outcome.num_batches * left
    assert outcome.record_visits == pytest.approx(expected, rel=0.01)


def slow_end(costs: list[float], num_gpus: int) -> float:
    free = [0.0] * num_gpus
    for c in costs:
        heapq.heappush(free, heapq.heappop(free) + c)
    return max(free)


@pytest.mark.parametrize(("num_gpus", "expected_s"), [(1, 60.0), (2, 40.0), (3, 20.0), (9, 20.0)])
def test_shards_queue_for_gpus(num_gpus: int, expected_s: float) -> None:
    layout = by_records([[21]] * 3, [1.0])
    stream = Stream(at_s=np.zeros(3), shard=np.arange(3), slice=np.ones(3, dtype=np.int64))
    machine = Machine(seconds_per_visit=1.0, num_gpus=num_gpus, overhead_s=5.0)
    outcome = simulate(layout, stream, UnlearningConfig(), machine, due_s=DAY_S)
    assert outcome.to_erase_s.tolist() == [expected_s + 5] * 3
    assert slow_end([20.0] * 3, num_gpus) == expected_s
    assert outcome.gpu_seconds == 60
    assert predicted_s(layout, machine) == -(-3 // num_gpus) * 21 + 5


def test_a_busy_coordinator_batches_what_waits() -> None:
    layout = by_records([[100]], [1.0])
    outcome = run(layout, np.array([0.0, 10.0, 20.0, 150.0]), Machine(seconds_per_visit=1.0, num_gpus=1))
    assert outcome.num_batches == 3  # 99 s; two that waited, 97 s; the last, from second 196 on
    assert outcome.to_erase_s.tolist() == [99.0, 186.0, 176.0, 142.0]
    assert outcome.busy_share == 1


@pytest.mark.parametrize(
    ("policy", "starts"),
    [
        ({"batching": "at_once"}, [0.0, 10.0, 20.0]),
        ({"batching": "at_once", "min_subjects": 2}, [10.0, 10.0, 28 * DAY_S - 1 + 20]),
        ({"batching": "size", "batch_size": 3}, [20.0] * 3),
        ({"batching": "size", "batch_size": 4}, [28 * DAY_S - 1] * 3),
        ({"batching": "window", "window_s": 10}, [10.0, 10.0, 30.0]),
        ({"batching": "deadline"}, [28 * DAY_S - 1] * 3),
        ({"batching": "deadline", "safety_margin_s": 28 * DAY_S - 5}, [5.0, 15.0, 25.0]),
        ({"batching": "deadline", "safety_margin_s": 40 * DAY_S}, [0.0, 10.0, 20.0]),
    ],
)
def test_batches_start_as_the_policy_says(policy: dict[str, Any], starts: list[float]) -> None:
    at_s = np.array([0.0, 10.0, 20.0])
    outcome = run(even_layout(60, 2, [1.0]).spelled_out(), at_s, **policy)
    assert at_s + outcome.to_erase_s == pytest.approx(starts, abs=1e-3)
    assert outcome.num_missed == 0


def test_deadlines_are_missed_where_work_outgrows_the_machine() -> None:
    layout = by_records(np.full((2, 2), 500), [1.0, 1.0])
    machine = Machine(seconds_per_visit=DAY_S, num_gpus=1)
    outcome = run(layout, np.arange(100.0) * DAY_S, machine)
    assert outcome.num_missed > 90
    assert outcome.quantile_s(0.5) > 28 * DAY_S


def test_several_records_a_request_and_none_below_zero() -> None:
    layout = by_records([[10]], [1.0])
    for num, expected in ((2, 6.0), (3, 4.0), (9, 0.0)):
        stream = Stream(at_s=np.zeros(2), shard=np.zeros(2, int), slice=np.ones(2, int))
        outcome = simulate(layout, stream, UnlearningConfig(), QUICK, due_s=DAY_S, records_per_request=num)
        assert outcome.record_visits == expected


def test_bad_numbers_are_refused() -> None:
    layout = by_records([[10]], [1.0])
    none = Stream(at_s=np.zeros(0), shard=np.zeros(0, int), slice=np.zeros(0, int))
    with pytest.raises(ConfigError, match="stream: must have at least one request"):
        simulate(layout, none, UnlearningConfig(), QUICK, due_s=1)
    with pytest.raises(ConfigError, match="due_s: must be positive, not 0"):
        simulate(
            layout,
            Stream(at_s=np.zeros(1), shard=np.zeros(1, int), slice=np.ones(1, int)),
            UnlearningConfig(),
            QUICK,
            due_s=0,
        )
    for seconds in (0.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="seconds_per_visit: must be positive and finite"):
            Machine(seconds_per_visit=seconds, num_gpus=1)
    with pytest.raises(ConfigError, match="num_gpus: must be positive and finite, not 0"):
        Machine(seconds_per_visit=1.0, num_gpus=0)
    with pytest.raises(ConfigError, match="overhead_s: must be 0 or more"):
        Machine(seconds_per_visit=1.0, num_gpus=1, overhead_s=-1)
