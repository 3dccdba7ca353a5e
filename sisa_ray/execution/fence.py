"""The fence: what replicas answer from, by which lease, and when nobody answers from a model that knew somebody.

A coordinator shows its replicas a view of the run; they acknowledge it by asking for the next one. Whoever works on a
run without replicas in reach waits until what leases there may be have run out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from itertools import chain

from sisa_ray.core.errors import CommitFailed, ConfigError, SisaError, StateMoved
from sisa_ray.core.leases import LeaseBook, boot_time
from sisa_ray.core.places import Place
from sisa_ray.core.records import RequestsFenced, ServingClosed, ServingOpened
from sisa_ray.core.requests import Request
from sisa_ray.core.step import to_be_fenced
from sisa_ray.core.tokens import Tokens
from sisa_ray.core.view import View, next_view, tainted
from sisa_ray.execution.forget import places_of
from sisa_ray.execution.leases import PAUSE_S, Lease, Renewal, longest_s
from sisa_ray.storage.run import Run

logger = logging.getLogger("sisa_ray.coordinator")

POLL_S = 1.0
"""How long a replica's question waits for news."""

_GUARD_S = 0.5
_NUM_SHOWN = 64
"""Views that a replica may still have; whoever has an older one drops all that is not in the latest."""


class Fence:
    """The fence of a coordinator. Its loop looks at the log; replicas ask from the actor's event loop."""

    def __init__(
        self, run: Run, *, tokens: Callable[[], Tokens] | None = None, clock: Callable[[], float] = boot_time
    ) -> None:
        self._run = run
        self._clock = clock
        self._lease_s = float(run.spec.config.serving.lease_s)
        self._tokens = tokens
        self._known_tokens = Tokens()
        opened = run.state.serving
        blind_s = 0.0 if opened is None else longest_s(opened.lease_s)
        self._lock = threading.RLock()
        self._book = LeaseBook(lease_s=self._lease_s, blind_until=clock() + blind_s if blind_s else -1e18)
        self._routes: dict[str, tuple[Place, ...]] = {}
        self._view: View | None = None
        self._shown: dict[int, View] = {}
        self._tainted: dict[int, frozenset[int]] = {}
        self._checked_at = float("-inf")
        self._is_wanted = False
        self._may_grant = False
        self._asked_at = clock()
        self._floor = run.state.entry.seq
        self._published_at: dict[str, int] = {}
        self._wanted_position = -1
        self._waiting: dict[str, tuple[asyncio.AbstractEventLoop, asyncio.Event]] = {}
        self.news = threading.Event()
        """Set when a replica has acknowledged something, or asks for the first time."""

    # The coordinator's loop

    @property
    def view(self) -> View | None:
        """What replicas are shown."""
        return self._view

    @property
    def num_replicas(self) -> int:
        """Replicas that have a lease."""
        with self._lock:
            return self._book.num_replicas(self._clock())

    @property
    def is_in_service(self) -> bool:
        """Whether replicas ask, or may have leases."""
        return self._is_wanted or self._run.state.serving is not None

    def look(self, checked_at: float) -> None:
        """Show the state as it is to the replicas, and commit what they have acknowledged.

        Args:
            checked_at: just before the log was last read; it said that this coordinator has the run.
        """
        run = self._run
        if self.is_in_service:
            self._open_or_close()
            view = self._next_view()
            tokens = self._read_tokens()
            with self._lock:
                self._checked_at = checked_at
                is_news = view != self._view and (
                    self._view is None or view is None or view.version != self._view.version
                )
                self._show(view)
                if tokens.digest != self._known_tokens.digest:
                    self._known_tokens, is_news = tokens, True
        else:
            is_news = False
        fenced = self._acknowledged()
        if fenced:
            run.commit(RequestsFenced(requests=tuple(r.request for r in fenced)))
        with run.lock:
            unfenced = to_be_fenced(run.spec, run.state)
        if unfenced:
            self._wanted_position = max(self._wanted_position, *(self._needed(r) for r in unfenced))
        with self._lock:
            position = -1 if self._view is None else min(self._view.position, self._wanted_position)
            is_behind = self._book.position_of(self._clock()) < position
        if is_news or is_behind:
            self._wake()

    def _read_tokens(self) -> Tokens:
        try:
            return self._known_tokens if self._tokens is None else self._tokens()
        except ConfigError as error:  # those that were known hold on, and so does the service
            logger.warning("%s", error)
            return self._known_tokens

    def _show(self, view: View | None) -> None:
        self._view = view
        if view is not None:
            self._shown[view.version] = view
            self._tainted.setdefault(view.version, frozenset())
            for version in sorted(self._shown)[:-_NUM_SHOWN]:
                del self._shown[version]

    def _open_or_close(self) -> None:
        """Whoever takes the run after a crash has to know that there may be leases."""
        run, opened = self._run, self._run.state.serving
        if self._is_wanted and (opened is None or opened.lease_s < self._lease_s):
            run.commit(ServingOpened(lease_s=self._lease_s))
        elif opened is not None:
            with self._lock:
                now = self._clock()
                is_idle = self._book.is_idle(now) and now - self._asked_at > 3 * self._lease_s
                if is_idle:
                    # Nobody gets a lease while the log is about to say that nobody has one.
                    self._is_wanted = self._may_grant = False
            if is_idle:
                run.commit(ServingClosed())
        with self._lock:
            self._may_grant = run.state.serving is not None

    def _acknowledged(self) -> list[Request]:
        run = self._run
        with run.lock:
            waiting = to_be_fenced(run.spec, run.state)
            if not waiting:
                return []
            if run.state.serving is None:
                return waiting
            with self._lock:
                position = self._book.position_of(self._clock())
                fenced = [r for r in waiting if self._needed(r) <= position]
                self._floor = max([self._floor, *(self._needed(r) for r in fenced)])
            return fenced

    def _needed(self, request: Request) -> int:
        """The position from which on nobody knows the people of a request."""
        if self._run.spec.config.serving.fence != "keep-until-rebuilt":
            return request.seq
        return self._published_at.setdefault(request.request, self._run.state.entry.seq)

    def _next_view(self) -> View | None:
        run = self._run
        while True:
            with run.lock:
                state = run.state
                planned = {
                    b.plan.batch: () if b.rewritten else b.plan.affected for b in state.batches.values()
                }
                waiting = [n for n, r in state.requests.items() if r.batch is None]
                missing = [n for n in waiting if n not in self._routes]
                if not missing:
                    # Of the same state as the view: a request that came between would be passed over.
                    self._routes = {n: self._routes[n] for n in waiting}
                    self._published_at = {n: p for n, p in self._published_at.items() if n in state.requests}
                    first: dict[int, int] = {}
                    for shard, slice_ in chain(*self._routes.values(), *planned.values()):
                        first[shard] = min(slice_, first.get(shard, slice_))
                    taints = {n: tainted(run.spec, state, first, v) for n, v in self._shown.items()}
                    view = next_view(run.spec, state, first, self._view)
                    break
            self._routes.update(places_of(run, missing))
        with self._lock:
            self._tainted = taints
        return view

    # A session of the coordinator

    def fence(self, run: Run, requests: Sequence[str], interrupt: Callable[[], None]) -> None:
        """See :class:`Leases`: the coordinator's loop commits it."""
        self.news.set()
        while any(
            (asked := run.state.requests.get(name)) is not None and asked.fenced_at is None
            for name in requests
        ):
            interrupt()
            time.sleep(PAUSE_S)

    def settle(self, run: Run, interrupt: Callable[[], None]) -> None:
        """See :class:`Leases`."""
        if not self.is_in_service:
            return
        with self._lock:
            position = self._wanted_position = max(self._wanted_position, run.state.entry.seq)
        self._wake()
        self.news.set()
        while run.state.serving is not None:
            with self._lock:
                view, now = self._view, self._clock()
                # Its position says that the view is of what was published, its version what is to be in memory.
                if (
                    view is not None
                    and view.position >= position
                    and self._book.version_of(now) >= view.version
                    and self._book.position_of(now) >= position
                ):
                    self._floor = max(self._floor, position)
                    return
            interrupt()
            time.sleep(PAUSE_S)

    # The replicas

    async def renew(self, asked: Renewal) -> Lease:
        """Acknowledge what a replica holds; answer when there is news for it, or after a while."""
        received_at = self._clock()
        self._is_wanted = True
        with self._lock:
            self._asked_at = received_at
            self._book.acknowledge(asked.replica, position=asked.position, version=asked.version)
        self.news.set()
        waiter = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            if (earlier := self._waiting.get(asked.replica)) is not None:
                earlier[1].set()
            self._waiting[asked.replica] = waiter
            is_news = self._is_news(asked)
        if not is_news:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(waiter[1].wait(), min(POLL_S, self._lease_s / 4))
        with self._lock:
            is_latest = self._waiting.get(asked.replica) is waiter
            if is_latest:
                del self._waiting[asked.replica]
        return self._granted(asked, received_at, is_latest=is_latest)

    def _is_news(self, asked: Renewal) -> bool:
        view = self._view
        if view is None:
            return asked.seen != -1
        if asked.tokens != self._known_tokens.digest or asked.seen != view.version:
            return True
        return asked.position < min(max(self._wanted_position, self._floor), self._respected_by(asked.voting))

    def _respected_by(self, voting: int) -> int:
        """Up to where requests are respected by the voters of a view, without those that it has to drop."""
        view, shown = self._view, self._shown.get(voting)
        if view is None:
            return -1
        is_kept = self._run.spec.config.serving.fence == "keep-until-rebuilt"
        if is_kept and shown is not None and shown.generation != view.generation:
            return shown.position  # they drop nobody, and go on until what was published is loaded
        return view.position

    def _granted(self, asked: Renewal, received_at: float, *, is_latest: bool) -> Lease:
        with self._lock:
            now = self._clock()
            view = self._view
            lasts_s = 0.0
            # The log has to say that there are leases before there is one. And nobody may answer from a view which
            # everybody else has dropped: not even for the moment that it takes to read this answer.
            # What the replica has told since counts, and not this question.
            is_open = view is not None and self._may_grant and is_latest
            if is_open and asked.position >= self._floor:
                lasts_s = self._book.renew(
                    asked.replica,
                    position=asked.position,
                    version=asked.version,
                    checked_at=self._checked_at,
                    received_at=received_at,
                    now=now,
                )
            is_known = asked.voting == -1 or (asked.voting in self._tainted and asked.voting in self._shown)
            is_seen = view is not None and view.version == asked.seen and is_known
            return Lease(
                held_s=now - received_at,
                lasts_s=lasts_s,
                position=self._respected_by(asked.voting),
                view=None if is_seen else view,
                drop=self._tainted.get(asked.voting, frozenset()) if is_known else None,
                is_published=view is not None,
                tokens=None if asked.tokens == self._known_tokens.digest else self._known_tokens,
            )

    def leave(self, replica: str) -> None:
        """A replica that answers no more."""
        with self._lock:
            self._book.leave(replica)
            self._waiting.pop(replica, None)  # what it asked before gets no lease any more
        self.news.set()

    def _wake(self) -> None:
        with self._lock:
            waiting = list(self._waiting.values())
        for loop, event in waiting:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                loop.call_soon_threadsafe(event.set)


