"""A crash at any operation on storage, and the death of any actor, end in the bits of the undisturbed run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from sisa_ray.core.config import SisaConfig
from sisa_ray.execution import commands
from sisa_ray.execution.events import Event, Notice, StageFinished, StageProgress
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.verify import verify
from sisa_ray.storage.layout import PERMANENT
from sisa_ray.storage.local import LocalStore
from tests.execution.tables import make_config, make_table
from tests.support.inline import InlineWorkers

PEOPLE = ["p1", "p2", "p40"]


class Crash(BaseException):
    """The process dies: nothing catches it."""


def work(config: SisaConfig) -> None:
    """Train and forget, from wherever the run is."""
    commands.train(config, new_workers=InlineWorkers)
    commands.unlearn(config, PEOPLE, new_workers=InlineWorkers)


def outcome(config: SisaConfig) -> dict[str, Any]:
    state = existing_run(config).state
    files = {p.relative_to(config.address).as_posix() for p in Path(config.address).rglob("*") if p.is_file()}
    named = {ref.path for ref in state.slices.values()} | {ref.path for ref in state.stages.values()}
    return {
        "bits": {place: ref.file_digest for place, ref in state.stages.items()},
        "contents": {place: ref.num_records for place, ref in state.slices.items()},
        "open": (len(state.requests), len(state.batches), state.purge_due),
        "strays": {f for f in files - named if not f.startswith(PERMANENT)},
    }


def crash_at(monkeypatch: pytest.MonkeyPatch, number: int, *, after: bool) -> list[int]:
    """Have the ``number``-th write or deletion crash, before or after it took effect."""
    count = [0]

    def wrap(name: str) -> None:
        original: Callable[..., Any] = getattr(LocalStore, name)

        def wrapped(self: LocalStore, *args: Any) -> Any:
            count[0] += 1
            mine = count[0] == number  # other threads go on counting
            if mine and not after:
                raise Crash
            result = original(self, *args)
            if mine:
                raise Crash
            return result

        monkeypatch.setattr(LocalStore, name, wrapped)

    for name in ("put", "create", "delete"):
        wrap(name)
    return count


def small(directory: Path) -> SisaConfig:
    return make_config(directory, make_table(60), sisa={"num_shards": 2, "num_slices": 2, "epochs": 2})


@pytest.mark.crash
@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_every_operation_on_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    undisturbed = small(tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        count = crash_at(patch, -1, after=False)
        work(undisturbed)
    expected = outcome(undisturbed)
    assert expected["open"] == (0, 0, False)
    assert not expected["strays"]
    assert count[0] > 30
    for number in range(1, count[0] + 1):
        config = small(tmp_path / f"crash-{number}")
        with monkeypatch.context() as patch:
            crash_at(patch, number, after=after)
            with pytest.raises(Crash):
                work(config)
        work(config)
        assert outcome(config) == expected, f"crash at operation {number}"


def kill_actor_when(
    condition: Callable[[Event], bool], times: int
) -> tuple[Callable[[Event], None], list[str]]:
    """An event callback that SIGKILLs every shard actor's process when ``condition`` says so."""
    killed: list[str] = []
    notices: list[str] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Notice):
            notices.append(event.text)
        if len(killed) < times and condition(event):
            killed.append(str(event))
            for line in Path("/proc").iterdir():
                if line.name.isdigit() and _is_shard_actor(line):
                    os.kill(int(line.name), signal.SIGKILL)

    return on_event, notices


def _is_shard_actor(process: Path) -> bool:
    """Whether it is a shard actor of this test's own Ray: other test processes have theirs."""
    try:
        return (process / "cmdline").read_bytes().startswith(b"ray::ShardActor") and _descends(process)
    except OSError:
        return False


def _descends(process: Path) -> bool:
    pid = int(process.name)
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


@pytest.mark.crash
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("inside", [False, True])
def test_sigkill_of_shard_actors(tmp_path: Path, stage: int, inside: bool) -> None:
    undisturbed = make_config(tmp_path / "undisturbed", make_table(90))
    commands.train(undisturbed, new_workers=InlineWorkers)
    config = make_config(
        tmp_path / "killed",
        make_table(90),
        recipe={"class": "tests.execution.recipes.Slow", "args": {}} if inside else None,
        partial_checkpoint_every_s=0.05,
    )

    def due(event: Event) -> bool:
        if inside:
            return isinstance(event, StageProgress) and event.stage == stage and event.step > 2
        return isinstance(event, StageFinished) and event.ref.stage == stage

    on_event, notices = kill_actor_when(due, times=1)
    commands.train(config, on_event=on_event)
    assert any("died" in text for text in notices)
    assert outcome(config)["strays"] == set()
    assert ray.is_initialized()
    assert verify(config, new_workers=InlineWorkers).bit_identical
    if not inside:
        assert outcome(config)["bits"] == outcome(undisturbed)["bits"]
