"""What the privacy desk takes and gives, as documents; the form of its problems in OpenAPI."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from sisa_ray.core.clocks import Basis, ExtensionReason
from sisa_ray.core.records import Priority, RejectionReason
from sisa_ray.core.requests import RequestState
from sisa_ray.execution.results import RequestRow
from sisa_ray.execution.served import seconds
from sisa_ray.serving.problems import MEDIA_TYPE


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class UnlearningRequest(_Body):
    """People to forget, and the clock that this has to be done by."""

    subjects: list[StrictStr | StrictInt] = Field(
        min_length=1, description="Whom: subject keys as in the run's table.", examples=[["17", "29"]]
    )
    received_at: datetime | None = Field(
        default=None, description="When the organisation received it, with a time zone; default: now."
    )
    basis: Basis | None = Field(default=None, description="The law that it rests on; default: the run's.")
    priority: Priority = Field(default="normal", description="`urgent` is done at once.")


class Extension(_Body):
    """Why the legal clock is extended."""

    reason: ExtensionReason


class Rejection(_Body):
    """Why a request is not carried out."""

    reason: RejectionReason


class Accepted(BaseModel):
    """A durable request."""

    id: str
    state: RequestState
    due_at: datetime
    num_subjects: int
    is_overdue: bool


class RequestView(BaseModel):
    """A request as it is now. Times in seconds since it was accepted; null where it is not yet."""

    id: str
    state: RequestState
    num_subjects: int
    num_unknown: int
    basis: Basis
    priority: Priority
    received_at: datetime
    accepted_at: datetime
    fenced_at: datetime | None
    due_at: datetime
    closed_at: datetime | None
    time_to_fence_s: float | None
    time_to_erase_s: float | None
    seconds_left: float | None
    is_extended: bool
    was_overdue: bool
    has_certificate: bool


class ProblemView(BaseModel):
    """What was wrong (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str


_WHY = {
    400: "The body is not JSON.",
    401: "No token that holds.",
    403: "The token's roles do not allow it, or the privacy budget does not.",
    404: "There is no such thing.",
    409: "Not in this state, or the idempotency key stands for another request.",
    413: "More than one request may have.",
    415: "A media type that is not understood.",
    422: "Something in the request breaks a rule.",
    429: "Too often.",
    503: "Not now; try again after Retry-After seconds.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses of these statuses."""
    schema = {"$ref": "#/components/schemas/ProblemView"}
    return {s: {"description": _WHY[s], "content": {MEDIA_TYPE: {"schema": schema}}} for s in statuses}


def view_of(row: RequestRow) -> RequestView:
    """A request for whoever follows it."""
    return RequestView(
        id=row.request,
        state=row.state,
        num_subjects=row.num_subjects,
        num_unknown=row.num_unknown,
        basis=row.basis,
        priority=row.priority,
        received_at=row.received_at,
        accepted_at=row.accepted_at,
        fenced_at=row.fenced_at,
        due_at=row.due_at,
        closed_at=row.closed_at,
        time_to_fence_s=seconds(row.accepted_at, row.fenced_at),
        time_to_erase_s=seconds(row.accepted_at, row.closed_at),
        seconds_left=row.seconds_left,
        is_extended=row.is_extended,
        was_overdue=row.was_overdue,
        has_certificate=row.certificate is not None,
    )
