"""Workers of one shard as forked processes over gloo, without Ray: fast, for they import nothing anew."""

from __future__ import annotations

import os
import pickle
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
_PATIENCE_S = 120.0


class WorkerDied(Exception):
    """A worker ended without an answer."""


def run_gang(size: int, work: Callable[[], T]) -> list[T]:
    """``work`` in ``size`` processes that are one process group; their answers in the order of ranks.

    Raises:
        WorkerDied: where one was killed.
        Exception: what the first of them raised that is no consequence of another's end.
    """
    with tempfile.TemporaryDirectory() as place:
        children = [_fork(rank, size, work, Path(place)) for rank in range(size)]
        try:
            statuses = _wait(children)
        finally:
            for pid in children:
                _end(pid)
        answers = [_answer(Path(place) / str(rank)) for rank in range(size)]
    errors = [a for a in answers if isinstance(a, BaseException)]
    own = [e for e in errors if "gloo" not in str(e).lower()]
    if any(os.WIFSIGNALED(status) for status in statuses if status is not None) and not own:
        raise WorkerDied("a worker was killed")
    if errors:
        raise (own or errors)[0]
    return [a for a in answers if not isinstance(a, BaseException)]


def _fork(rank: int, size: int, work: Callable[[], T], place: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    # Threads do not survive a fork: nothing here may wait for one of the parent's.
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=size)
        answer: object = work()
    except BaseException as error:
        answer = error
    (place / f"{rank}.new").write_bytes(pickle.dumps(answer))
    (place / f"{rank}.new").rename(place / str(rank))
    os._exit(isinstance(answer, BaseException))


def _wait(children: list[int]) -> list[int | None]:
    """Exit statuses; once one has failed, the others get a moment to notice."""
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + _PATIENCE_S
    while len(statuses) < len(children) and time.monotonic() < deadline:
        for pid in children:
            if pid not in statuses and (found := os.waitpid(pid, os.WNOHANG))[0]:
                statuses[pid] = found[1]
                if found[1]:
                    deadline = min(deadline, time.monotonic() + 1.0)
        time.sleep(0.002)
    return [statuses.get(pid) for pid in children]


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def _answer(path: Path) -> object:
    return pickle.loads(path.read_bytes()) if path.exists() else WorkerDied("a worker left no answer")
