"""The coordinator of a run: accepts requests at any time, and does what the planner decides, when it decides.

Threads share the run. One makes requests durable, as many together as are waiting. One folds the log into decisions
and carries them out. One keeps the fence with the replicas that answer from the run, and one renews the sign that
somebody has it. What happens to any of them is finished by the next coordinator: all that counts is in the log.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sisa_ray.core.errors import CommitFailed, ExecutionError, SisaError, StateMoved
from sisa_ray.core.step import Moment, wakes_at
from sisa_ray.core.tokens import Tokens
from sisa_ray.execution.acceptance import Acceptance, Submission, accept
from sisa_ray.execution.events import Event, StageProgress
from sisa_ray.execution.fence import Fence, guard
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.session import Session
from sisa_ray.execution.sign import show_life
from sisa_ray.execution.workers import NewWorkers, Workers
from sisa_ray.storage.run import Run

logger = logging.getLogger("sisa_ray.coordinator")

_LOOK_S = 2.0
"""Seconds between looks at the log for requests that others accepted."""
_IDLE_S = 10.0
"""Seconds without work after which shard actors are released, with their GPUs."""
_PASS_EVERY_S = 0.05
_MAX_GROUP = 2000
_NUM_EVENTS = 4096
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 300.0
_SLOTS_FOR_S = 60.0

Status = Literal["starting", "idle", "working", "in trouble", "stopped"]
Task = Callable[..., Any]


class Stopping(SisaError):
    """The coordinator is asked to stop, or has been superseded."""


@dataclass(kw_only=True)
class Report:
    """What a coordinator says of itself."""

    address: str
    status: Status
    attempt: str | None
    started_at: datetime
    doing: str | None
    trouble: str | None
    requests_by_state: dict[str, int] = field(default_factory=dict)
    generation: int = 0
    purge_trouble: str | None = None
    pid: int = 0
    host: str = ""


class Coordinator:
    """The coordinator of one run, in this process. ``tasks`` are what it does on demand, between batches."""

    def __init__(
        self,
        address: str,
        *,
        tasks: Mapping[str, Task],
        new_workers: NewWorkers = Workers,
        tokens: Callable[[], Tokens] | None = None,
    ) -> None:
        self._run = existing_run(address)
        self._tasks = tasks
        self._new_workers = new_workers
        self._inbox: queue.SimpleQueue[tuple[Sequence[Submission], Future[Any]]] = queue.SimpleQueue()
        self._orders: deque[tuple[str, dict[str, Any], Future[Any]]] = deque()
        self._events: deque[tuple[int, Event]] = deque(maxlen=_NUM_EVENTS)
        self._num_events = 0
        self._news = threading.Event()
        self._stop = threading.Event()
        self._attempt: str | None = None
        self._tokens = tokens
        self._status: Status = "starting"
        self._doing: str | None = None
        self._trouble: str | None = None
        self._started_at = self._run.now()
        self._slots = (1, -_SLOTS_FOR_S)
        self._fence: Fence | None = None
        self._taken: Future[None] = Future()
        self._threads = [
            threading.Thread(target=target, name=target.__name__, daemon=True)
            for target in (self._work, self._take_in, self._show_life, self._guard)
        ]

    def start(self) -> None:
        """Take the run and begin.

        Raises:
            SisaError: where the run cannot be taken.
        """
        self._threads[0].start()
        self._taken.result()
        for thread in self._threads[1:]:
            thread.start()

    def stop(self) -> None:
        """End after the operation at hand; what is unfinished is left to the next coordinator."""
        self._stop.set()
        self._news.set()
        self._inbox.put(((), Future()))
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def submit(self, submissions: Sequence[Submission]) -> Future[list[Acceptance | SisaError]]:
        """Accept requests; the future is done once they are durable."""
        future: Future[list[Acceptance | SisaError]] = Future()
        self._inbox.put((submissions, future))
        if self._stop.is_set():  # its thread may have looked for the last time
            self._refuse(future)
        return future

    def call(self, task: str, arguments: dict[str, Any]) -> Future[Any]:
        """Do a task between batches."""
        future: Future[Any] = Future()
        self._orders.append((task, arguments, future))
        self._news.set()
        if self._stop.is_set():
            self._refuse(future)
        return future

    def events_since(self, number: int) -> tuple[int, list[Event]]:
        """What happened after event ``number``, and the number of the last event."""
        news = [event for n, event in list(self._events) if n > number]
        return self._num_events, news

    def is_settled(self, requests: Sequence[str]) -> bool:
        """Whether all of these requests are certified or rejected.

        Raises:
            SisaError: where this coordinator has stopped.
        """
        if self._stop.is_set():
            raise self._gone()
        with self._run.lock:
            state = self._run.state
            found = [state.find_request(name) for name in requests]
            ended = ("certified", "unknown", "rejected")
            return all(request is not None and state.request_state(request) in ended for request in found)

    @property
    def run(self) -> Run:
        """The run as this coordinator knows it."""
        return self._run

    @property
    def fence(self) -> Fence:
        """What replicas ask.

        Raises:
            SisaError: where this coordinator has stopped.
        """
        if self._stop.is_set() or self._fence is None:
            raise self._gone()
        return self._fence

    def report(self) -> Report:
        """How it is."""
        with self._run.lock:
            state = self._run.state
            counts: dict[str, int] = {}
            for request in state.requests.values():
                name = state.request_state(request)
                counts[name] = counts.get(name, 0) + 1
            return Report(
                address=self._run.address,
                status=self._status,
                attempt=self._attempt,
                started_at=self._started_at,
                doing=self._doing,
                trouble=self._trouble,
                requests_by_state=counts,
                generation=state.generation,
                purge_trouble=state.purge_trouble.problem if state.purge_trouble else None,
                pid=os.getpid(),
                host=socket.gethostname(),
            )

    # The thread that takes requests in

    def _take_in(self) -> None:
        while not self._stop.is_set():
            group = [self._inbox.get()]
            while len(group) < _MAX_GROUP and not self._inbox.empty():
                group.append(self._inbox.get())
            submissions = [submission for asked, _ in group for submission in asked]
            try:
                answers = self._accept(submissions) if submissions else []
            except Exception as error:
                if isinstance(error, CommitFailed):
                    self._fail(error)
                for _, future in group:
                    with contextlib.suppress(InvalidStateError):
                        future.set_exception(error)
                continue
            for asked, future in group:
                with contextlib.suppress(InvalidStateError):
                    future.set_result(answers[: len(asked)])
                answers = answers[len(asked) :]
            self._news.set()
            if self._fence is not None:
                self._fence.news.set()
        while not self._inbox.empty():
            self._refuse(self._inbox.get()[1])

    def _accept(self, submissions: Sequence[Submission]) -> list[Acceptance | SisaError]:
        while True:
            with contextlib.suppress(StateMoved):  # then all of it is tried again, on the state as it is
                return accept(self._run, submissions)

    # The thread that works

    def _work(self) -> None:
        try:
            with (
                self._new_workers() as workers,
                Session(
                    self._run,
                    workers,
                    command="coordinator",
                    on_event=self._record,
                    moment=lambda: self._moment(workers),
                    interrupt=self._check_stop,
                ) as session,
            ):
                self._attempt = session.attempt
                # Made once the run is taken: from here on no predecessor's leases are renewed.
                self._fence = session.leases = Fence(self._run, tokens=self._tokens)
                self._taken.set_result(None)
                self._pass_until_stopped(session)
        except BaseException as error:
            if not self._taken.done():
                self._taken.set_exception(error)
            elif not isinstance(error, Stopping):
                self._fail(error)
        finally:
            self._stop.set()
            self._status = "stopped"
            while self._orders:
                self._refuse(self._orders.popleft()[2])

    def _pass_until_stopped(self, session: Session) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stop.is_set():
            try:
                self._run.refresh(is_whole=False)
                self._require_run(session)
                self._status = "working"
                session.reconcile(train=False)
                self._do_orders(session)
                self._trouble, pause_s = None, _FIRST_PAUSE_S
                self._status, self._doing = "idle", None
                self._rest(session)
            except (CommitFailed, Stopping):
                raise
            except SisaError as error:
                # Storage that is away, a shard that cannot be trained: requests are taken in all the same.
                session.workers.release()
                session.is_untidy = True
                self._status, self._trouble = "in trouble", str(error)
                logger.warning("%s; trying again in %.0f s", error, pause_s)
                self._stop.wait(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            # Requests come one by one; what is to be decided is decided for many together.
            self._stop.wait(_PASS_EVERY_S)

    def _do_orders(self, session: Session) -> None:
        while self._orders:
            name, arguments, future = self._orders.popleft()
            with contextlib.suppress(InvalidStateError):  # told meanwhile that the coordinator has stopped
                try:
                    result = self._tasks[name](session, **arguments)
                except (CommitFailed, Stopping) as error:
                    future.set_exception(error)
                    raise
                except Exception as error:
                    session.workers.release()
                    session.is_untidy = True
                    future.set_exception(error)
                else:
                    future.set_result(result)
            session.reconcile(train=False)

    def _rest(self, session: Session) -> None:
        """Wait for news: a request, an order, a time that the policy names, or what others wrote to the log."""
        idle_since = time.monotonic()
        while not (self._news.is_set() or self._stop.is_set()):
            if time.monotonic() - idle_since > _IDLE_S:
                session.workers.release()
            if session.is_to_sweep and self._run.state.purge_trouble is None and session.sweep():
                break
            with self._run.lock:
                moment = self._moment(session.workers)
                wake = wakes_at(self._run.spec, self._run.state, moment)
            left_s = _LOOK_S if wake is None else min(_LOOK_S, (wake - moment.now).total_seconds())
            if left_s <= 0:
                break
            self._news.wait(left_s)
            self._run.snapshot()
            head = self._run.head
            self._run.refresh(is_whole=False)
            self._require_run(session)
            if self._run.head != head:
                break
        self._news.clear()

    def _require_run(self, session: Session) -> None:
        """Stop where another process has taken the run since."""
        if self._run.state.attempt != session.attempt:
            raise CommitFailed(
                f"{self._run.address}: another process has taken the run; this coordinator stops"
            )

    def _moment(self, workers: Workers) -> Moment:
        count, since = self._slots
        if time.monotonic() - since > _SLOTS_FOR_S:
            try:
                count = workers.num_slots(self._run.spec)
            except ExecutionError:
                count = 1  # what is missing is said when a shard is to be trained
            self._slots = (count, time.monotonic())
        return Moment(now=self._run.now(), num_slots=count)

    def _record(self, event: Event) -> None:
        if not isinstance(event, StageProgress):
            self._doing = getattr(event, "text", self._doing)
        self._num_events += 1
        self._events.append((self._num_events, event))

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Stopping(f"{self._run.address}: the coordinator stops")

    # The thread that keeps the fence

    def _guard(self) -> None:
        assert self._fence is not None
        try:
            guard(
                self._run,
                self._fence,
                stop=self._stop,
                on_news=self._news.set,
                pace_s=_PASS_EVERY_S,
                look_s=_LOOK_S,
            )
        except CommitFailed as error:
            self._fail(error)

    # The thread that shows that somebody has the run

    def _show_life(self) -> None:
        show_life(self._run, attempt=self._attempt or "", stop=self._stop)

    def _fail(self, error: BaseException) -> None:
        self._trouble = str(error) or type(error).__name__
        logger.error("the coordinator stops: %s", self._trouble)
        self._stop.set()
        self._news.set()

    def _refuse(self, future: Future[Any]) -> None:
        """Answer somebody who came too late, unless they have an answer."""
        with contextlib.suppress(InvalidStateError):
            future.set_exception(self._gone())

    def _gone(self) -> SisaError:
        reason = f" ({self._trouble})" if self._trouble else ""
        return CommitFailed(f"{self._run.address}: the coordinator has stopped{reason}; start it again")
