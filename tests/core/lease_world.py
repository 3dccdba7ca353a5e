"""Replicas and coordinators that only have clocks, leases and messages: a simulation of discrete events.

Nothing is answered here: what could be handed out is looked at whenever that can change. That is exact, since whoever
is frozen hands out nothing, and a lease or an electorate becomes usable only where something is granted.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from sisa_ray.core.leases import LeaseBook, LeaseHolder
from sisa_ray.execution.leases import longest_s

Broken = Literal[
    "a lease never runs out",
    "a lease is counted from the answer",
    "leases rest on no look at the log",
    "the successor does not wait",
    "acknowledged before it is dropped",
    "the clock stands still while frozen",
    "whoever leaves goes on answering",
    "clocks that drift more than is allowed",
]

LEASE_S = 1.0
_UNTIL_S = 15.0
_LARGEST_DRIFT = 0.0049
_PATIENCE_S = 3.0


class StaleAnswer(AssertionError):
    """Something could be handed out that comes from somebody who is fenced."""


@dataclass(kw_only=True)
class Log:
    """Who has the run, the requests (by position), and those that are fenced."""

    owner: object = None
    is_open: bool = False
    head: int = 0
    requests: list[int] = field(default_factory=list)
    fenced_to: int = 0
    num_fenced: int = 0

    def fence(self, position: float) -> None:
        done = [r for r in self.requests if self.fenced_to < r <= position]
        if done:
            self.head += 1
            self.fenced_to = max(done)
            self.num_fenced += len(done)


class Machine:
    """Something with a clock that can be frozen."""

    def __init__(self, world: LeaseWorld) -> None:
        self.world = world
        drift = 0.15 if world.broken == "clocks that drift more than is allowed" else _LARGEST_DRIFT
        self._offset = world.random.uniform(-1e6, 1e6)
        self._rate = 1 + world.random.choice((-drift, drift, world.random.uniform(-drift, drift)))
        self.frozen_until = 0.0
        self._slept_s = 0.0

    def clock(self) -> float:
        return self._offset + self._rate * (self.world.now - self._slept_s)

    def later(self, after_s: float, act: Callable[[], None]) -> None:
        """Do it then, or once this machine is awake."""
        self.world.at(self.world.now + after_s, lambda: self._awake(act))

    def _awake(self, act: Callable[[], None]) -> None:
        if self.frozen_until > self.world.now:
            self.world.at(self.frozen_until, lambda: self._awake(act))
        else:
            act()

    def freeze(self, for_s: float) -> None:
        if self.frozen_until <= self.world.now:
            self.frozen_until = self.world.now + for_s
            if self.world.broken == "the clock stands still while frozen":
                self._slept_s += for_s
            self.later(for_s, self.on_wake)

    def on_wake(self) -> None: ...


class Taker(Machine):
    """Whoever has taken the run: a session without replicas, or a coordinator."""

    def __init__(self, world: LeaseWorld) -> None:
        super().__init__(world)
        world.log.owner = self
        world.log.head += 1
        wait_s = longest_s(LEASE_S) if world.log.is_open else 0.0
        self.blind_s = 0.0 if world.broken == "the successor does not wait" else wait_s

    def has_run(self) -> bool:
        return self.world.log.owner is self


class Plain(Taker):
    def __init__(self, world: LeaseWorld) -> None:
        super().__init__(world)
        self._until = self.clock() + self.blind_s
        self._wait()

    def _wait(self) -> None:
        if self.clock() < self._until:
            self.later(0.1, self._wait)
        elif self.has_run():
            self.world.log.fence(self.world.log.head)
            self.world.log.is_open = False
            self.world.look()
            self.later(0.5, self._wait)


class Coordinator(Taker):
    def __init__(self, world: LeaseWorld) -> None:
        super().__init__(world)
        self._book = LeaseBook(lease_s=LEASE_S, blind_until=self.clock() + self.blind_s)
        self._checked_at = float("-inf")
        self._position = -1
        self._requests: list[int] = []
        self._floor = world.log.head
        self._latest: dict[Replica, int] = {}
        self._look()

    def _look(self) -> None:
        checked_at = self.clock()
        self.later(self.world.delay(), lambda: self._read(checked_at))

    def _read(self, checked_at: float) -> None:
        log = self.world.log
        if not self.has_run():
            return  # it stops; what it was asked it still answers
        if not log.is_open:
            log.is_open = True
            log.head += 1
        self._checked_at, self._position, self._requests = checked_at, log.head, list(log.requests)
        acknowledged = self._book.position_of(self.clock())
        fenced = max((r for r in self._requests if r <= acknowledged), default=0)
        self._floor = max(self._floor, fenced)
        self.later(self.world.delay(), lambda: self._commit(fenced))

    def _commit(self, fenced: int) -> None:
        if self.has_run():
            self.world.log.fence(fenced)
            self.world.look()
            self.later(self.world.random.uniform(0.01, 0.3), self._look)

    def ask(self, replica: Replica, question: int, position: int) -> None:
        received_at = self.clock()
        self._book.acknowledge(replica.name, position=position, version=0)
        self._latest[replica] = question
        held_s = self.world.random.choice((0.0, self.world.random.uniform(0, LEASE_S / 4)))
        self.later(held_s, lambda: self._answer(replica, question, position, received_at))

    def _answer(self, replica: Replica, question: int, position: int, received_at: float) -> None:
        now, lasts_s = self.clock(), 0.0
        if self._position >= 0 and position >= self._floor and self._latest.get(replica) == question:
            is_blind = self.world.broken == "leases rest on no look at the log"
            lasts_s = self._book.renew(
                replica.name,
                position=position,
                version=0,
                checked_at=now if is_blind else self._checked_at,
                received_at=now if is_blind else received_at,
                now=now,
            )
        shown, requests = self._position, self._requests
        self.world.send(replica, lambda: replica.take(question, now - received_at, lasts_s, shown, requests))

    def leave(self, replica: Replica) -> None:
        self._latest.pop(replica, None)
        self._book.leave(replica.name)


class Replica(Machine):
    """Its electorates are positions: each knows those whose requests came later."""

    def __init__(self, world: LeaseWorld, name: str) -> None:
        super().__init__(world)
        self.name = name
        self._holder = LeaseHolder()
        self._position = -1
        self._electorates: list[int] = []
        self._question = 0
        self._asked_at = 0.0
        self._is_away = False
        self._ask()

    def _ask(self) -> None:
        if self._is_away:
            return
        self._question += 1
        question, position = self._question, self._position
        self._asked_at = self.clock()
        coordinator = self.world.somebody()
        if coordinator is not None:
            self.world.send(coordinator, lambda: coordinator.ask(self, question, position))
        self.later(_PATIENCE_S, lambda: self._ask() if self._question == question else None)

    def take(self, question: int, held_s: float, lasts_s: float, position: int, requests: list[int]) -> None:
        if question != self._question or self._is_away:
            return
        if position >= 0 and not self._electorates:
            self._electorates.append(position)
            self._position = position
        elif position > self._position:
            must_drop = any(self._position < r <= position for r in requests)
            self._position = position
            if self.world.broken == "acknowledged before it is dropped":
                self.later(0.2, lambda: self._drop(position, must_drop))
            else:
                self._drop(position, must_drop)
        asked_at = self._asked_at
        if self.world.broken == "a lease is counted from the answer":
            asked_at, held_s = self.clock(), 0.0
        self._holder.grant(asked_at=asked_at, held_s=held_s, lasts_s=lasts_s)
        self.look()
        self._ask()

    def _drop(self, position: int, must_drop: bool) -> None:
        if must_drop:
            self._electorates.append(position)
            self._holder.drop_before(len(self._electorates) - 1)
        else:
            self._electorates[-1] = max(position, self._electorates[-1])

    def look(self) -> None:
        """Whether something can be handed out that must not be."""
        if self.frozen_until > self.world.now:
            return
        is_endless = self.world.broken == "a lease never runs out" and self._electorates
        if self._holder.is_valid(self.clock()) or is_endless:
            usable = [p for serial, p in enumerate(self._electorates) if self._holder.is_clean(serial)]
            self.world.num_usable += 1
            if min(usable, default=self.world.log.head) < self.world.log.fenced_to:
                raise StaleAnswer(
                    f"{self.name} answers from {min(usable)}, {self.world.log.fenced_to} is fenced"
                )

    on_wake = look

    def leave(self, for_s: float) -> None:
        if self._is_away:
            return
        self._is_away = True
        if self.world.broken != "whoever leaves goes on answering":
            self._holder.give_up()
        for coordinator in self.world.coordinators:
            self.world.send(coordinator, lambda c=coordinator: c.leave(self))  # type: ignore[misc]
        self.later(for_s, self._come_back)

    def _come_back(self) -> None:
        """As another replica: those have ids of their own."""
        self.world.replicas.remove(self)
        self.world.replicas.append(Replica(self.world, f"{self.name}'"))


class LeaseWorld:
    """Runs for a while; :class:`StaleAnswer` where the promise is broken."""

    def __init__(self, seed: int, broken: Broken | None = None) -> None:
        self.random = random.Random(seed)
        self.broken = broken
        self.now = 0.0
        self.log = Log()
        self.num_usable = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.coordinators: list[Coordinator] = [Coordinator(self)]
        self.replicas = [Replica(self, f"r{i}") for i in range(self.random.randint(1, 3))]
        self._happen()

    def run(self) -> LeaseWorld:
        while self._events and self.now < _UNTIL_S:
            self.now, _, act = heapq.heappop(self._events)
            act()
        return self

    def at(self, when: float, act: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, act))

    def delay(self) -> float:
        slow = self.random.random() < 0.1
        return self.random.uniform(0, 1.5) if slow else self.random.uniform(0, 0.02)

    def send(self, to: Machine, act: Callable[[], None]) -> None:
        if self.random.random() > 0.05:
            to.later(self.delay(), act)

    def somebody(self) -> Coordinator | None:
        """The coordinator that a replica knows of; its handle may be of an earlier one."""
        is_late = self.random.random() < 0.4
        return self.random.choice(self.coordinators) if is_late else self.coordinators[-1]

    def look(self) -> None:
        for replica in list(self.replicas):
            replica.look()

    def _happen(self) -> None:
        draw = self.random.random()
        if draw < 0.4:
            self.log.head += 1
            self.log.requests.append(self.log.head)
        elif draw < 0.6:
            self.log.head += 1
        elif draw < 0.7:
            self.random.choice(self.replicas).freeze(self.random.uniform(0, 3))
        elif draw < 0.8:
            self.random.choice(self.coordinators).freeze(self.random.uniform(0, 3))
        elif draw < 0.85:
            self._supersede()
        elif draw < 0.9:
            self.random.choice(self.replicas).leave(self.random.uniform(0, 2))
        self.at(self.now + self.random.uniform(0, 0.5), self._happen)

    def _supersede(self) -> None:
        """Often one that was frozen, and that wakes later."""
        if self.random.random() < 0.5:
            self.coordinators[-1].freeze(self.random.uniform(0, 3))
        if self.random.random() < 0.3:
            Plain(self)
            self.at(
                self.now + self.random.uniform(0.5, 3), lambda: self.coordinators.append(Coordinator(self))
            )
        else:
            self.coordinators.append(Coordinator(self))
