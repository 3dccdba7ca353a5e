"""What the crash matrix does to a run: two batches and an append, by a process that can be killed at any point.

The process stands for a user as well: what was not answered is asked for again, under the same key.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.errors import DataError
from sisa_ray.execution import client, commands, hosting, sign
from sisa_ray.execution.acceptance import Submission
from sisa_ray.execution.coordinator import Coordinator
from sisa_ray.execution.opening import existing_run
from sisa_ray.storage import layout, mirror
from sisa_ray.storage.local import LocalStore
from tests.execution.tables import make_config, make_table
from tests.support.inline import InlineWorkers

FIRST = (("p1", "p2"), ("p30",))
SECOND = (("p3", "a1"), ("p41", "nobody"))
MUTATING = ("put", "create", "delete")


class Stage:
    """A place with a run in it, and what belongs to it: its keyring and the tables."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.keys = directory / "keys"
        self.address = str(directory / "storage" / "run")
        self.appended = str(directory / "a.parquet")

    def prepare(self) -> SisaConfig:
        """Train a small run (2 shards × 2 slices) and lay out the table to append."""
        os.environ["SISA_RAY_KEYRING"] = str(self.keys)
        config = make_config(
            self.directory, make_table(60), sisa={"num_shards": 2, "num_slices": 2, "epochs": 2}
        )
        commands.train(config, new_workers=InlineWorkers)
        table = make_table(20, seed=9)
        for column in ("id", "person"):
            names = [f"a{i}" for i in range(20)]
            table = table.set_column(table.schema.get_field_index(column), column, [names])
        pq.write_table(table, self.appended)
        return config

    def copied_to(self, directory: Path) -> Stage:
        """The same place elsewhere: the run has moved, which shows in no bit."""
        shutil.copytree(self.directory, directory)
        return Stage(directory)


def serve(stage: Stage) -> None:
    """Coordinate the run in this process until everything that will be asked for is done."""
    os.environ["SISA_RAY_KEYRING"] = str(stage.keys)
    here = Coordinator(stage.address, tasks=hosting.TASKS, new_workers=InlineWorkers)
    here.start()
    _ask(
        submit=lambda submissions: here.submit(submissions).result(),
        is_settled=here.is_settled,
        append=lambda: here.call("append", {"table": stage.appended}).result(),
    )
    here.stop()


def serve_on_ray(stage: Stage) -> None:
    """The same with a detached coordinator and real shard actors on a local Ray of this process's own."""
    os.environ["SISA_RAY_KEYRING"] = str(stage.keys)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    hosting.start_coordinator(stage.address)
    reached = client.ActorClient(stage.address, client.find_actor(stage.address))
    _ask(
        submit=reached.submit,
        is_settled=lambda requests: bool(reached.is_settled(requests)),
        append=lambda: reached.call("append", table=stage.appended),
    )
    hosting.stop_coordinator(stage.address)
    ray.shutdown()


def _ask(*, submit: Callable[..., Any], is_settled: Callable[..., bool], append: Callable[[], Any]) -> None:
    for group, people in (("first", FIRST), ("second", SECOND)):
        asked = [Submission(subjects=p, key=f"{group} {n}") for n, p in enumerate(people)]
        names = [answer.request for answer in submit(asked)]
        while not is_settled(names):
            time.sleep(0.002)
        if group == "first":
            try:
                append()
            except DataError as error:
                if "is in the run already" not in str(error):  # appended before the crash
                    raise


def outcome(stage: Stage) -> dict[str, Any]:
    """What must not depend on crashes."""
    os.environ["SISA_RAY_KEYRING"] = str(stage.keys)
    state = existing_run(stage.address).state
    root = Path(stage.address)
    files = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    named = {ref.path for ref in state.slices.values()} | {ref.path for ref in state.stages.values()}
    requests = state.closed_requests.values()
    return {
        "bits": {place: ref.file_digest for place, ref in state.stages.items()},
        "contents": {place: ref.content_digest for place, ref in state.slices.items()},
        "requests": sorted((len(r.tags), state.request_state(r)) for r in requests),
        "suppressed": sorted(state.suppressed),
        "open": (len(state.requests), len(state.batches), len(state.uncertified), state.purge_due),
        "strays": sorted(f for f in files - named if not f.startswith(layout.PERMANENT)),
        "uncertified files": sorted(
            b.certificate or "" for b in state.closed_batches.values() if b.certificate not in files
        ),
    }


def in_child(work: Callable[[], object], *, timeout_s: float = 120) -> int:
    """Do ``work`` in a forked process; its exit status, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            work()
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)  # noqa: T201 - a child has no other way
        finally:
            os._exit(status)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 124


class Killer:
    """Kills this process at its n-th durable operation, before or after it took effect."""

    def __init__(self, number: int, *, after: bool, only_log: bool = False) -> None:
        self._number = number
        self._after = after
        self._only_log = only_log
        self._lock = threading.Lock()
        self.count = 0

    def install(self) -> None:
        """Have every operation on storage pass through here. The sign of life is not counted: its time is not ours."""
        sign.HEARTBEAT_S = 3600.0
        for name in MUTATING:
            setattr(LocalStore, name, self._wrapped(getattr(LocalStore, name)))
        mirror.append_to_mirror = self._counted(mirror.append_to_mirror)

    def _wrapped(self, original: Callable[..., Any]) -> Callable[..., Any]:
        counted = self._counted(original)

        def operation(store: LocalStore, path: Any, *rest: Any) -> Any:
            paths: Sequence[str] = [path] if isinstance(path, str) else (path := list(path))
            skipped = layout.COORDINATOR in paths or not paths
            if skipped or (self._only_log and not paths[0].startswith(layout.LOG)):
                return original(store, path, *rest)
            return counted(store, path, *rest)

        return operation

    def _counted(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **named: Any) -> Any:
            with self._lock:
                self.count += 1
                mine = self.count == self._number
            if mine and not self._after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*args, **named)
            if mine:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return operation
