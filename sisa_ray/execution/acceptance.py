"""Accepting requests: checked one by one, made durable together.

A group of requests costs two writes, whatever their number: one object that names the subjects, then one log
entry with their tags. Accepted means committed.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sisa_ray.core.clocks import Basis, due_date
from sisa_ray.core.errors import CommitFailed, DataError, KeyReused, SisaError
from sisa_ray.core.keys import canonical_key
from sisa_ray.core.records import PayloadOpened, Priority, RequestAccepted
from sisa_ray.core.requests import Request, RequestState
from sisa_ray.storage import layout
from sisa_ray.storage.mirror import append_to_mirror
from sisa_ray.storage.payloads import write_payload
from sisa_ray.storage.run import Run

MAX_KEY_BYTES = 1024
"""Longest subject or idempotency key, in UTF-8: what is longer is a mistake."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What somebody asks for. Times and basis default to now and to the run's configuration.

    Attributes:
        subjects: canonical keys of the people to forget.
        key: idempotency key: the same submission sent again is the same request.
        received_at: when the organisation received it, with a time zone; not in the future.
        basis: the law that it rests on, and so its clock.
        priority: ``urgent`` is run at once, whatever the batching policy.
    """

    subjects: tuple[str, ...]
    key: str | None = None
    received_at: datetime | None = None
    basis: Basis | None = None
    priority: Priority = "normal"


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """A durable request. ``is_new`` is False where the idempotency key was used for it before."""

    request: str
    state: RequestState
    is_new: bool
    is_overdue: bool
    due_at: datetime
    num_subjects: int


def accept(run: Run, submissions: Sequence[Submission]) -> list[Acceptance | SisaError]:
    """Make submissions durable together; an answer for each, in order: its request, or what is wrong with it.

    Only one thread at a time may accept for a run.

    Raises:
        CommitFailed, CommitStateUnknown, StorageError: then none of them was acknowledged.
    """
    path = layout.payload_path(uuid.uuid4().hex)
    with run.writing(path):
        return _accept(run, submissions, path)


def accept_from_outside(run: Run, submissions: Sequence[Submission]) -> list[Acceptance | SisaError]:
    """:func:`accept`, for a process that has not taken the run: whoever has it finds the requests in the log.

    The payload is announced before it is written, so that no purge of another process takes it. Where nothing of it
    counts in the end, since another process was faster with the same keys, it is deleted.
    """
    path = ""
    while True:
        try:
            if path not in run.state.opened_payloads and _judged(run, submissions, path).fresh:
                # A new one each time: an announcement that has expired may be in the hands of a purge.
                path = layout.payload_path(uuid.uuid4().hex)
                run.commit(PayloadOpened(path=path))
            answers = _accept(run, submissions, path)
        except CommitFailed:
            run.refresh(is_whole=False)
            continue
        if path in run.state.opened_payloads:
            run.store.delete([path])
        return answers


def refuse_faulty(run: Run, submissions: Sequence[Submission]) -> None:
    """Refuse submissions of which one could not be accepted.

    Raises:
        DataError: the first thing that is wrong.
    """
    for answer in _judged(run, submissions, "").answers:
        if isinstance(answer, SisaError):
            raise answer


@dataclass(kw_only=True)
class _Judged:
    """What becomes of submissions: their requests, and of these the new ones with whom they name."""

    answers: list[str | SisaError]
    fresh: dict[str, RequestAccepted]
    people: dict[str, list[str]]


def _accept(run: Run, submissions: Sequence[Submission], path: str) -> list[Acceptance | SisaError]:
    judged = _judged(run, submissions, path)
    fresh = judged.fresh
    if fresh:
        write_payload(run.store, path, judged.people)
        run.commit(*fresh.values())
        # Not those of a request that does not count, since another process used its key at the same time.
        named = {tag for record in fresh.values() for tag in record.tags}
        append_to_mirror(run, added=sorted(named.intersection(run.state.suppressed)), lifted=[])
    return [_answer(run, answer, fresh) for answer in judged.answers]


def _judged(run: Run, submissions: Sequence[Submission], path: str) -> _Judged:
    now = run.now()
    answers: list[str | SisaError] = []
    fresh: dict[str, RequestAccepted] = {}
    people: dict[str, list[str]] = {}
    keys: dict[str, RequestAccepted] = {}
    for submission in submissions:
        try:
            subjects = checked_subjects(submission.subjects)
            record = _record(run, submission, subjects, payload=path, now=now)
            before = keys.get(record.key or "") or _made_before(run, record)
            answers.append(_same(record, before).request)
        except SisaError as error:
            answers.append(error)
            continue
        if before is None:
            fresh[record.request] = record
            people[record.request] = subjects
            if record.key is not None:
                keys[record.key] = record
    return _Judged(answers=answers, fresh=fresh, people=people)


def _record(
    run: Run, submission: Submission, subjects: list[str], *, payload: str, now: datetime
) -> RequestAccepted:
    policy = run.spec.config.unlearning
    received_at = now if submission.received_at is None else _checked_time(submission.received_at, now)
    basis = submission.basis or policy.basis
    return RequestAccepted(
        request=uuid.uuid4().hex,
        tags=tuple(run.secret.tags(subjects)),
        payload=payload,
        received_at=received_at,
        due_at=due_date(basis, received_at, custom_days=policy.custom_days),
        basis=basis,
        priority=submission.priority,
        key=None if submission.key is None else run.secret.key_hash(_checked_key(submission.key)),
    )


def _made_before(run: Run, record: RequestAccepted) -> Request | None:
    """The request that was made with this idempotency key before."""
    return run.state.find_request(run.state.keys.get(record.key or "", ""))


def _same(record: RequestAccepted, before: Request | RequestAccepted | None) -> Request | RequestAccepted:
    """The one of the two that counts.

    Raises:
        DataError: where one idempotency key stands for different people.
    """
    if before is None:
        return record
    if set(before.tags) != set(record.tags):
        raise KeyReused(
            f"idempotency_key: was used for request {before.request}, which names other people; give another key"
        )
    return before


def _answer(
    run: Run, answer: str | SisaError, fresh: Mapping[str, RequestAccepted]
) -> Acceptance | SisaError:
    if isinstance(answer, SisaError):
        return answer
    record = fresh.get(answer)
    request = run.state.find_request(answer)
    if request is None:  # another process used the key at the same time, and was first
        assert record is not None
        request = _made_before(run, record)
        assert request is not None
        try:
            _same(record, request)
        except DataError as error:
            return error
    return Acceptance(
        request=request.request,
        state=run.state.request_state(request),
        is_new=request.request in fresh,
        is_overdue=request.is_overdue,
        due_at=request.due_at,
        num_subjects=len(request.tags),
    )


def checked_subjects(subjects: Sequence[object]) -> list[str]:
    """Canonical keys of subjects, once each, in order.

    Raises:
        DataError: naming the first row that is no subject.
    """
    if not subjects:
        raise DataError("subjects: the list is empty; name at least one person to forget")
    checked: dict[str, None] = {}
    for row, subject in enumerate(subjects):
        try:
            key = canonical_key(subject)
        except DataError as error:
            raise DataError(f"subjects: row {row}: {error}") from None
        if not key:
            raise DataError(f"subjects: row {row} is empty; every row must name one person")
        if len(key.encode()) > MAX_KEY_BYTES:
            raise DataError(
                f"subjects: row {row} has {len(key.encode()):,} bytes, but a subject has at most {MAX_KEY_BYTES:,}; "
                "give one person a row"
            )
        checked[key] = None
    return list(checked)


def rows_of(subjects: Sequence[object], tags: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Each person's first row, as the caller counts, and their tag."""
    seen: set[str] = set()
    for row, subject in enumerate(subjects):
        key = canonical_key(subject)
        if key not in seen:
            seen.add(key)
            yield row, tags[key]


def _checked_key(key: str) -> str:
    try:
        num_bytes = len(key.encode())
    except UnicodeEncodeError:
        num_bytes = 0
    if not (key.strip() and 0 < num_bytes <= MAX_KEY_BYTES):
        raise DataError(
            f"idempotency_key: must be a text of 1 to {MAX_KEY_BYTES:,} bytes; give each request one of its own, "
            "such as a UUID, or leave it out"
        )
    return key


def _checked_time(received_at: datetime, now: datetime) -> datetime:
    if received_at.tzinfo is None:
        raise DataError(
            f"received_at: {received_at.isoformat()} has no time zone; write {received_at.isoformat()}Z for UTC"
        )
    if received_at > now:
        raise DataError(
            f"received_at: {received_at.isoformat()} is in the future (it is {now.isoformat()}); give the time at "
            "which the request came in"
        )
    try:
        return received_at.astimezone(UTC)
    except OverflowError:
        raise DataError(f"received_at: {received_at.isoformat()} is before the year 1 in UTC") from None
