"""The coordinator as a detached Ray actor: started, found, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sisa_ray.core.errors import ExecutionError, RunConflict, SisaError
from sisa_ray.execution.acceptance import Acceptance, Submission
from sisa_ray.execution.baselines import baseline_in
from sisa_ray.execution.client import NAMESPACE, actor_name, find_actor, read_sign
from sisa_ray.execution.cluster import join_existing_ray
from sisa_ray.execution.commands import append_and_train_in, train_in
from sisa_ray.execution.coordinator import Coordinator, Report, Task
from sisa_ray.execution.desk import certificate_of, extend_in, find_request, lift_in, reject_in
from sisa_ray.execution.events import Event
from sisa_ray.execution.leases import Lease, Renewal
from sisa_ray.execution.opening import Target, address_of, existing_run
from sisa_ray.execution.results import RequestRow
from sisa_ray.execution.served import ServedRun, describe, spend
from sisa_ray.execution.verify import verify_in
from sisa_ray.storage.mirror import check_mirror
from sisa_ray.storage.tokens import TokenReader

TASKS: Mapping[str, Task] = {
    "train": train_in,
    "append": append_and_train_in,
    "verify": verify_in,
    "baseline": baseline_in,
    "extend": extend_in,
    "reject": reject_in,
    "lift": lift_in,
}
"""What a coordinator does on demand."""

_PASSED_ON = ("SISA_RAY_KEYRING", "SISA_RAY_SIGNING_KEY", "SISA_RAY_TOKENS", "SISA_RAY_STORAGE_PATIENCE_S")
"""Variables that say where secrets lie, not what they are; the actor has them from whoever starts it."""


class CoordinatorActor:
    """A coordinator in a process of its own. Ray starts it again when it dies; the log tells it where to go on."""

    def __init__(self, address: str) -> None:
        self._coordinator = Coordinator(address, tasks=TASKS, tokens=TokenReader().current)
        self._coordinator.start()

    async def submit(self, submissions: Sequence[Submission]) -> list[Acceptance | SisaError]:
        """See :meth:`Coordinator.submit`."""
        return await asyncio.wrap_future(self._coordinator.submit(submissions))

    async def call(self, task: str, arguments: dict[str, Any]) -> Any:
        """See :meth:`Coordinator.call`."""
        return await asyncio.wrap_future(self._coordinator.call(task, arguments))

    async def events_since(self, number: int) -> tuple[int, list[Event]]:
        """See :meth:`Coordinator.events_since`; from -1 only the number."""
        latest, events = self._coordinator.events_since(number)
        return latest, ([] if number < 0 else events)

    async def is_settled(self, requests: Sequence[str]) -> bool:
        """See :meth:`Coordinator.is_settled`."""
        return self._coordinator.is_settled(requests)

    async def report(self) -> Report:
        """See :meth:`Coordinator.report`."""
        return self._coordinator.report()

    async def renew(self, asked: Renewal) -> Lease:
        """See :meth:`Fence.renew`."""
        return await self._coordinator.fence.renew(asked)

    async def leave(self, replica: str) -> None:
        """See :meth:`Fence.leave`."""
        self._coordinator.fence.leave(replica)

    async def find_request(self, name: str) -> RequestRow | None:
        """See :func:`~sisa_ray.execution.desk.find_request`."""
        return find_request(self._coordinator.run, name)

    async def certificate_of(self, name: str) -> bytes | None:
        """See :func:`~sisa_ray.execution.desk.certificate_of`."""
        return await asyncio.to_thread(certificate_of, self._coordinator.run, name)

    async def describe(self) -> ServedRun:
        """See :func:`~sisa_ray.execution.served.describe`."""
        return describe(self._coordinator.run, self._coordinator.fence)

    async def spend(self, wanted: int) -> int:
        """See :func:`~sisa_ray.execution.served.spend`."""
        return await asyncio.to_thread(spend, self._coordinator.run, wanted)

    async def stop(self) -> None:
        """See :meth:`Coordinator.stop`."""
        await asyncio.to_thread(self._coordinator.stop)


_PATIENCE_S = 30.0

_REMOTE: Any = ray.remote(CoordinatorActor)


def start_coordinator(target: Target) -> Report:
    """Start the coordinator of a run on the Ray cluster that is there; one that runs already is left alone.

    Raises:
        ExecutionError: where there is no cluster that would outlive this command.
        RunNotFound, RunConflict, ConfigError: where the run cannot be coordinated.
    """
    run = existing_run(target)  # says what is wrong before anything is started
    if run.state.ingested is None:
        raise RunConflict(f"{run.address}: nothing is ingested yet; `sisa-ray ingest` comes first")
    check_mirror(run)
    _require_cluster()
    there = find_actor(run.address)
    if there is not None:
        report = _report_of(there, run.address)
        if report.status != "stopped":
            return report
        ray.kill(there)
    variables = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    # Its keyring is here. Were the node lost, it would start elsewhere, and say so if the keyring is not there.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    handle: Any = _REMOTE.options(
        name=actor_name(run.address),
        namespace=NAMESPACE,
        lifetime="detached",
        num_cpus=0,
        memory=1,  # of an actor that needs nothing at all, Ray chooses the node at random, whatever the strategy says
        max_restarts=-1,
        max_concurrency=1000,
        scheduling_strategy=here,
        runtime_env={"env_vars": variables},
    ).remote(run.address)
    return _report_of(handle, run.address)


def coordinator_report(target: Target) -> Report | None:
    """What the coordinator of a run says of itself; None where this machine finds none."""
    run = existing_run(target, check_code=False)
    handle = find_actor(run.address)
    return None if handle is None else _report_of(handle, run.address)


def _report_of(handle: Any, address: str) -> Report:
    """A coordinator's report, as it is or as it comes back."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            report: Report = ray.get(handle.report.remote())
        except (ActorDiedError, ActorUnavailableError) as error:
            if time.monotonic() > deadline:
                raise ExecutionError(
                    f"{address}: the coordinator does not start: {str(error).strip().splitlines()[-1]}"
                ) from None
            time.sleep(1.0)
        else:
            return report


def sign_of(target: Target) -> dict[str, Any] | None:
    """What a coordinator last said of itself in the run, where that is not long ago."""
    return read_sign(address_of(target))


def stop_coordinator(target: Target) -> bool:
    """Stop the coordinator of a run after the operation at hand; False where this machine finds none."""
    run = existing_run(target, check_code=False)
    handle = find_actor(run.address)
    if handle is None:
        return False
    with contextlib.suppress(ActorDiedError, ActorUnavailableError):  # it is down, and shall not come back
        ray.get(handle.stop.remote())
    ray.kill(handle)
    return True


def _require_cluster() -> None:
    if not join_existing_ray():
        raise ExecutionError(
            "no Ray cluster is running that would outlive this command; start one (`ray start --head`), or set "
            "RAY_ADDRESS to one"
        )
