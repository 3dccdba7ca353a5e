"""The paper's settings as runs of the product, and what training and forgetting cost in them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from sisa_ray.conversion.purchase import write_purchase
from sisa_ray.core.config import SisaConfig
from sisa_ray.core.records import StageRef
from sisa_ray.execution import commands
from sisa_ray.execution.events import Event, StageFinished
from sisa_ray.execution.workers import Workers

SEED = 0
"""Of the data, of placement, of every draw."""

PURCHASE_RECIPE: dict[str, Any] = {
    "class": "sisa_ray.recipes.MLPClassifier",
    "args": {
        "hidden": [128],
        "num_classes": 2,
        "activation": "tanh",
        "batch_size": 64,
        "lr": 0.001,
        "lr_schedule": "last_cosine",
    },
}
"""The paper's network; Adam, and a rate that falls over the last stage (over all of a single model's training)."""

MLP_RECIPE: dict[str, Any] = {
    "class": "sisa_ray.recipes.MLPClassifier",
    "args": {
        "hidden": [128],
        "num_classes": 10,
        "batch_size": 64,
        "lr": 0.001,
        "scale": 255,
        "lr_schedule": "last_cosine",
    },
}
CNN_RECIPE: dict[str, Any] = {
    "class": "sisa_ray.recipes.CNNClassifier",
    "args": {
        "num_classes": 10,
        "shape": [1, 28, 28],
        "channels": [16, 32],
        "hidden": [128],
        "batch_size": 64,
        "lr": 0.001,
        "lr_schedule": "last_cosine",
    },
}
"""Two convolutions and two linear layers, as the paper's."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set and its recipe. ``epochs`` is the budget of a full training."""

    name: str
    columns: dict[str, str]
    recipe: dict[str, Any]
    epochs: int
    tables: Callable[[Path, int, int], None]
    """Writes ``train.parquet`` and ``test.parquet`` of so many records into a directory."""
    num_train: int
    num_test: int


def data_dir() -> Path:
    """Where the data sets lie."""
    return Path(os.environ.get("SISA_DATA", Path(__file__).parents[2] / "shared" / "data"))


def _write_purchase(directory: Path, num_train: int, num_test: int) -> None:
    write_purchase(str(directory), num_train=num_train, num_test=num_test, seed=SEED, overwrite=True)


def _cut_mnist(directory: Path, num_train: int, num_test: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", num_train), ("test", num_test)):
        # Rows are in random order, so that the first of them are a sample.
        table = pq.read_table(data_dir() / f"mnist-{part}.parquet").slice(0, count)
        pq.write_table(table, directory / f"{part}.parquet")


PURCHASE = Task(
    name="purchase",
    columns={"features": "features", "label": "label"},
    recipe=PURCHASE_RECIPE,
    epochs=10,
    tables=_write_purchase,
    num_train=250_000,
    num_test=50_000,
)
_MNIST: dict[str, Any] = {
    "columns": {"features": "pixels", "label": "label"},
    "tables": _cut_mnist,
    "num_train": 60_000,
    "num_test": 10_000,
}
MNIST_MLP = Task(name="mnist-mlp", recipe=MLP_RECIPE, epochs=15, **_MNIST)
MNIST_CNN = Task(name="mnist-cnn", recipe=CNN_RECIPE, epochs=10, **_MNIST)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where tables and runs are, and how much smaller than the paper's they are made (``--quick``)."""

    directory: Path
    shrink: int = 1

    def config(self, task: Task, *, name: str, sisa: dict[str, Any], epochs: int | None = None) -> SisaConfig:
        """A run on ``task``; its tables are written where they are not there yet."""
        tables = self.directory / task.name
        if not (tables / "test.parquet").exists():
            tables.parent.mkdir(parents=True, exist_ok=True)
            task.tables(tables, task.num_train // self.shrink, task.num_test // self.shrink)
        return SisaConfig.from_mapping(
            {
                "name": f"{task.name}-{name}",
                "storage_path": str(self.directory / "runs"),
                "data": {
                    "train": str(tables / "train.parquet"),
                    "test": str(tables / "test.parquet"),
                    "record_id": "id",
                    "columns": task.columns,
                },
                "recipe": task.recipe,
                "sisa": {"epochs": epochs or task.epochs, "seed": SEED, **sisa},
                "arithmetic": {"device": "cpu"},
                "aggregation": "mean",
            }
        )


@dataclass
class Meter:
    """Stages that were built, as events tell of them."""

    stages: list[StageRef] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, StageFinished):
            self.stages.append(event.ref)


class Measurement:
    """Commands on one run whose shard actors stay, each with what it cost."""

    def __init__(self, config: SisaConfig, workers: Workers) -> None:
        self._config = config
        self._workers = workers
        self._people: list[str] = pq.read_table(config.data.train, columns=["id"])["id"].to_pylist()
        self._rng = np.random.default_rng(SEED + 1)

    def fit(self) -> dict[str, Any]:
        """Ingest, train, publish, measure."""
        result, cost = self._metered(commands.train)
        known = [value for value in result.constituents if value is not None]
        return {**cost, "accuracy": result.ensemble, "constituent": float(np.mean(known))}

    def baseline(self, kind: str) -> dict[str, Any]:
        """One model without shards and slices: on everything (``full``), or on 1/S of it (``one_shard``)."""
        result, cost = self._metered(commands.baseline, kind=kind)
        return {**cost, "accuracy": result.value, "num_records": result.num_records}

    def unlearn(self, num_requests: int) -> dict[str, Any]:
        """One batch of so many uniform requests, none of them from somebody who is gone."""
        drawn = self._rng.choice(len(self._people), num_requests, replace=False)
        people = [self._people[i] for i in drawn]
        for i in sorted(drawn, reverse=True):
            del self._people[i]
        result, cost = self._metered(commands.unlearn, people)
        return {
            **cost,
            "num_requests": num_requests,
            "shards": len(result.shards_rebuilt),
            "stages": result.stages_rebuilt,
            "full_visits": result.full_retrain_record_visits,
        }

    def _metered(self, command: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        meter, started = Meter(), time.perf_counter()
        result = command(self._config, *args, on_event=meter, new_workers=self._workers.kept, **kwargs)
        return result, {
            "visits": sum(ref.record_visits for ref in meter.stages),
            "train_s": round(sum(ref.seconds for ref in meter.stages), 3),
            "job_s": round(time.perf_counter() - started, 2),
        }


@contextmanager
def measured(config: SisaConfig) -> Iterator[Measurement]:
    """Commands on the run of ``config``, in shard actors that are kept between them."""
    with Workers() as workers:
        yield Measurement(config, workers)
