"""Fifty shards on three slots, then a batch of two shards: a program with a Ray of its own, for the test.

The GPUs are three for Ray's books; the shards compute on the CPU, slowly. It prints, as JSON, how busy the slots were
and how many of them were occupied at most.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from pathlib import Path

import ray

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.partition import place
from sisa_ray.core.planner import layouts_of
from sisa_ray.execution import commands
from sisa_ray.execution.events import Event, StageFinished
from sisa_ray.execution.opening import existing_run
from tests.execution.tables import make_config, make_table

NUM_SLOTS = 3
NUM_SHARDS = 50
_LET_GO_S = 30.0
_LOOK_S = 0.1


class Occupied(threading.Thread):
    """Looks how many slots are occupied."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0

    def run(self) -> None:
        while ray.is_initialized():
            self.most = max(self.most, self.now())
            time.sleep(_LOOK_S)

    @staticmethod
    def now() -> int:
        return NUM_SLOTS - int(ray.available_resources().get("GPU", 0.0))


class Stages:
    """When each stage was finished, and how long it took."""

    def __init__(self) -> None:
        self._times: list[tuple[float, float]] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, StageFinished):
            self._times.append((time.monotonic(), event.ref.seconds))

    @property
    def busy(self) -> float:
        """The part of the slots' time, from the first stage's start to the last one's end, in which stages trained."""
        first = min(end - seconds for end, seconds in self._times)
        last = max(end for end, _ in self._times)
        return sum(seconds for _, seconds in self._times) / (NUM_SLOTS * (last - first))


def two_people(config: SisaConfig) -> list[str]:
    """Two whose shards are not the same."""
    run = existing_run(config)
    people = [f"p{i}" for i in range(100)]
    shards, _ = place(people, layouts_of(run.spec, run.state)[0])
    return [people[0], next(p for p, shard in zip(people, shards, strict=True) if shard != shards[0])]


def main(directory: Path) -> None:
    """Train, forget, tell."""
    ray.init(
        address="local",
        num_cpus=8,
        num_gpus=NUM_SLOTS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    config = make_config(
        directory,
        make_table(16 * NUM_SHARDS),
        recipe={"class": "tests.execution.recipes.Slow"},
        sisa={"num_shards": NUM_SHARDS, "num_slices": 2, "epochs": 12},
        resources={"gpus_per_shard": 1, "cpus_per_shard": 0.1},
    )
    stages, occupied = Stages(), Occupied()
    occupied.start()
    commands.train(config, on_event=stages)
    trained = {"busy": stages.busy, "slots": occupied.most}
    occupied.most = 0
    result = commands.unlearn(config, two_people(config))
    forgotten = {"rebuilt": len(result.shards_rebuilt), "slots": occupied.most}
    deadline = time.monotonic() + _LET_GO_S
    while occupied.now() and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
    sys.stdout.write(json.dumps({"train": trained, "unlearn": forgotten, "after": occupied.now()}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
