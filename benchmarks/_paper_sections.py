"""The sections of the report: what each runs. Rows are kept as they come, so that a run goes on where it was cut."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import _paper_simulated as simulated
from _paper_runs import MNIST_CNN, MNIST_MLP, PURCHASE, SEED, Bench, Task, measured

from sisa_ray.core.schedule import Schedule, Sweep, stage_epochs
from sisa_ray.planning.stages import request_cost

SCHEDULES: dict[str, Schedule] = {
    "equal": "equal",
    "equal_cost": "equal_cost",
    "harmonic": "harmonic",
    "sweep": "sweep",
}
NUM_SHARDS, NUM_SLICES, NUM_REQUESTS = 20, 50, 8
REQUESTS = (1, 2, 4, 8, 18, 39)

Row = dict[str, Any]
Keep = Callable[[str, Callable[[], Row]], Row]
"""Gives the row of that key: the one that is kept, or a new one, which it keeps."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One section: ``make`` runs what is missing and gives everything as plain data.

    ``minutes`` is an estimate for two quiet cores.
    """

    name: str
    title: str
    minutes: float
    make: Callable[[Bench, Keep], Row]


def _yaml(schedule: Schedule) -> Any:
    return (
        {"sweep": str(schedule.share), "power": schedule.power} if isinstance(schedule, Sweep) else schedule
    )


def _sisa(schedule: Schedule, *, shards: int = NUM_SHARDS, slices: int = NUM_SLICES) -> dict[str, Any]:
    return {"num_shards": shards, "num_slices": slices, "schedule": _yaml(schedule)}


def _forgetting(bench: Bench, task: Task, name: str, schedule: Schedule, num_draws: int) -> Row:
    """Training, batches of 8, and full retraining between them, so that the machine's speed drifts for both."""
    config = bench.config(task, name=name, sisa=_sisa(schedule))
    with measured(config) as run:
        trained = run.fit()
        run.unlearn(NUM_REQUESTS)  # the first pays for what is imported and opened once
        draws = [run.unlearn(NUM_REQUESTS)]
        full = run.baseline("full")
        draws += [run.unlearn(NUM_REQUESTS) for _ in range(num_draws - 1)]
        return {"train": trained, "full": full, "draws": draws, "one_shard": run.baseline("one_shard")}


def headline(bench: Bench, keep: Keep) -> Row:
    """S=20, R=50, batches of 8 of 250,000 people: measured for every schedule."""
    return _headline(bench, keep, PURCHASE, num_draws=5)


def mnist(bench: Bench, keep: Keep) -> Row:
    """The same with a CNN."""
    return _headline(bench, keep, MNIST_CNN, num_draws=3)


