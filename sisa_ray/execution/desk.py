"""The privacy desk: requests accepted, listed, extended, rejected; suppressions replayed and lifted."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sisa_ray.core.certificate import key_id
from sisa_ray.core.clocks import ExtensionReason, due_date, extended_due_date
from sisa_ray.core.errors import DataError, SisaError
from sisa_ray.core.keys import canonical_json
from sisa_ray.core.records import (
    LiftReason,
    RejectionReason,
    RequestAccepted,
    RequestExtended,
    RequestRejected,
    SuppressionLifted,
)
from sisa_ray.core.requests import Request
from sisa_ray.execution.acceptance import (
    Acceptance,
    Submission,
    accept_from_outside,
    checked_subjects,
    refuse_faulty,
    rows_of,
)
from sisa_ray.execution.client import find_coordinator
from sisa_ray.execution.events import OnEvent, PhaseStarted, ignore
from sisa_ray.execution.opening import Target, existing_run
from sisa_ray.execution.results import LiftResult, ReplayResult, RequestRow, RequestsResult
from sisa_ray.execution.session import Session
from sisa_ray.execution.workers import NewWorkers, Workers
from sisa_ray.storage import signing
from sisa_ray.storage.mirror import check_mirror, mirror_suppression, missing_tags
from sisa_ray.storage.run import Run

_LIFT_DOMAIN = b"sisa_ray/lift/1\n"


def request(target: Target, submissions: Sequence[Submission]) -> list[Acceptance]:
    """Have requests accepted: durable on return, and done by whoever coordinates the run next.

    Raises:
        DataError: for the first that breaks a rule; none of them is accepted then.
    """
    run = existing_run(target, check_code=False)
    refuse_faulty(run, submissions)
    coordinator = find_coordinator(run.address)
    if coordinator is not None:
        return coordinator.submit(submissions)
    answers: list[Acceptance] = []
    for answer in accept_from_outside(run, submissions):
        if isinstance(answer, SisaError):
            raise answer
        answers.append(answer)
    return answers


def list_requests(target: Target) -> RequestsResult:
    """The requests of a run, those still open first, the most pressing at the top."""
    run = existing_run(target, check_code=False)
    now = run.now()
    state = run.state
    still_open = sorted(state.requests.values(), key=lambda r: r.due_at)
    closed = sorted(state.closed_requests.values(), key=lambda r: r.closed_at or r.accepted_at, reverse=True)
    return RequestsResult(
        address=run.address,
        now=now,
        rows=tuple(_row(run, r, now) for r in (*still_open, *closed)),
        purge_trouble=state.purge_trouble.problem if state.purge_trouble else None,
    )


def find_request(run: Run, name: str) -> RequestRow | None:
    """A request by its id, open or closed."""
    with run.lock:
        asked = run.state.find_request(name)
        return None if asked is None else _row(run, asked, run.now())


def certificate_of(run: Run, name: str) -> bytes | None:
    """The signed certificate that closed a request, or None where there is none yet.

    Raises:
        StorageError: where it cannot be read.
    """
    row = find_request(run, name)
    return None if row is None or row.certificate is None else run.store.get(row.certificate)


def carry_out(
    target: Target, *, on_event: OnEvent = ignore, new_workers: NewWorkers = Workers
) -> RequestsResult:
    """Have every open request done, by the coordinator or else here; what became of them."""
    run = existing_run(target)
    names = frozenset(run.state.requests)
    coordinator = find_coordinator(run.address)
    if coordinator is not None:
        on_event(PhaseStarted(text="waiting for the coordinator"))
        coordinator.wait(sorted(names), on_event=on_event)
    else:
        with (
            new_workers() as workers,
            Session(run, workers, command="unlearn", on_event=on_event) as session,
        ):
            session.reconcile(train=False)
    listed = list_requests(target)
    return listed.model_copy(update={"rows": tuple(row for row in listed.rows if row.request in names)})


def extend(
    target: Target, name: str, reason: ExtensionReason, *, new_workers: NewWorkers = Workers
) -> RequestRow:
    """Extend the legal clock of an open request as far as its law allows."""
    row: RequestRow = _held(target, "extend", _extension, extend_in, new_workers, name=name, reason=reason)
    return row


def extend_in(session: Session, *, name: str, reason: ExtensionReason) -> RequestRow:
    """:func:`extend`, in a session on the run."""
    record = _extension(session.run, name=name, reason=reason)
    session.run.commit(record)
    return _row_of(session.run, record.request)


def _extension(run: Run, *, name: str, reason: ExtensionReason) -> RequestExtended:
    asked = _open_request(run, name)
    if asked.is_extended:
        raise DataError(f"request {name}: was extended before; the law knows one extension")
    due_at = extended_due_date(asked.basis, asked.received_at)
    return RequestExtended(request=asked.request, due_at=due_at, reason=reason)


def reject(
    target: Target, name: str, reason: RejectionReason, *, new_workers: NewWorkers = Workers
) -> RequestRow:
    """Reject a request that is in no batch yet; whom only it named is suppressed no longer."""
    row: RequestRow = _held(target, "reject", _rejection, reject_in, new_workers, name=name, reason=reason)
    return row


def reject_in(session: Session, *, name: str, reason: RejectionReason) -> RequestRow:
    """:func:`reject`, in a session on the run."""
    record = _rejection(session.run, name=name, reason=reason)
    session.run.commit(record)
    mirror_suppression(session.run)
    return _row_of(session.run, record.request)


def _rejection(run: Run, *, name: str, reason: RejectionReason) -> RequestRejected:
    asked = _open_request(run, name)
    if asked.batch is not None:
        raise DataError(f"request {name}: is being carried out already; it cannot be rejected any more")
    return RequestRejected(request=asked.request, reason=reason)


def lift(
    target: Target, subjects: Sequence[str], reason: LiftReason, *, new_workers: NewWorkers = Workers
) -> LiftResult:
    """Lift the suppression of people, so that a later ingest may learn from them again.

    Whoever has the key that signs certificates may do so; the log keeps the signature.
    """
    done: LiftResult = _held(
        target, "lift", _lifting, lift_in, new_workers, subjects=tuple(subjects), reason=reason
    )
    return done


def lift_in(session: Session, *, subjects: Sequence[str], reason: LiftReason) -> LiftResult:
    """:func:`lift`, in a session on the run."""
    run = session.run
    record = _lifting(run, subjects=subjects, reason=reason)
    run.commit(record)
    mirror_suppression(run)
    return LiftResult(address=run.address, num_lifted=len(record.tags))


def _lifting(run: Run, *, subjects: Sequence[str], reason: LiftReason) -> SuppressionLifted:
    people = checked_subjects(subjects)
    tags = run.secret.tags(people)
    waiting = {tag for asked in run.state.requests.values() for tag in asked.tags}
    for row, tag in rows_of(subjects, dict(zip(people, tags, strict=True))):
        if tag not in run.state.suppressed:
            raise DataError(f"subjects: row {row}: is not suppressed in this run; nothing was lifted")
        if tag in waiting:
            raise DataError(f"subjects: row {row}: is named by an open request; nothing was lifted")
    key = signing.load_or_create(storage_path=run.spec.config.storage_path)
    content = {"run": run.spec.digest, "secret_id": run.spec.secret_id, "tags": tags, "reason": reason}
    return SuppressionLifted(
        tags=tuple(tags),
        reason=reason,
        key_id=key_id(key.public_key()),
        signature=key.sign(_LIFT_DOMAIN + canonical_json(content)).hex(),
    )


def replay(target: Target, *, on_event: OnEvent = ignore, new_workers: NewWorkers = Workers) -> ReplayResult:
    """Forget again whom the mirror knows and a restored run does not."""
    run = existing_run(target)
    missing = missing_tags(run)
    with (
        new_workers() as workers,
        Session(run, workers, command="replay", on_event=on_event, is_behind=True) as session,
    ):
        if missing:
            now, policy = run.now(), run.spec.config.unlearning
            run.commit(
                RequestAccepted(
                    request=uuid.uuid4().hex,
                    tags=tuple(missing),
                    payload="",
                    received_at=now,
                    due_at=due_date(policy.basis, now, custom_days=policy.custom_days),
                    basis=policy.basis,
                    priority="urgent",
                    key=None,
                )
            )
        session.reconcile(train=False)
    return ReplayResult(address=run.address, num_replayed=len(missing), generation=run.state.generation)


def _held(target: Target, task: str, check: Any, do: Any, new_workers: NewWorkers, **arguments: Any) -> Any:
    """Do a task with the run in hand: through its coordinator, or by taking it for a moment.

    ``check`` refuses what cannot be done before anything is changed.
    """
    run = existing_run(target, check_code=False)
    coordinator = find_coordinator(run.address)
    if coordinator is not None:
        return coordinator.call(task, **arguments)
    check_mirror(run)
    check(run, **arguments)
    with new_workers() as workers, Session(run, workers, command=task, on_event=ignore) as session:
        return do(session, **arguments)


def _open_request(run: Run, name: str) -> Request:
    """An open request by the beginning of its id."""
    found = [asked for key, asked in run.state.requests.items() if key.startswith(name)] if name else []
    if len(found) != 1:
        problem = "is the beginning of several" if found else "is not open, or not of this run"
        raise DataError(f"request {name}: {problem}; `sisa-ray requests RUN` lists them")
    return found[0]


def _row_of(run: Run, name: str) -> RequestRow:
    asked = run.state.find_request(name)
    assert asked is not None
    return _row(run, asked, run.now())


def _row(run: Run, asked: Request, now: datetime) -> RequestRow:
    state = run.state
    batch = state.closed_batches.get(asked.batch or "")
    return RequestRow(
        request=asked.request,
        state=state.request_state(asked),
        num_subjects=len(asked.tags),
        num_unknown=len(set(batch.unknown).intersection(asked.tags)) if batch else 0,
        basis=asked.basis,
        priority=asked.priority,
        received_at=asked.received_at,
        accepted_at=asked.accepted_at,
        fenced_at=asked.fenced_at,
        due_at=asked.due_at,
        closed_at=asked.closed_at,
        is_extended=asked.is_extended,
        was_overdue=asked.is_overdue,
        seconds_left=None if asked.closed_at else (asked.due_at - now).total_seconds(),
        batch=asked.batch,
        certificate=batch.certificate if batch else None,
    )
