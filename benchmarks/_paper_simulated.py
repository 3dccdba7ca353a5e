"""What the cost model and its simulation say of the paper's settings. Nothing is trained here."""

from __future__ import annotations

from typing import Any

import numpy as np

from sisa_ray.core.config import UnlearningConfig
from sisa_ray.core.schedule import Schedule, stage_epochs
from sisa_ray.planning import cost
from sisa_ray.planning.layouts import Layout, by_records
from sisa_ray.planning.requests import uniform_stream
from sisa_ray.planning.simulator import Machine, simulate

TASKS = (
    # task, N, K, and the speed-up that the paper reports
    ("Purchase", 250_000, 8, 4.63),
    ("SVHN", 604_833, 18, 2.45),
    ("mini-ImageNet", 128_545, 4, 8.01),
    ("ImageNet", 1_281_167, 39, 1.36),
)
NUM_SHARDS, NUM_SLICES, EPOCHS = 20, 50, 15


def layout_of(
    num_records: int, schedule: Schedule, *, epochs: int = EPOCHS, num_slices: int = NUM_SLICES
) -> Layout:
    """20 shards of whole records, as even as they get."""
    cells = NUM_SHARDS * num_slices
    sizes = np.full(cells, num_records // cells) + (np.arange(cells) < num_records % cells)
    return by_records(sizes.reshape(num_slices, NUM_SHARDS).T, stage_epochs(schedule, num_slices, epochs))


def speed_ups(layout: Layout, num_requests: int, *, num_draws: int, seed: int) -> dict[str, float]:
    """Full retraining over one batch of K uniform requests: by the equations, and in simulated draws.

    Returns:
        ``theory``, ``simulated``, and ``error`` of the simulated mean (its standard error, relative).
    """
    full = cost.full_training(layout) * (1 - num_requests / layout.num_records)
    rng = np.random.default_rng(seed)
    policy = UnlearningConfig(batching="size", batch_size=num_requests)
    machine = Machine(seconds_per_visit=1e-9, num_gpus=1)
    at_s = np.arange(1.0, num_requests + 1)
    visits = np.array(
        [
            simulate(layout, uniform_stream(layout, at_s, rng), policy, machine, due_s=1e9).record_visits
            for _ in range(num_draws)
        ]
    )
    return {
        "theory": full / cost.uniform_batch(layout, num_requests),
        "simulated": full / float(visits.mean()),
        "error": float(visits.std() / visits.mean() / num_draws**0.5),
    }


def tasks(schedules: dict[str, Schedule], *, num_draws: int, seed: int) -> dict[str, Any]:
    """The paper's table of tasks, for every schedule."""
    rows = [
        {
            "task": task,
            "num_records": num_records,
            "num_requests": num_requests,
            "paper": paper,
            "schedules": {
                name: speed_ups(
                    layout_of(num_records, schedule), num_requests, num_draws=num_draws, seed=seed
                )
                for name, schedule in schedules.items()
            },
        }
        for task, num_records, num_requests, paper in TASKS
    ]
    return {"rows": rows, "num_draws": num_draws}
