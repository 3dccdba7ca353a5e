"""The way from a command to the coordinator that has the run: through Ray, or else through the log itself."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Protocol

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from sisa_ray.core.errors import (
    ClusterError,
    CommitFailed,
    ExecutionError,
    ObjectMissing,
    RunConflict,
    SisaError,
)
from sisa_ray.execution.acceptance import Acceptance, Submission, accept_from_outside
from sisa_ray.execution.cluster import join_existing_ray
from sisa_ray.execution.events import OnEvent, ignore
from sisa_ray.storage import layout
from sisa_ray.storage.objects import open_store
from sisa_ray.storage.run import Run, open_run

NAMESPACE = "sisa_ray"
SIGN_LASTS_S = 30.0
"""Seconds after which a coordinator that gives no sign is believed to be gone."""

_ENDED = ("certified", "unknown", "rejected")
_PATIENCE_S = 120.0
_POLL_S = 0.2
_AWAY = (ActorDiedError, ActorUnavailableError)


class CoordinatorClient(Protocol):
    """A coordinator, from where a command stands."""

    def submit(self, submissions: Sequence[Submission]) -> list[Acceptance]:
        """Have requests accepted. Raises the first error there is; those before it are accepted."""

    def wait(self, requests: Sequence[str], *, on_event: OnEvent = ignore) -> None:
        """Wait until these requests are certified."""

    def call(self, task: str, *, on_event: OnEvent = ignore, **arguments: Any) -> Any:
        """Have a task done between batches; its result."""


def actor_name(address: str) -> str:
    """The name of a run's coordinator among the actors of a cluster."""
    return f"coordinator:{address}"


def find_coordinator(address: str) -> CoordinatorClient | None:
    """The coordinator that has the run, or None where there is none.

    Ray is joined only where the run itself says that a coordinator has it.
    """
    if read_sign(address) is None:
        return None
    handle = find_actor(address)
    return LogClient(open_run(address)) if handle is None else ActorClient(address, handle)


def read_sign(address: str) -> dict[str, Any] | None:
    """What the coordinator last said of itself in the run; None where it is long ago, or was never."""
    try:
        sign: dict[str, Any] = json.loads(open_store(address).get(layout.COORDINATOR))
        age = datetime.now(UTC) - datetime.fromisoformat(sign["renewed_at"])
    except (ObjectMissing, ValueError, KeyError):
        return None
    return sign if age.total_seconds() < SIGN_LASTS_S else None


def find_actor(address: str) -> Any | None:
    """The coordinator's actor, where the cluster that this machine reaches has one."""
    try:
        if not join_existing_ray():
            return None
        return ray.get_actor(actor_name(address), namespace=NAMESPACE)
    except (ValueError, ClusterError):  # a cluster that does not let us in is out of reach: the log is not
        return None


class ActorClient:
    """A coordinator within reach of this process's Ray. It may die and come back at any time."""

    def __init__(self, address: str, handle: Any) -> None:
        self._address = address
        self._handle = handle
        self._cursor = -1

    def submit(self, submissions: Sequence[Submission]) -> list[Acceptance]:
        """Have requests accepted; sent again, if need be, under the same keys."""
        keyed = [s if s.key else replace(s, key=uuid.uuid4().hex) for s in submissions]
        accepted: list[Acceptance] = []
        for answer in self._ask("submit", keyed):
            if isinstance(answer, SisaError):
                raise answer
            accepted.append(answer)
        return accepted

    def wait(self, requests: Sequence[str], *, on_event: OnEvent = ignore) -> None:
        """Wait until these requests are certified."""
        while True:
            is_settled = self.is_settled(requests)
            self._pass_on(on_event)
            if is_settled:
                return
            time.sleep(_POLL_S)

    def is_settled(self, requests: Sequence[str]) -> bool:
        """Whether all of these requests are certified or rejected."""
        return bool(self._ask("is_settled", list(requests)))

    def call(self, task: str, *, on_event: OnEvent = ignore, **arguments: Any) -> Any:
        """Have a task done between batches."""
        self._pass_on(ignore)
        try:
            result = self._handle.call.remote(task, arguments)
            while not ray.wait([result], timeout=_POLL_S)[0]:
                self._pass_on(on_event)
            self._pass_on(on_event)
            return ray.get(result)
        except _AWAY:
            raise ExecutionError(
                f"{self._address}: the coordinator died while it worked on this; it starts again by itself: run the "
                "same command again"
            ) from None
        except RayTaskError as error:
            raise _cause(error) from None

    def _pass_on(self, on_event: OnEvent) -> None:
        self._cursor, events = self._ask("events_since", self._cursor)
        for event in events:
            on_event(event)

    def _ask(self, method: str, *arguments: Any) -> Any:
        """An answer, from the coordinator as it is or as it comes back."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return ray.get(getattr(self._handle, method).remote(*arguments))
            except _AWAY:
                if time.monotonic() > deadline:
                    raise ExecutionError(
                        f"{self._address}: the coordinator is away for more than {_PATIENCE_S:.0f} s; see "
                        "`sisa-ray coordinator status RUN`"
                    ) from None
                time.sleep(1.0)
                self._cursor = -1
                self._handle = find_actor(self._address) or self._handle
            except RayTaskError as error:
                raise _cause(error) from None


class LogClient:
    """A coordinator out of this process's reach: requests go into the log, where it finds them."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def submit(self, submissions: Sequence[Submission]) -> list[Acceptance]:
        """Accept requests in the coordinator's stead."""
        accepted: list[Acceptance] = []
        for answer in accept_from_outside(self._run, submissions):
            if isinstance(answer, SisaError):
                raise answer
            accepted.append(answer)
        return accepted

    def wait(self, requests: Sequence[str], *, on_event: OnEvent = ignore) -> None:
        """Wait until the log says that they are certified."""
        del on_event
        state = self._run.state
        while True:
            self._run.refresh(is_whole=False)
            found = [state.find_request(name) for name in requests]
            if all(r is not None and state.request_state(r) in _ENDED for r in found):
                return
            if read_sign(self._run.address) is None:
                raise CommitFailed(
                    f"{self._run.address}: the coordinator gives no sign any more; the requests are durable, and the "
                    "next command or coordinator goes on with them"
                )
            time.sleep(1.0)

    def call(self, task: str, *, on_event: OnEvent = ignore, **arguments: Any) -> Any:
        """Not without Ray."""
        del on_event, arguments
        raise RunConflict(
            f"{self._run.address}: a coordinator has the run, and this machine does not reach its Ray cluster; set "
            f"RAY_ADDRESS to it, or stop the coordinator, to {task}"
        )


def _cause(error: RayTaskError) -> Exception:
    cause = error.cause
    return cause if isinstance(cause, SisaError) else error
