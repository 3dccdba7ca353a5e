"""Workers of one shard as forked processes over gloo, without Ray: fast, for they import nothing anew."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import torch
import torch.distributed as dist
import torch.distributed.fsdp  # once, and not in every process that is forked

from sisa_ray.core.errors import WorkerLost
from sisa_ray.core.planner import ShardPlan
from sisa_ray.execution.actor import ActorContext, BuildJob, Emit
from sisa_ray.execution.gang_worker import GangWorker

T = TypeVar("T")
_PATIENCE_S = 120.0
_NOTICE_S = 1.0

living: list[int] = []
"""Processes of the gang at work, in the order of ranks: for those who kill."""


def forked_gang(
    context: ActorContext, job: BuildJob, plan: ShardPlan, emit: Emit, stopping: threading.Event
) -> None:
    """What :func:`sisa_ray.execution.gang.run_gang` promises, on this machine alone."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def hear() -> None:
        while receiver.poll():
            emit(receiver.recv())

    with receiver, sender:
        run_gang(
            context.spec.config.arithmetic.workers,
            lambda: GangWorker(context).work(job, plan, sender.send),
            meanwhile=hear,
        )


def run_gang(size: int, work: Callable[[], T], *, meanwhile: Callable[[], None] = lambda: None) -> list[T]:
    """``work`` in ``size`` processes that are one process group; their answers in the order of ranks.

    Raises:
        WorkerLost: where one was killed.
        Exception: what the first of them raised that is no consequence of another's end.
    """
    with tempfile.TemporaryDirectory() as place:
        living[:] = [_fork(rank, size, work, Path(place)) for rank in range(size)]
        try:
            _wait(living, meanwhile)
        finally:
            for pid in living:
                _end(pid)
            living.clear()
        answers = [_answer(Path(place) / str(rank)) for rank in range(size)]
    errors = [a for a in answers if isinstance(a, BaseException)]
    if errors:
        own = [e for e in errors if not isinstance(e, WorkerLost) and "gloo" not in str(e)]
        raise own[0] if own else WorkerLost("a worker was killed")
    return cast(list[T], answers)


def _fork(rank: int, size: int, work: Callable[[], T], place: Path) -> int:
    with warnings.catch_warnings(action="ignore"):  # other threads of the parent only wait
        pid = os.fork()
    if pid:
        return pid
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=size)
        answer: object = work()
    except BaseException as error:
        answer = error
    (place / f"{rank}.new").write_bytes(pickle.dumps(answer))
    (place / f"{rank}.new").rename(place / str(rank))
    os._exit(isinstance(answer, BaseException))


def _wait(children: list[int], meanwhile: Callable[[], None]) -> None:
    """Until all have ended; once one has failed, the others get a moment to notice."""
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + _PATIENCE_S
    while len(statuses) < len(children) and time.monotonic() < deadline:
        for pid in children:
            if pid not in statuses and (found := os.waitpid(pid, os.WNOHANG))[0]:
                statuses[pid] = found[1]
                if found[1]:
                    deadline = min(deadline, time.monotonic() + _NOTICE_S)
        meanwhile()
        time.sleep(0.002)
    meanwhile()


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def _answer(path: Path) -> object:
    return pickle.loads(path.read_bytes()) if path.exists() else WorkerLost("a worker left no answer")
