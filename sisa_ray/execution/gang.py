"""Several workers for one shard, through Ray Train: started together, ended together, and started again by our pool.

Ray Train schedules the workers as a gang and makes them a process group. It is given no storage: what it would
keep there (checkpoints, and the metrics reported with them) is ours to keep, and so it writes nothing that a purge
would have to find. It restarts nothing either: a gang that loses a worker ends, and the pool starts the shard anew
from its last committed or mid-stage checkpoint, as it does with an actor that died.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any

import fsspec
import ray
import torch.distributed as dist
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray import train
from ray.exceptions import RayActorError
from ray.train import FailureConfig
from ray.train.torch import TorchConfig, TorchTrainer

from sisa_ray.core.errors import SisaError, WorkerLost
from sisa_ray.core.placement import worker_slot_of
from sisa_ray.core.planner import ShardPlan
from sisa_ray.execution.actor import ActorContext, BuildJob, Emit
from sisa_ray.execution.events import ShardEvent
from sisa_ray.execution.failures import of_recipe
from sisa_ray.execution.gang_worker import GangWorker
from sisa_ray.execution.logs import shard_log

_POLL_S = 0.1
_RUN_CONFIG: Any = train.RunConfig  # typed as they were before Ray Train V2
_SCALING_CONFIG: Any = train.ScalingConfig

_SETTINGS = {
    # Read in the process that calls fit(): workers stay in their directory, and a death is noticed within a second.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Other workers' output is theirs.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}

NCCL = {
    "NCCL_ALGO": "Ring",
    "NCCL_PROTO": "Simple",
    "NCCL_MIN_NCHANNELS": "4",
    "NCCL_MAX_NCHANNELS": "4",
    "NCCL_NVLS_ENABLE": "0",
    "NCCL_COLLNET_ENABLE": "0",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
"""What NCCL is held to, though no sum is left to it: see :mod:`sisa_ray.learning.team`."""


def run_gang(
    context: ActorContext, job: BuildJob, plan: ShardPlan, emit: Emit, stopping: threading.Event
) -> None:
    """Build the stages of ``plan`` with the workers that the spec asks for. It waits for room for all of them.

    Raises:
        WorkerLost: where a worker died, or ``stopping`` was set.
        SisaError: what the recipe or its data did wrong.
    """
    os.environ.update({name: value for name, value in _SETTINGS.items() if name not in os.environ})
    board = _BOARD.options(num_cpus=0).remote()
    spec = context.spec
    slot, config = worker_slot_of(spec.config), spec.config
    has_gpu = slot.num_gpus > 0
    each = {"CPU": slot.num_cpus} | ({"GPU": slot.num_gpus} if has_gpu else {})
    trainer = TorchTrainer(
        partial(_work, context, job, plan, board),
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if has_gpu else "gloo"),
        scaling_config=_SCALING_CONFIG(
            num_workers=config.arithmetic.workers,
            use_gpu=has_gpu,
            resources_per_worker=each,
            placement_strategy="SPREAD" if config.resources.strategy == "spread" else "PACK",
            accelerator_type=slot.accelerator_type,
            label_selector=dict(slot.labels) or None,
        ),
        run_config=_RUN_CONFIG(
            name=f"sisa_ray-{spec.config.name}-shard-{plan.shard:05d}",
            storage_path="/nowhere",
            storage_filesystem=PyFileSystem(FSSpecHandler(fsspec.filesystem("memory"))),
            failure_config=FailureConfig(max_failures=0),
            worker_runtime_env={"env_vars": NCCL} if has_gpu else None,
        ),
    )
    with ThreadPoolExecutor(1, thread_name_prefix="gang") as threads:
        fit = threads.submit(trainer.fit)
        while not fit.done():
            _pass_on(board, emit, stop=stopping.is_set())
            time.sleep(_POLL_S)
        errors = _pass_on(board, emit)
        problem = fit.exception()
    if problem is None:
        return
    own = [errors[rank] for rank in sorted(errors) if not _is_loss(errors[rank])]
    if not own:
        raise WorkerLost(f"shard {plan.shard}: {str(problem).strip().splitlines()[-1]}")
    raise own[0] if isinstance(own[0], SisaError) else of_recipe(own[0], plan.shard)


def _work(context: ActorContext, job: BuildJob, plan: ShardPlan, board: Any) -> None:
    """What Ray Train runs on every worker."""

    def post(event: ShardEvent) -> None:
        if ray.get(board.post.remote(event)):
            raise WorkerLost("the build was given up")

    rank = dist.get_rank()
    try:
        with shard_log(context.spec.config.name, plan.shard) if rank == 0 else nullcontext() as logger:
            if logger is not None:
                stages = plan.stages[0].stage, plan.stages[-1].stage
                logger.info("building stages %d to %d with %d workers", *stages, dist.get_world_size())
            GangWorker(context).work(job, plan, post)
    except BaseException as error:
        # Ray Train would wrap it, and the first to be seen may be one whose neighbour was lost.
        ray.get(board.fail.remote(rank, error))
        raise


class _Board:
    """Where workers say what happens, and read whether to go on: an actor, since none of them calls the other."""

    def __init__(self) -> None:
        self._events: list[ShardEvent] = []
        self._errors: dict[int, BaseException] = {}
        self._is_stopped = False

    def post(self, event: ShardEvent) -> bool:
        self._events.append(event)
        return self._is_stopped

    def fail(self, rank: int, error: BaseException) -> None:
        self._errors[rank] = error

    def take(self, stop: bool) -> tuple[list[ShardEvent], dict[int, BaseException]]:
        self._is_stopped = self._is_stopped or stop
        events, self._events = self._events, []
        return events, self._errors


_BOARD: Any = ray.remote(_Board)


def _pass_on(board: Any, emit: Emit, *, stop: bool = False) -> dict[int, BaseException]:
    """Emit what was posted since the last time; the errors so far, by rank."""
    try:
        events, errors = ray.get(board.take.remote(stop))
    except RayActorError as error:
        raise WorkerLost(f"the board of a gang died: {error}") from None
    for event in events:
        emit(event)
    found: dict[int, BaseException] = errors
    return found


def _is_loss(error: BaseException) -> bool:
    """Whether a worker says no more than that another one is gone: gloo has no error of its own, NCCL has."""
    return isinstance(error, (WorkerLost, dist.DistError)) or "gloo" in str(error)