def guard(
    run: Run,
    fence: Fence,
    *,
    stop: threading.Event,
    on_news: Callable[[], None],
    pace_s: float,
    look_s: float,
) -> None:
    """Keep the fence until ``stop``.

    Args:
        run: this process has taken it.
        fence: of the coordinator.
        stop: ends it.
        on_news: told where the log has grown.
        pace_s: between two looks, so that requests that come one by one are fenced together.
        look_s: between two looks at the log where nobody serves; where somebody does, leases rest on them.

    Raises:
        CommitFailed: where another process has the run.
    """
    while not stop.is_set():
        fence.news.wait(min(_GUARD_S, look_s) if fence.is_in_service else look_s)
        fence.news.clear()
        try:
            checked_at, head = boot_time(), run.head
            run.refresh(is_whole=False)
            _require_run(run)
            fence.look(checked_at)
            if run.head != head:
                on_news()
        except CommitFailed:
            raise
        except StateMoved:
            fence.news.set()
        except SisaError as error:  # storage that is away: leases run out, and it is tried again
            logger.warning("the fence: %s", error)
        stop.wait(pace_s)


def _require_run(run: Run) -> None:
    if run.state.attempt != run.attempt:
        raise CommitFailed(f"{run.address}: another process has taken the run; this coordinator stops")
