"""The coordinator from where a replica stands: asked without waiting for its thread, found again when it comes back."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from sisa_ray.core.errors import ExecutionError, SisaError
from sisa_ray.execution.acceptance import Acceptance, Submission
from sisa_ray.execution.client import NAMESPACE, actor_name
from sisa_ray.execution.leases import Lease, Renewal
from sisa_ray.execution.results import RequestRow
from sisa_ray.execution.served import ServedRun


class CoordinatorAway(ExecutionError):
    """The coordinator cannot be reached now; it comes back by itself, or is to be started."""


class RemoteCoordinator:
    """The coordinator of a run on this cluster.

    Every method raises :class:`CoordinatorAway` where it does not answer, and what it raised itself else.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._handle: Any = None

    async def renew(self, asked: Renewal) -> Lease:
        """See :meth:`Fence.renew`."""
        lease: Lease = await self._ask(lambda actor: actor.renew.remote(asked))
        return lease

    async def leave(self, replica: str) -> None:
        """See :meth:`Fence.leave`."""
        await self._ask(lambda actor: actor.leave.remote(replica))

    async def submit(self, submissions: Sequence[Submission]) -> list[Acceptance | SisaError]:
        """Have requests accepted. Those without an idempotency key get one, so that nothing is accepted twice."""
        keyed = [s if s.key else replace(s, key=uuid.uuid4().hex) for s in submissions]
        answers: list[Acceptance | SisaError] = await self._ask(lambda actor: actor.submit.remote(keyed))
        return answers

    async def find_request(self, name: str) -> RequestRow | None:
        """A request by its id."""
        row: RequestRow | None = await self._ask(lambda actor: actor.find_request.remote(name))
        return row

    async def certificate_of(self, name: str) -> bytes | None:
        """The certificate that closed a request."""
        data: bytes | None = await self._ask(lambda actor: actor.certificate_of.remote(name))
        return data

    async def describe(self) -> ServedRun:
        """The run as the coordinator knows it."""
        described: ServedRun = await self._ask(lambda actor: actor.describe.remote())
        return described

    async def spend(self, wanted: int) -> int:
        """Take answers in private mode from the budget."""
        granted: int = await self._ask(lambda actor: actor.spend.remote(wanted))
        return granted

    async def call(self, task: str, **arguments: Any) -> Any:
        """Have a task done between batches."""
        return await self._ask(lambda actor: actor.call.remote(task, arguments))

    async def _ask(self, call: Callable[[Any], Awaitable[Any]]) -> Any:
        try:
            if self._handle is None:
                self._handle = ray.get_actor(actor_name(self._address), namespace=NAMESPACE)
            return await call(self._handle)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, SisaError):
                raise cause from None
            raise ExecutionError(f"{self._address}: the coordinator failed: {type(cause).__name__}") from None
        except (RayActorError, ValueError):
            self._handle = None
            raise CoordinatorAway(
                f"{self._address}: the coordinator is away; it starts again by itself, or with "
                "`sisa-ray coordinator start RUN`"
            ) from None
