"""Real shard actors: what many of them take that have nothing to do yet, and what a second one at work brings."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from _simulated import spec_of

from sisa_ray.core.config import SisaConfig
from sisa_ray.execution import commands
from sisa_ray.execution.actor import ActorContext
from sisa_ray.execution.events import Event, StageFinished
from sisa_ray.execution.shell import ShardActorProcess
from sisa_ray.service.environment import quiet_ray

_LEAST_FREE_MIB = 3000
_AT_ONCE = 10
_OBJECT_STORE_BYTES = 2**28
_SPEEDUP_SHARDS = 8
_SPEEDUP_FEATURES = 600
_SPEEDUP_RECORDS = 16_000


def many_actors(directory: Path, *, num_actors: int) -> dict[str, Any]:
    """Start so many actors on this machine; seconds until the last is there, and the memory that they take."""
    _start_ray(num_cpus=num_actors)
    context = [ray.put(ActorContext(spec=spec_of(directory, num_shards=1, num_slices=1), search_path=()))]
    free_mib, started = _available_mib(), time.perf_counter()
    process: Any = ray.remote(ShardActorProcess)
    actors: list[Any] = []
    while len(actors) < num_actors:
        some = [process.remote(context) for _ in range(min(_AT_ONCE, num_actors - len(actors)))]
        ray.get([actor.__ray_ready__.remote() for actor in some])
        actors += some
        if _available_mib() < _LEAST_FREE_MIB:
            break  # the figures then say how many there were
    start_s = time.perf_counter() - started
    taken_mib = free_mib - _available_mib()
    pids = _actor_pids()
    assert len(pids) == len(actors)
    figures = {
        "actors": len(actors),
        "cores": os.cpu_count(),
        "start_s": round(start_s, 1),
        "actors_a_second": round(len(actors) / start_s, 1),
        "pss_mib_each": round(sum(map(_pss_mib, pids)) / len(pids), 1),
        "machine_gib": round(taken_mib / 1024, 1),
        "with_torch": sum(_has_torch(pid) for pid in pids),
    }
    started = time.perf_counter()
    ray.shutdown()
    return {**figures, "end_s": round(time.perf_counter() - started, 1)}


def speedup(directory: Path) -> dict[str, Any]:
    """Train the same run by one worker and by two; the part of twice the speed that comes out of it.

    From the start of the first stage to the end of the last: the ingest and the start of Ray are not in it.
    """
    _write_table(directory / "train.parquet")
    seconds: dict[int, float] = {}
    busy: dict[int, float] = {}
    for num_workers in (1, 2):
        _start_ray(num_cpus=num_workers)
        stages: list[tuple[float, float]] = []

        def note(event: Event, stages: list[tuple[float, float]] = stages) -> None:
            if isinstance(event, StageFinished):
                stages.append((time.monotonic(), event.ref.seconds))

        commands.train(_configuration(directory, f"of-{num_workers}"), on_event=note)
        first = min(end - taken for end, taken in stages)
        seconds[num_workers] = max(end for end, _ in stages) - first
        busy[num_workers] = sum(taken for _, taken in stages) / (num_workers * seconds[num_workers])
        ray.shutdown()
    return {
        "shards": _SPEEDUP_SHARDS,
        "one_worker_s": round(seconds[1], 1),
        "two_workers_s": round(seconds[2], 1),
        "efficiency": round(seconds[1] / (2 * seconds[2]), 3),
        "busy": {str(workers): round(part, 3) for workers, part in busy.items()},
    }


def _start_ray(*, num_cpus: int) -> None:
    quiet_ray()
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=_OBJECT_STORE_BYTES,
    )


def _write_table(path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, size=_SPEEDUP_RECORDS)
    features = rng.normal(size=(_SPEEDUP_RECORDS, _SPEEDUP_FEATURES)).astype(np.float32) + labels[:, None]
    table = pa.table(
        {
            "id": pa.array([f"customer-{i:06d}" for i in range(_SPEEDUP_RECORDS)]),
            "x": pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), _SPEEDUP_FEATURES),
            "y": pa.array(labels, pa.int64()),
        }
    )
    pq.write_table(table, path)


def _configuration(directory: Path, name: str) -> SisaConfig:
    """A run whose steps are long sums on one core."""
    return SisaConfig.from_mapping(
        {
            "name": name,
            "storage_path": str(directory / "runs"),
            "data": {
                "train": str(directory / "train.parquet"),
                "record_id": "id",
                "columns": {"features": "x", "label": "y"},
            },
            "recipe": {
                "class": "sisa_ray.recipes.MLPClassifier",
                "args": {"hidden": [512, 512], "num_classes": 2, "lr": 0.01, "batch_size": 64},
            },
            "sisa": {"num_shards": _SPEEDUP_SHARDS, "num_slices": 2, "epochs": 30, "seed": 0},
            "arithmetic": {"device": "cpu", "threads": 1},
        }
    )


def _actor_pids() -> list[int]:
    """The processes of the actors: those below this one."""
    parents = {int(p.name): int(_fields(p)[1]) for p in Path("/proc").iterdir() if p.name.isdigit()}

    def is_ours(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    name = f"ray::{ShardActorProcess.__name__}"
    return [pid for pid in parents if is_ours(pid) and name in Path(f"/proc/{pid}/cmdline").read_text()]


def _fields(process: Path) -> list[str]:
    """State, parent and so on, of a process."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["X", "0"]


def _pss_mib(pid: int) -> float:
    """Memory of a process, what it shares with others counted in parts."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _has_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def _available_mib() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) / 1024
