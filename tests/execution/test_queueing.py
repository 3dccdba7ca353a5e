"""More shards than slots: they queue, no slot waits for anything but work, and a batch takes what it needs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import ray

from sisa_ray.core.partition import place
from sisa_ray.core.planner import ShardPlan, layouts_of
from sisa_ray.execution import commands
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.pool import Changes, ShardPool
from tests.execution.queueing_scenario import NUM_SHARDS, NUM_SLOTS, two_people
from tests.execution.tables import make_config, make_table

ROOT = Path(__file__).parents[2]
CPUS = 0.6
"""Of the two that there are: three slots."""
LET_GO_S = 60.0


class Builds:
    """Which shards were being built, each time that a pool asked for news: after every event, before the next work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[frozenset[int]] = []
        plain = ShardPool.build

        def build(pool: ShardPool, plans: Any, *, poll: Any, **others: Any) -> None:
            def look(building: Mapping[int, ShardPlan]) -> Changes | None:
                self.seen.append(frozenset(building))
                changes: Changes | None = poll(building)
                return changes

            plain(pool, plans, poll=look, **others)

        monkeypatch.setattr(ShardPool, "build", build)

    @property
    def most(self) -> int:
        return max(map(len, self.seen))

    @property
    def while_others_wait(self) -> list[int]:
        """How many were being built, from when all slots were there until nobody waited any more."""
        first = next(i for i, shards in enumerate(self.seen) if len(shards) == self.most)
        everybody = frozenset[int]().union(*self.seen)
        shown: set[int] = set()
        numbers: list[int] = []
        for i, shards in enumerate(self.seen):
            shown |= shards
            if shown == everybody:
                break
            if i >= first:
                numbers.append(len(shards))
        return numbers


@pytest.mark.usefixtures("ray_local")
def test_a_slot_that_is_free_is_taken_at_once_and_a_batch_takes_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(
        tmp_path,
        make_table(8 * NUM_SHARDS),
        sisa={"num_shards": NUM_SHARDS, "num_slices": 1, "epochs": 1},
        resources={"cpus_per_shard": CPUS},
    )
    all_of_it = ray.available_resources()["CPU"]
    builds = Builds(monkeypatch)
    commands.train(config)
    assert frozenset[int]().union(*builds.seen) == frozenset(range(NUM_SHARDS))
    assert builds.most == NUM_SLOTS
    # After an event that ends a shard's work its slot is free, and nothing else happens before it has the next one.
    assert set(builds.while_others_wait) <= {NUM_SLOTS - 1, NUM_SLOTS}

    builds.seen.clear()
    run = existing_run(config)
    people = two_people(config)
    shards, _ = place(people, layouts_of(run.spec, run.state)[0])
    result = commands.unlearn(config, people)
    assert set(result.shards_rebuilt) == set(map(int, shards))
    assert builds.most == 2
    deadline = time.monotonic() + LET_GO_S
    while ray.available_resources().get("CPU", 0.0) < all_of_it:
        assert time.monotonic() < deadline, "the slots are still taken"
        time.sleep(0.1)


@pytest.mark.slow
def test_fifty_shards_keep_three_slots_busy(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.execution.queueing_scenario", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["train"]["busy"] > 0.9
    assert said["train"]["slots"] == NUM_SLOTS
    assert said["unlearn"] == {"rebuilt": 2, "slots": 2}
    assert said["after"] == 0
