"""A run as one simulated process knows it: the mirror of ``storage/run.py`` and ``execution/acceptance.py``.

Every durable action is a scheduling point, before it takes effect and before its answer is heard; a fault can
strike at each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from sisa_ray.core.errors import (
    CommitFailed,
    CommitStateUnknown,
    IntegrityError,
    SisaError,
    StateMoved,
    StorageUnavailable,
)
from sisa_ray.core.records import (
    FROM_OUTSIDE,
    AttemptOpened,
    PayloadOpened,
    Priority,
    Record,
    RequestAccepted,
)
from sisa_ray.core.requests import EntryMark
from sisa_ray.core.state import RunState
from tests.core.cluster_store import Entry, Group, Lock, Signal, Steps, Stored, tag_of

if TYPE_CHECKING:
    from tests.core.cluster_world import World


@dataclass(eq=False)
class Reply:
    """Where a client waits for its answer."""

    done: Signal = field(default_factory=Signal)
    answer: list[str] | SisaError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What somebody asks for."""

    subjects: tuple[str, ...]
    key: str | None
    received_at: datetime
    due_in: timedelta
    priority: Priority


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    answers: list[str | SisaError]
    fresh: dict[str, RequestAccepted]
    people: dict[str, tuple[str, ...]]


@dataclass(eq=False)
class SimRun:
    """The run of one process: its state, its head, and its way to storage."""

    world: World
    group: Group
    state: RunState = field(default_factory=RunState)
    attempt: str | None = None
    in_flight: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.lock = Lock(self.world.loop)
        self._seq, self._commit_id = -1, ""
        self.catch_up()

    @property
    def seq(self) -> int:
        """The number of the last entry applied."""
        return self._seq

    def catch_up(self) -> list[Entry]:
        """Apply what is in the log; the caller has the lock, or nobody can have it."""
        news = self.world.store.log[self._seq + 1 :]
        for entry in news:
            self._apply(entry)
        return news

    def refresh(self) -> Steps:
        yield from self.lock.taken()
        self.catch_up()
        self.lock.free()

    def commit(self, *records: Record) -> Steps:
        """As ``Run.commit``."""
        yield from self.lock.taken()
        try:
            yield from self.commit_locked(*records)
        finally:
            self.lock.free()

    def commit_locked(self, *records: Record) -> Steps:
        while True:
            self._check_attempt(records)
            entry = Entry(
                seq=self._seq + 1,
                before=self._commit_id,
                commit=self.world.new_id("c"),
                at=self.world.loop.now(),
                records=records,
            )
            what = f"commit {entry.seq} ({' '.join(r.type for r in records)})"
            try:
                won = yield from self.act(what, partial(self.world.store.create_entry, entry))
            except StorageUnavailable as error:
                raise CommitStateUnknown(str(error)) from None
            if won:
                self._apply(entry)
                return
            self.world.say(self.group.name, f"lost the race for entry {entry.seq}")
            if not self._caught_up():
                raise CommitFailed(f"{self.group.name}: another process has committed entry {entry.seq}")

    def put(self, path: str, held: frozenset[str], content: Any = None) -> Steps:
        writer = self.attempt or self.group.name
        yield from self.act(f"put {path}", lambda: self.world.put(path, held, content, writer))

    def get(self, path: str) -> Stored:
        """An object, as it is this very moment.

        Raises:
            IntegrityError: where it is gone.
        """
        there = self.world.store.objects.get(path)
        if there is None:
            raise IntegrityError(f"{path}: is gone")
        return there

    def act(self, what: str, apply: Callable[[], Any]) -> Steps:
        """As ``World.act``."""
        return self.world.act(self.group, what, apply)

    def _check_attempt(self, records: Sequence[Record]) -> None:
        is_taking = any(isinstance(record, AttemptOpened) for record in records)
        if self.attempt is not None and self.state.attempt != self.attempt and not is_taking:
            raise CommitFailed(f"{self.group.name}: another process has taken the run")

    def _caught_up(self) -> bool:
        news = self.catch_up()
        if self.attempt is None or self.state.attempt != self.attempt:
            return False
        if not all(isinstance(record, FROM_OUTSIDE) for entry in news for record in entry.records):
            raise StateMoved("a commit that was thought lost had been applied")
        return True

    def _apply(self, entry: Entry) -> None:
        self.state.entry = EntryMark(seq=entry.seq, digest=entry.commit, at=entry.at)
        for record in entry.records:
            self.state.apply(record)
        self._seq, self._commit_id = entry.seq, entry.commit


def accept(run: SimRun, submissions: Sequence[Submission]) -> Steps:
    """As ``acceptance.accept``: the request ids, or what is wrong, in order."""
    path = f"requests/{run.world.new_id('p')}"
    yield from run.lock.taken()
    run.in_flight.add(path)
    run.lock.free()
    try:
        return (yield from make_durable(run, submissions, path))
    finally:
        run.in_flight.discard(path)


def accept_from_outside(run: SimRun, submissions: Sequence[Submission]) -> Steps:
    """As ``acceptance.accept_from_outside``, but that what was announced anew has another path.

    A purge may have doomed the old one, and then delete what was written there since.
    """
    path = ""
    while True:
        try:
            if path not in run.state.opened_payloads and judged(run, submissions, path).fresh:
                path = f"requests/{run.world.new_id('p')}"
                yield from run.commit(PayloadOpened(path=path))
            answers = yield from make_durable(run, submissions, path)
        except CommitFailed:
            yield from run.refresh()
            continue
        if path in run.state.opened_payloads:
            yield from run.act(f"delete own {path}", partial(run.world.delete_own, path))
        return answers


def make_durable(run: SimRun, submissions: Sequence[Submission], path: str) -> Steps:
    found = judged(run, submissions, path)
    if found.fresh:
        people = frozenset(s for subjects in found.people.values() for s in subjects)
        yield from run.put(path, people, found.people)
        yield from run.commit(*found.fresh.values())
    answers: list[str | SisaError] = []
    for answer in found.answers:
        if isinstance(answer, str) and run.state.find_request(answer) is None:
            answers.append(run.state.keys[found.fresh[answer].key or ""])  # another process was first
        else:
            answers.append(answer)
    return answers


def judged(run: SimRun, submissions: Sequence[Submission], path: str) -> _Judged:
    found = _Judged(answers=[], fresh={}, people={})
    keys: dict[str, str] = {}
    for asked in submissions:
        before = keys.get(asked.key or "") or run.state.keys.get(asked.key or "")
        if before is not None:
            found.answers.append(before)
            continue
        request = run.world.new_id("q")
        found.answers.append(request)
        found.people[request] = asked.subjects
        found.fresh[request] = RequestAccepted(
            request=request,
            tags=tuple(map(tag_of, asked.subjects)),
            payload=path,
            received_at=asked.received_at,
            due_at=asked.received_at + asked.due_in,
            basis="custom",
            priority=asked.priority,
            key=asked.key,
        )
        if asked.key is not None:
            keys[asked.key] = request
    return found


def named_by(run: SimRun, requests: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Whom open requests name, as their payloads say.

    Raises:
        IntegrityError: where a payload is gone, or names others than were accepted.
    """
    named: dict[str, tuple[str, ...]] = {}
    for name in requests:
        request = run.state.requests[name]
        people: Mapping[str, tuple[str, ...]] = run.get(request.payload).content
        if tuple(map(tag_of, people.get(name, ()))) != request.tags:
            raise IntegrityError(f"{request.payload}: does not name the people that were accepted")
        named[name] = people[name]
    return named