def _headline(bench: Bench, keep: Keep, task: Task, *, num_draws: int) -> Row:
    rows = {
        name: keep(
            name,
            lambda name=name, s=schedule: _forgetting(bench, task, name, s, num_draws),  # type: ignore[misc]
        )
        for name, schedule in SCHEDULES.items()
    }
    return {"rows": rows, "num_records": task.num_train // bench.shrink, "epochs": task.epochs}


def shards(bench: Bench, keep: Keep) -> Row:
    """Accuracy against the number of shards, without slices; and of one model on 1/S of the data."""

    def one(task: Task, num_shards: int) -> Row:
        config = bench.config(
            task, name=f"shards-{num_shards}", sisa=_sisa("equal", shards=num_shards, slices=1)
        )
        with measured(config) as run:
            trained = run.fit()
            return {"num_shards": num_shards, "train": trained, "one_shard": run.baseline("one_shard")}

    return {
        "tasks": {
            task.name: [
                keep(f"{task.name}-{n}", lambda task=task, n=n: one(task, n))  # type: ignore[misc]
                for n in (1, 2, 5, 10, 20, 50)
            ]
            for task in (PURCHASE, MNIST_MLP)
        }
    }


def slices(bench: Bench, keep: Keep) -> Row:
    """Accuracy against the number of slices, for every schedule."""

    def one(name: str, schedule: Schedule, num_slices: int) -> Row:
        config = bench.config(
            MNIST_MLP, name=f"slices-{name}-{num_slices}", sisa=_sisa(schedule, slices=num_slices)
        )
        with measured(config) as run:
            return {"num_slices": num_slices, "train": run.fit()}

    return {
        "schedules": {
            name: [
                keep(f"{name}-{n}", lambda name=name, s=schedule, n=n: one(name, s, n))  # type: ignore[misc]
                for n in (1, 5, 10, 20, 50)
            ]
            for name, schedule in SCHEDULES.items()
        }
    }


def frontier(bench: Bench, keep: Keep) -> Row:
    """Accuracy against what a batch of 8 costs, over the parameters of schedules; and plainly fewer epochs."""
    budget = MNIST_MLP.epochs
    ways: dict[str, tuple[Schedule, int, int]] = {
        **{f"{name}": (schedule, NUM_SLICES, budget) for name, schedule in SCHEDULES.items()},
        **{
            f"sweep {share}": (Sweep(share=Fraction(share)), NUM_SLICES, budget)
            for share in ("1/10", "2/15", "1/5", "1/3", "1/2")
        },
        **{
            f"sweep {share} after 1/r²": (Sweep(share=Fraction(share), power=2), NUM_SLICES, budget)
            for share in ("1/20", "1/10", "1/5")
        },
        # The control: training on the whole shard from the start, for as long as a request costs in the others.
        **{f"{epochs} epochs, no slices": ("equal", 1, epochs) for epochs in (1, 2, 3, 5, 10, 15)},
    }

    def one(name: str, schedule: Schedule, num_slices: int, epochs: int) -> Row:
        slug = name.replace(" ", "-").replace("/", "of").replace("²", "2").replace(",", "")
        config = bench.config(
            MNIST_MLP, name=f"frontier-{slug}", sisa=_sisa(schedule, slices=num_slices), epochs=epochs
        )
        with measured(config) as run:
            trained = run.fit()
        layout = simulated.layout_of(60_000, schedule, epochs=epochs, num_slices=num_slices)
        found = simulated.speed_ups(layout, NUM_REQUESTS, num_draws=500, seed=SEED)
        cost = request_cost(stage_epochs(schedule, num_slices, epochs))
        return {
            "name": name,
            "train": trained,
            # Against full retraining with the whole budget, whatever was spent here.
            "speed_up": found["theory"] * budget / epochs,
            "request_epochs": float(cost),
        }

    return {
        "rows": [
            keep(name, lambda name=name, way=way: one(name, *way))  # type: ignore[misc]
            for name, way in ways.items()
        ]
    }


def requests(bench: Bench, keep: Keep) -> Row:
    """Speed-up in record-visits against the size of a batch: theory, simulation and the product, one epoch each."""
    num_draws = max(2, 6 // bench.shrink)

    def one(name: str, schedule: Schedule) -> Row:
        config = bench.config(PURCHASE, name=f"requests-{name}", sisa=_sisa(schedule), epochs=1)
        measurements: dict[str, list[Row]] = {}
        with measured(config) as run:
            run.fit()
            for num_requests in REQUESTS:
                measurements[str(num_requests)] = [run.unlearn(num_requests) for _ in range(num_draws)]
        layout = simulated.layout_of(PURCHASE.num_train, schedule)
        return {
            "measured": measurements,
            "simulated": {
                str(k): simulated.speed_ups(layout, k, num_draws=2000 // bench.shrink, seed=SEED)
                for k in REQUESTS
            },
        }

    return {
        "schedules": {
            name: keep(name, lambda name=name, s=schedule: one(name, s))  # type: ignore[misc]
            for name, schedule in SCHEDULES.items()
        }
    }


def tasks(bench: Bench, keep: Keep) -> Row:
    """The paper's four tasks by simulation, with its N and K."""
    return keep("tasks", lambda: simulated.tasks(SCHEDULES, num_draws=4000 // bench.shrink, seed=SEED))


def _foreign(module: str, **quick: Any) -> Callable[[Bench, Keep], Row]:
    """A section that lies in a module of its own: ``run(directory, …) -> dict``."""

    def make(bench: Bench, keep: Keep) -> Row:
        found = importlib.import_module(module)
        settings = quick if bench.shrink > 1 else {}
        return keep(module, lambda: found.run(bench.directory / module, **settings))

    return make


SECTIONS = (
    Section(name="headline", title="The headline: Purchase", minutes=12, make=headline),
    Section(name="tasks", title="The paper's tasks, by simulation", minutes=2, make=tasks),
    Section(name="requests", title="Speed-up against the size of a batch", minutes=8, make=requests),
    Section(name="frontier", title="Schedules: accuracy against cost", minutes=9, make=frontier),
    Section(name="slices", title="Accuracy against slices", minutes=9, make=slices),
    Section(name="shards", title="Accuracy against shards", minutes=12, make=shards),
    Section(name="mnist", title="MNIST with a CNN", minutes=40, make=mnist),
    Section(name="strata", title="Shards that know who asks", minutes=10, make=_foreign("_paper_strata")),
    Section(
        name="transfer",
        title="Transfer learning",
        minutes=60,
        make=_foreign("_paper_transfer", num_records=1000, num_test=500, shards=(5,)),
    ),
)
