"""Ingest at scale: Ray Data runs the tasks of a staged ingest.

Ray Data's own hash shuffle (``groupby().map_groups()``) would bring the records of a slice together in one
line. Its aggregators keep what they are given until the last block has come, so their memory grows with the
table, and what does not fit is spilled to temporary files of Ray's on every node, where no purge of ours can
show that nobody is left. So records travel through staged objects of the run instead
(:mod:`sisa_ray.storage.staging`), and Ray Data carries what tasks say about them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
import ray.data
import ray.exceptions

from sisa_ray.core import errors
from sisa_ray.core.errors import ExecutionError, SisaError, StorageError
from sisa_ray.core.records import SliceRef
from sisa_ray.storage.ingest import Ingested, IngestJob, described
from sisa_ray.storage.staging import Piece, StageReport, Staging

_MIN_PIECE_BYTES = 64 * 2**20
_MAX_PIECE_BYTES = 512 * 2**20
# What a worker holds at the peak of either phase: records as they are read, as they are ordered, and encoded.
# Ray runs no more tasks at once on a node than that leaves room for.
_MEMORY_PER_PIECE_BYTE = 8
_WORKER_BYTES = 150 * 2**20


def ingest_with_ray(
    job: IngestJob, *, piece_bytes: int | None = None, on_progress: Callable[[int], None] | None = None
) -> Ingested:
    """Ingest a table of any size on the Ray cluster that this process has joined.

    Args:
        job: what to bring where; its store must be within reach of every node.
        piece_bytes: records that a task holds at once; default: by the size of the table, 64 to 512 MiB.
        on_progress: is told how many rows are routed.

    Raises:
        DataError: listing rows that break rules. No slice is written then, and what was staged is deleted.
        ConfigError: where there are more shards than subjects; nothing stays then either.
        RecipeError: where the recipe's own check fails.
        ExecutionError: where a task fails for another reason, or Ray gives up on it.
    """
    if piece_bytes is None:
        # As many pieces as groups, and each group is read from each piece: larger tables have larger ones.
        piece_bytes = min(_MAX_PIECE_BYTES, max(_MIN_PIECE_BYTES, job.source.num_bytes // 256))
    staging = Staging.plan(job, piece_bytes=piece_bytes)
    try:
        ingested = _ingest(staging, on_progress)
    except BaseException:
        # What went wrong first is what matters: the next purge sweeps what cannot be deleted now.
        with suppress(StorageError):
            staging.clear()
        raise
    staging.clear()
    return ingested


def _ingest(staging: Staging, on_progress: Callable[[int], None] | None) -> Ingested:
    reports: list[StageReport] = []
    for answer in _run(_StageTask(staging), len(staging.parts), staging.piece_bytes):
        reports.append(StageReport.model_validate_json(answer))
        if on_progress is not None:
            on_progress(sum(report.num_rows for report in reports))
    pieces, tally = staging.checked(reports)
    slices: list[SliceRef] = []
    for answer in _run(_StoreTask(staging, pieces), len(staging.groups), staging.piece_bytes):
        slices += [SliceRef.model_validate(ref) for ref in json.loads(answer)]
    return staging.finished(slices, tally)


class _StageTask:
    """Do one task of the first phase."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return _guarded(lambda: self._staging.stage(row["task"]).model_dump_json())


class _StoreTask:
    """Do one task of the second phase."""

    def __init__(self, staging: Staging, pieces: list[Piece]) -> None:
        self._staging = staging
        self._pieces = pieces

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        def store() -> str:
            refs = self._staging.store_group(row["task"], self._pieces)
            return json.dumps([ref.model_dump(mode="json") for ref in refs])

        return _guarded(store)


def _guarded(task: Callable[[], str]) -> dict[str, Any]:
    """Errors travel as answers: Ray would wrap them in its own, and log what they quote."""
    try:
        return {"answer": task(), "error": "", "message": ""}
    except SisaError as error:
        return {"answer": "", "error": type(error).__name__, "message": str(error)}
    except Exception as error:
        return {
            "answer": "",
            "error": ExecutionError.__name__,
            "message": f"ingest failed: {described(error)}",
        }


def _run(task: Callable[[dict[str, Any]], dict[str, Any]], num_tasks: int, piece_bytes: int) -> Iterator[str]:
    """Answers of all tasks, as they come.

    Raises:
        SisaError: the first that a task raised.
        ExecutionError: where Ray gave up on a task.
    """
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    with ray.data.DataContext.current(context), _quiet():
        items = ray.data.from_items([{"task": n} for n in range(num_tasks)], override_num_blocks=num_tasks)
        answers = items.map(task, num_cpus=1, memory=_task_memory(piece_bytes))
        try:
            for row in answers.iter_rows():
                if row["error"]:
                    kind = getattr(errors, row["error"], errors.ExecutionError)
                    raise kind(row["message"])
                yield row["answer"]
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise ExecutionError(
                f"ingest failed: Ray gave up on a task: {type(error).__name__}: {reason}"
            ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray Data's news off the terminal, which shows progress already; its log files have them."""
    consoles = [h for h in logging.getLogger("ray.data").handlers if h.name == "console"]
    levels = [handler.level for handler in consoles]
    try:
        for handler in consoles:
            handler.setLevel(logging.ERROR)
        yield
    finally:
        for handler, level in zip(consoles, levels, strict=True):
            handler.setLevel(level)


def _task_memory(piece_bytes: int) -> int:
    """What a task may hold, in bytes; never more than any node has, or it would wait forever."""
    nodes = (node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"])
    return min(_WORKER_BYTES + _MEMORY_PER_PIECE_BYTE * piece_bytes, int(max(nodes, default=0)))
