"""Gangs on Ray Train itself: started, killed, given up, and the same bits as without Ray."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util import placement_group_table

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.errors import ExecutionError
from sisa_ray.execution import commands
from sisa_ray.execution.events import Event, Notice, StageProgress
from sisa_ray.execution.verify import verify
from tests.execution.tables import make_config, make_table
from tests.execution.test_gang import PEOPLE, digests, strays
from tests.support.inline import InlineWorkers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.usefixtures("ray_local")]

RESULTS = Path("~/ray_results").expanduser()
SLOW = {"class": "tests.execution.recipes.Slow", "args": {}}


def gang_config(directory: Path, workers: int, parallel: str, **changes: Any) -> SisaConfig:
    return make_config(
        directory,
        make_table(60),
        sisa={"num_shards": 1, "num_slices": 2, "epochs": 2},
        arithmetic={"workers": workers, "parallel": parallel},
        resources={"cpus_per_worker": 2 / workers},
        partial_checkpoint_every_s=0.05,
        **changes,
    )


def workers_of_ray_train() -> list[int]:
    """Processes of this test's own Ray that train."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                is_one = b"RayTrainWorker" in (process / "cmdline").read_bytes()
            except OSError:
                continue
            if is_one and _descends(int(process.name)):
                found.append(int(process.name))
    return sorted(found)


def _descends(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    return False


def killing(which: int, due: Callable[[StageProgress], bool]) -> tuple[Callable[[Event], None], list[str]]:
    """A listener that SIGKILLs one worker, once; and what it hears."""
    killed: list[int] = []
    notices: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Notice):
            notices.append(event.text)
        if not killed and isinstance(event, StageProgress) and due(event):
            killed.append(workers_of_ray_train()[which])
            os.kill(killed[0], signal.SIGKILL)

    return listen, notices


@pytest.mark.crash
@pytest.mark.parametrize(("workers", "parallel", "which"), [(2, "ddp", 0), (2, "fsdp", 1), (4, "fsdp", 3)])
def test_killed_inside_a_stage_forgotten_and_verified(
    tmp_path: Path, workers: int, parallel: str, which: int
) -> None:
    before = sorted(RESULTS.glob("*"))
    undisturbed = gang_config(tmp_path / "undisturbed", workers, parallel, recipe=SLOW)
    commands.train(undisturbed, new_workers=InlineWorkers)
    config = gang_config(tmp_path / "killed", workers, parallel, recipe=SLOW)
    listen, notices = killing(which, lambda event: event.step > 2)
    commands.train(config, on_event=listen)
    assert any("a worker died; going on" in text for text in notices)
    assert digests(config) == digests(undisturbed)
    commands.unlearn(config, PEOPLE)
    commands.unlearn(undisturbed, PEOPLE, new_workers=InlineWorkers)
    assert digests(config) == digests(undisturbed)
    assert verify(config).bit_identical
    # Nothing of Ray Train's own anywhere.
    assert strays(config) == set()
    assert sorted(RESULTS.glob("*")) == before
    assert_released()


def assert_released() -> None:
    """Every worker is gone, and what they held is free."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        groups = [g for g in placement_group_table().values() if g["state"] != "REMOVED"]
        if not groups and not workers_of_ray_train() and ray.available_resources().get("CPU") == 2.0:
            return
        time.sleep(0.2)
    pytest.fail(f"still there: {groups}, {workers_of_ray_train()}, {ray.available_resources()}")


def test_a_build_that_is_given_up_leaves_nothing_behind(tmp_path: Path) -> None:
    class GivenUp(Exception):
        pass

    def give_up(event: Event) -> None:
        if isinstance(event, StageProgress):
            raise GivenUp

    config = gang_config(tmp_path, 2, "ddp", recipe=SLOW)
    with pytest.raises(GivenUp):
        commands.train(config, on_event=give_up)
    assert_released()
    commands.train(config)
    assert verify(config, new_workers=InlineWorkers).bit_identical


def test_what_goes_wrong_on_a_worker_is_said(tmp_path: Path) -> None:
    raising = {"class": "tests.execution.recipes.Raising", "args": {}}
    with pytest.raises(ExecutionError, match="failed with RuntimeError: out of cheese"):
        commands.train(gang_config(tmp_path / "raising", 2, "ddp", recipe=raising))
    config = gang_config(tmp_path / "many", 4, "ddp")
    greedy = config.resources.model_copy(update={"cpus_per_worker": 1.0})
    with pytest.raises(ExecutionError, match=r"a shard needs 4 workers at once, .* has room for 2 "):
        commands.train(config.model_copy(update={"resources": greedy}))
    assert_released()
