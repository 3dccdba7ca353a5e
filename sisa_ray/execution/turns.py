"""Jobs on one run take turns: the first works, those after it follow its progress, and then find the work done.

It saves work and nothing depends on it: whoever works on a run is decided in the run's own log, where the latest
session supersedes those before it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sisa_ray.core.errors import RunNotFound, StorageError
from sisa_ray.core.places import Place
from sisa_ray.core.planner import Lineage, missing_stages
from sisa_ray.execution.client import NAMESPACE
from sisa_ray.execution.cluster import ensure_ray
from sisa_ray.execution.events import Notice, OnEvent, StageFinished, WorkPlanned, ignore
from sisa_ray.storage.run import Run, open_run

_LOOK_S = 2.0
_AGAIN_S = 0.2


@contextmanager
def turn(address: str, *, command: str, on_event: OnEvent = ignore) -> Iterator[None]:
    """Have the run at ``address`` to oneself among the jobs of this cluster, once those before have ended.

    Args:
        address: of the run, which need not be there yet.
        command: what this job does, for those that wait.
        on_event: receives the progress of the job that is waited for.

    Raises:
        ClusterError: where the cluster cannot be joined.
    """
    ensure_ray()
    name = f"turn:{address}"
    while (held := _take(name, command)) is None:
        _follow(name, address, on_event)
        time.sleep(_AGAIN_S)
    try:
        yield
    finally:
        ray.kill(held)


class _Turn:
    """Held while a job works on a run: Ray has one actor of that name at most, and ends it with its job."""

    def __init__(self, command: str) -> None:
        job = ray.get_runtime_context().get_job_id()
        self._description = f"job {job} ({command})"

    async def describe(self) -> str:
        """Whose turn it is."""
        return self._description

    async def outlast(self) -> None:
        """Never returns: the caller learns when the turn has ended."""
        await asyncio.Event().wait()


_REMOTE: Any = ray.remote(_Turn)


def _take(name: str, command: str) -> Any | None:
    """The turn, or None where somebody has it."""
    # On the node of the job itself, so that the two die together.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    try:
        held = _REMOTE.options(
            name=name, namespace=NAMESPACE, num_cpus=0, scheduling_strategy=here, max_concurrency=1000
        ).remote(command)
    except ValueError:  # the name is taken
        return None
    ray.get(held.describe.remote())
    return held


def _follow(name: str, address: str, on_event: OnEvent) -> None:
    """Report what happens to the run until the turn at work has ended."""
    try:
        holder = ray.get_actor(name, namespace=NAMESPACE)
        who: Any = ray.get(holder.describe.remote())
    except (ValueError, RayActorError):
        return  # just now
    on_event(Notice(text=f"{who} is at work on the run; following it"))
    end = holder.outlast.remote()
    news = _News(address, on_event)
    while not ray.wait([end], timeout=_LOOK_S)[0]:
        news.tell()


class _News:
    """Tells what the log of a run says of the stages that are being built."""

    def __init__(self, address: str, on_event: OnEvent) -> None:
        self._address = address
        self._on_event = on_event
        self._run: Run | None = None
        self._seen: dict[Place, str] | None = None

    def tell(self) -> None:
        """Report what was built since the last look."""
        try:
            if self._run is None:
                self._run = open_run(self._address)
            self._run.refresh(is_whole=False)
        except (RunNotFound, StorageError):  # not there yet, or away: the job at work will say so
            return
        run = self._run
        if run.state.ingested is None:
            return
        stages = dict(run.state.stages)
        if self._seen is None:
            plans = missing_stages(run.spec, run.state, Lineage(run.spec, run.state))
            self._on_event(
                WorkPlanned(
                    num_shards=len(plans),
                    num_stages=sum(len(p.stages) for p in plans),
                    num_steps=sum(p.num_steps for p in plans),
                )
            )
        else:
            for place, ref in stages.items():
                if self._seen.get(place) != ref.key:
                    self._on_event(StageFinished(ref=ref))
        self._seen = {place: ref.key for place, ref in stages.items()}
