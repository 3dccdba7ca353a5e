"""How right and how fast planning is: expectations against simulation, a million requests, the schedules' frontier."""

from __future__ import annotations

import random
import statistics
import time
from fractions import Fraction

import numpy as np

from sisa_ray.core.config import UnlearningConfig
from sisa_ray.core.schedule import ScheduleName, stage_epochs
from sisa_ray.planning import cost, stages
from sisa_ray.planning.designs import evaluate, layout_of, load_of
from sisa_ray.planning.layouts import by_records
from sisa_ray.planning.population import Stratum, spread
from sisa_ray.planning.requests import arrival_times, uniform_stream
from sisa_ray.planning.scenario import Scenario
from sisa_ray.planning.search import check_by_simulation
from sisa_ray.planning.simulator import Machine, simulate
from sisa_ray.planning.strata import plan_strata


def expectations(num_scenarios: int = 120) -> None:
    draw = random.Random(1)
    errors = []
    for seed in range(num_scenarios):
        scenario = Scenario.from_mapping(
            {
                "num_records": 600_000,
                "epochs": 15,
                "checkpoint_bytes": 1,
                "seconds_per_visit": 10 ** draw.uniform(-4, -1.3),
                "requests_per_day": 10 ** draw.uniform(0, 2.8),
                "num_gpus": draw.choice([1, 2, 4, 8, 32]),
            }
        )
        schedule: ScheduleName = draw.choice(["equal", "harmonic"])
        layout = layout_of(scenario, draw.choice([1, 2, 5, 10, 20]), draw.choice([1, 5, 20]), schedule)
        window_s = draw.choice([0.0, 0.0, 3600.0, 86_400.0])
        load = load_of(scenario, layout, window_s)
        design = evaluate(scenario, layout, schedule, "window" if window_s else "at_once", window_s, load)
        errors.append(abs(check_by_simulation(scenario, design, seed=seed).relative_error))
    within = sum(e <= 0.05 for e in errors)
    print(
        f"GPU-hours expected against simulated, {num_scenarios} random scenarios: half within "
        f"{statistics.median(errors):.1%}, {within} within 5 %, the worst {max(errors):.0%} off"
    )


def a_million_requests() -> None:
    layout = by_records(np.full((20, 50), 10_000), stage_epochs("equal", 50, 15))
    machine = Machine(seconds_per_visit=1e-5, num_gpus=4)
    for batching, rate in (("at_once", 1e-6), ("window", 0.01), ("deadline", 0.01)):
        rng = np.random.default_rng(0)
        started = time.perf_counter()
        stream = uniform_stream(layout, arrival_times("exponential", 10**6, rate, rng), rng)
        policy = UnlearningConfig.model_validate({"batching": batching})
        outcome = simulate(layout, stream, policy, machine, due_s=28 * 86_400)
        took_s = time.perf_counter() - started
        print(f"1,000,000 requests, {batching}: {outcome.num_batches:,} batches, {took_s:.1f} s")
        if batching == "at_once":
            error = cost.uniform_sequential(layout, 10**6) / outcome.record_visits - 1
            print(f"  record-visits: expectation and simulation differ by {abs(error):.3%}")


def frontier(num_slices: int = 50) -> None:
    print(
        f"one uniform request, R={num_slices}, 15 epochs: stages, speed-up, epochs of the last slice's records"
    )
    rows = [(f"1/r^{p}", stages.power_epochs(15, num_slices, p)) for p in (0, 1, 2, 3)]
    for percent in (75, 50, 31, 20, 10, 5):
        epochs = stages.floored_epochs(15, num_slices, Fraction(percent, 100))
        rows.append((f"floor {percent} %", epochs))
    for name, epochs in rows:
        gain, last = float(15 / stages.request_cost(epochs)), float(stages.last_exposure(epochs))
        print(f"  {name:10} {gain:6.2f}×  {last:.3f}  first stage {float(epochs[0]):.1f}")


def who_asks() -> None:
    epochs = stage_epochs("equal", 50, 15)
    populations = {
        "exponential": spread("exponential", 10**6, 1e-3, num_classes=10),
        "pareto": spread("pareto", 10**6, 1e-3, num_classes=10),
        "two countries": [
            Stratum(name="a", num_records=9e5, probability=2e-4),
            Stratum(name="b", num_records=1e5, probability=8.2e-3),
        ],
    }
    for name, population in populations.items():
        best = plan_strata(population, 20, epochs).recommended
        print(f"strata, 20 × 50, {name}: {best.way}, {best.gain:.2f} times cheaper")


if __name__ == "__main__":
    expectations()
    a_million_requests()
    frontier()
    who_asks()
