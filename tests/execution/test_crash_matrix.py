"""The crash matrix: SIGKILL at every point of a run's life; after restart and no other help, the same bits."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.execution.crash_scenario import Killer, Stage, in_child, outcome, serve

pytestmark = [pytest.mark.slow, pytest.mark.crash, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setenv("SISA_RAY_KEYRING", os.environ["SISA_RAY_KEYRING"])  # restored afterwards
    prepared = Stage(tmp_path / "prepared")
    assert in_child(prepared.prepare) == 0
    return prepared


def finished(stage: Stage, directory: Path) -> dict[str, object]:
    done = stage.copied_to(directory)
    assert in_child(lambda: serve(done)) == 0
    return outcome(done)


def test_the_coordinator_at_every_log_entry_and_object_operation(stage: Stage, tmp_path: Path) -> None:
    expected = finished(stage, tmp_path / "undisturbed")
    assert expected["open"] == (0, 0, 0, False)
    assert expected["strays"] == []
    num_points = 0
    for after in (False, True):
        number = 0
        while True:
            number += 1
            here = stage.copied_to(tmp_path / f"killed-{number}-{after}")

            def killed(place: Stage = here, number: int = number, after: bool = after) -> None:
                Killer(number, after=after).install()
                serve(place)

            status = in_child(killed)
            if status == 0:
                break  # there are no more operations
            point = f"operation {number}, {'after' if after else 'before'}"
            assert status == -signal.SIGKILL, point
            assert in_child(lambda place=here: serve(place)) == 0, point  # type: ignore[misc]
            assert outcome(here) == expected, point
            num_points += 1
    print(f"\ncoordinator killed at {num_points} points: all ended certified, in the same bits")  # noqa: T201 - for whoever asked
    assert num_points > 80


def on_ray(stage: Stage) -> subprocess.Popen[bytes]:
    """The scenario on a local Ray, in a session of its own."""
    program = (
        "import sys; from pathlib import Path; from tests.execution.crash_scenario import Stage, serve_on_ray; "
        "serve_on_ray(Stage(Path(sys.argv[1])))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, str(stage.directory)], cwd=ROOT, start_new_session=True
    )


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def num_entries(stage: Stage) -> int:
    return len(list((Path(stage.address) / "log").iterdir()))


def test_the_whole_of_ray_at_every_log_entry(stage: Stage, tmp_path: Path) -> None:
    undisturbed = stage.copied_to(tmp_path / "undisturbed")
    assert on_ray(undisturbed).wait() == 0
    expected = outcome(undisturbed)
    assert expected["open"] == (0, 0, 0, False)
    first, last = num_entries(stage), num_entries(undisturbed)
    for number in range(first + 1, last + 1):
        here = stage.copied_to(tmp_path / f"killed-{number}")
        process = on_ray(here)
        while num_entries(here) < number and process.poll() is None:
            time.sleep(0.001)
        kill(family(process.pid))
        process.wait()
        assert on_ray(here).wait() == 0, f"entry {number}"
        assert outcome(here) == expected, f"entry {number}"
    print(f"\nall of Ray killed at {last - first} log entries: all ended certified, in the same bits")  # noqa: T201 - for whoever asked


def test_shard_actors_in_every_stage(stage: Stage, tmp_path: Path) -> None:
    undisturbed = stage.copied_to(tmp_path / "undisturbed")
    assert on_ray(undisturbed).wait() == 0
    expected = outcome(undisturbed)
    first, last = num_entries(stage), num_entries(undisturbed)
    num_killed = 0
    for number in range(first + 1, last + 1):
        here = stage.copied_to(tmp_path / f"actor-{number}")
        process = on_ray(here)
        while num_entries(here) < number and process.poll() is None:
            time.sleep(0.001)
        actors = [pid for pid in family(process.pid) if is_shard_actor(pid)]
        kill(actors)
        num_killed += bool(actors)
        assert process.wait() == 0, f"entry {number}"
        assert outcome(here) == expected, f"entry {number}"
    print(f"\nshard actors killed at {num_killed} log entries: all ended certified, in the same bits")  # noqa: T201 - for whoever asked
    assert num_killed > 10


def is_shard_actor(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::ShardActor")
    return False
