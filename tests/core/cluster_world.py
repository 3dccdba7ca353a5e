"""The world of one simulated history: what goes wrong in it, and who starts coordinators."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from sisa_ray.core.errors import StorageUnavailable
from sisa_ray.core.records import StageBuilt
from sisa_ray.core.step import Moment
from tests.core.cluster_checks import Referee, Violation
from tests.core.cluster_coordinator import Coordinator
from tests.core.cluster_people import People
from tests.core.cluster_start import PLACES, people_before, prefix
from tests.core.cluster_store import (
    DAY_S,
    HOUR_S,
    NEVER,
    NUM_SHARDS,
    SIZE_BYTES,
    TABLE,
    Entry,
    Group,
    Loop,
    Odds,
    Steps,
    Store,
    records_of,
    slice_ref,
    spec_of,
)

MARGIN_S = 12 * HOUR_S
"""In this time everything that was begun is finished, whatever went wrong before it."""
_MAX_STEPS = 10_000
_KEEPS: tuple[object, ...] = ("all", "all", (), (1,), SIZE_BYTES * NUM_SHARDS)


class World:
    """One history."""

    def __init__(self, seed: int, *, odds: Odds | None = None, is_traced: bool = False) -> None:
        self.rng = random.Random(seed)
        self.is_traced = is_traced
        self.trace: list[str] = []
        self.odds = Odds.drawn(self.rng) if odds is None else odds
        self.faults_on = True
        self.faults: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.loop = Loop()
        self.store = Store()
        self.train = self.rng.random() < 0.15
        """Nothing is trained yet: the coordinators train a first generation."""
        self.num_slots = self.rng.choice((1, 2))
        self.calm_since_s = 0.0
        self.spec = spec_of(self._policy(), self.rng.choice(_KEEPS))
        self.referee = Referee(self)
        self.coordinators: list[Coordinator] = []
        self._num_ids = 0
        self.people = People(self)
        self._begin()

    def _policy(self) -> tuple[tuple[str, Any], ...]:
        rng = self.rng
        return (
            ("batching", rng.choice(("at_once", "size", "window", "deadline"))),
            ("batch_size", rng.choice((2, 3))),
            ("window_s", rng.choice((HOUR_S, DAY_S))),
            ("safety_margin_s", MARGIN_S),
            ("min_subjects", rng.choice((1, 1, 2, 4))),
        )

    def _begin(self) -> None:
        """A run that was made before the history begins."""
        for where in PLACES:
            ref = slice_ref(*where, records_of(where), "a0")
            if ref.path is not None:
                held = frozenset(TABLE[r] for r in records_of(where))
                self.store.put(ref.path, held, records_of(where), "a0")
        records = prefix(is_trained=not self.train)
        for record in records:
            if isinstance(record, StageBuilt):
                held = people_before((record.ref.shard, record.ref.stage))
                assert record.ref.path is not None
                self.store.put(record.ref.path, held, record.ref.file_digest, "a0")
                self.referee.saw(record.ref.file_digest, held)
        self.store.listed["a0"] = 0
        entry = Entry(seq=0, before="", commit="c0", at=self.loop.now(), records=records)
        self.store.create_entry(entry)
        self.referee.on_entry(entry)
        self.store.on_entry = self._on_entry

    # What processes ask of the world

    def say(self, who: str, what: str) -> None:
        if self.is_traced:
            self.trace.append(f"{self.loop.now_s:12.2f}  {who:12} {what}")

    def new_id(self, kind: str) -> str:
        self._num_ids += 1
        return f"{kind}{self._num_ids}"

    def moment(self) -> Moment:
        return Moment(now=self.loop.now(), num_slots=self.num_slots)

    def latency(self) -> float:
        return 0.02 + self.rng.random() ** 4 * 2.0

    def pace(self) -> float:
        return 3.0 if self.rng.random() < self.odds.slow else 0.5 + self.rng.random() / 2

    def draw_platform(self) -> str:
        return "gpu" if self.rng.random() < self.odds.other_platform else "cpu"

    def act(self, group: Group, what: str, apply: Callable[[], Any]) -> Steps:
        """A durable action: what ``apply`` answers, unless a fault comes before or after.

        Raises:
            StorageUnavailable: it failed, or its answer is lost.
        """
        self._num_ids += 1
        number = self._num_ids
        group.sent[number] = apply
        yield self.latency()
        fault = self._fault(group)
        del group.sent[number]
        if fault is not None:
            self.say(group.name, f"{what}: {fault}")
        match fault:
            case "crash before":
                group.sent[number] = apply
                self.crash(group)
                yield NEVER
            case "crash after":
                apply()
                self.crash(group)
                yield NEVER
            case "storage failed":
                self._maybe_later(apply)
                yield 120.0
                raise StorageUnavailable(f"{what}: storage did not answer")
            case "answer lost":
                apply()
                yield 120.0
                raise StorageUnavailable(f"{what}: the answer was lost")
            case "answer lost, tried again":
                apply()
                yield 5.0  # what was applied is found by its commit id
            case "pause":
                yield 0.0  # the loop holds the whole group
        self.say(group.name, what)
        result = apply()
        yield self.latency()
        return result

    def _fault(self, group: Group) -> str | None:
        if not self.faults_on:
            return None
        odds, drawn = self.odds, self.rng.random()
        for chance, names in (
            (odds.crash, ("crash before", "crash after")),
            (odds.failed, ("storage failed",)),
            (odds.lost, ("answer lost", "answer lost, tried again")),
            (odds.pause, ("pause",)),
        ):
            if drawn < chance:
                fault = self.rng.choice(names)
                self.faults[fault] += 1
                self.disturb()
                if fault == "pause":
                    self._pause(group)
                return fault
            drawn -= chance
        return None

    def _pause(self, group: Group) -> None:
        pause_s = self.rng.choice((60.0, HOUR_S, 5 * HOUR_S)) * (0.5 + self.rng.random())
        group.paused_until = self.loop.now_s + pause_s
        self.disturb(pause_s)
        if self.rng.random() < 0.7:
            self.loop.at(self.loop.now_s + self.rng.random() * pause_s, self._need_coordinator)

    def _maybe_later(self, apply: Callable[[], Any]) -> None:
        """A write that is on its way may arrive though nobody waits for it any more."""
        if self.rng.random() < 0.5:

            def arrive() -> None:
                self.say("late", "what follows arrives")
                apply()

            self.faults["late write"] += 1
            self.loop.at(self.loop.now_s + self.rng.random() * 300.0, arrive)

    def disturb(self, for_s: float = 0.0) -> None:
        """Something goes wrong: deadlines are judged by what is calm from the end of it on."""
        self.calm_since_s = max(self.calm_since_s, self.loop.now_s + for_s)

    def crash(self, group: Group) -> None:
        """A process ends in the middle of things."""
        self.kill(group)
        group.on_crash()

    def kill(self, group: Group) -> None:
        group.is_alive = False
        for apply in group.sent.values():
            self._maybe_later(apply)
        group.sent.clear()

    def delete(self, path: str) -> None:
        """What a purge deletes."""
        if path in self.store.objects:
            self.referee.on_purge(path)
            is_sticky = self.store.sticky.setdefault(path, self.rng.random() < 0.4)
            if self.loop.now_s < self.store.sticky_until_s and is_sticky:
                self.faults["deletion without effect"] += 1
                return
            self.store.delete(path)

    def delete_own(self, path: str) -> None:
        """What a writer takes back."""
        if path in self.referee.truth.payloads:
            raise Violation("purge spares what is named", f"{path} is taken back, though requests are in it")
        self.store.delete(path)

    def holder(self) -> Coordinator | None:
        """The coordinator that has the run, where it is alive."""
        attempt = self.referee.truth.attempt
        return next((c for c in self.coordinators if c.attempt == attempt and c.is_alive), None)

    def put(self, path: str, held: frozenset[str], content: Any, writer: str) -> None:
        self.store.put(path, held, content, writer)
        self._tell()

    def _on_entry(self, entry: Entry) -> None:
        self.say("log", f"{entry.seq}: {' '.join(r.type for r in entry.records)}")
        self.referee.on_entry(entry)
        self._tell()

    def _tell(self) -> None:
        """Whoever rests would see it within two seconds."""
        for coordinator in self.coordinators:
            if coordinator.is_alive and coordinator.news.waiters:
                self.loop.notify(coordinator.news, self.rng.random() * 2.0)

    # Those who start coordinators

    def start_coordinator(self) -> None:
        name = self.new_id("a")
        self.say(name, "starts")
        coordinator = Coordinator(self, name)
        coordinator.group.on_crash = lambda: self._on_crash(coordinator)
        self.coordinators.append(coordinator)
        self.disturb()
        self.loop.spawn(coordinator.work(), coordinator.group)

    def _need_coordinator(self) -> None:
        def is_fit(c: Coordinator) -> bool:
            return c.is_alive and not c.is_stopping and c.group.paused_until <= self.loop.now_s

        if not any(map(is_fit, self.coordinators)):
            self.start_coordinator()

    def _on_crash(self, coordinator: Coordinator) -> None:
        # Its actors may live on for a while, and write what nobody commits.
        if self.rng.random() < 0.5:
            coordinator.pool.release()
        self.ended(coordinator)

    def ended(self, coordinator: Coordinator) -> None:
        self.say(coordinator.attempt, "has ended")
        if self.holder() is None:
            self.disturb(HOUR_S)
        self.loop.at(self.loop.now_s + self.rng.random() * HOUR_S, self._need_coordinator)

    def _stop_one(self) -> None:
        for coordinator in self.coordinators:
            if coordinator.is_alive and not coordinator.is_stopping:
                self.faults["clean stop"] += 1
                self.disturb()
                coordinator.is_stopping = True
                self.loop.notify(coordinator.news)

    def _take_over(self) -> None:
        self.faults["two coordinators"] += sum(c.is_alive for c in self.coordinators) > 0
        self.start_coordinator()

    def _lose_checkpoint(self) -> None:
        paths = sorted(p for p in self.store.objects if p.startswith("checkpoints/"))
        if paths:
            self.faults["checkpoint vanished"] += 1
            self.disturb()
            self.store.delete(self.rng.choice(paths))

    def _stick(self) -> None:
        for_s = self.rng.random() * self.rng.choice((60.0, HOUR_S, 4 * HOUR_S))
        self.store.sticky_until_s = self.loop.now_s + for_s
        self.disturb(for_s)

    def play(self) -> None:
        """The whole history.

        Raises:
            Violation: of what must hold.
        """
        try:
            self._play()
        except (AssertionError, LookupError, ValueError) as error:
            raise Violation("a run ends", f"{type(error).__name__}: {error}") from error

    def _play(self) -> None:
        end_s, times = self.people.come()
        self._go_wrong([t + self.rng.random() * HOUR_S for t in times])
        self.start_coordinator()
        self.loop.at(end_s, lambda: None)
        self.loop.run(until=lambda: self.loop.now_s >= end_s, max_steps=_MAX_STEPS, max_s=end_s)
        self._calm_down()
        groups = [c.group for c in self.coordinators]
        settled_s = max(self.loop.now_s, *(g.paused_until for g in groups)) + HOUR_S
        self.loop.at(settled_s, lambda: None)  # by then everything late has arrived

        def is_over() -> bool:
            return (
                self.loop.now_s >= settled_s
                and any(c.is_alive and c.is_resting for c in self.coordinators)
                and not self.people.num_waiting
                and self.referee.is_over()
            )

        max_s = self.loop.now_s + 30 * DAY_S
        is_ended = self.loop.run(until=is_over, max_steps=2 * _MAX_STEPS, max_s=max_s)
        self.referee.check_end(is_over=is_ended)

    def _go_wrong(self, near: list[float]) -> None:
        """What goes wrong by itself, and not at an action: most of it near the times when people ask."""
        for count, event in (
            (self.odds.takeovers, self._take_over),
            (self.odds.vanishing, self._lose_checkpoint),
            (self.odds.sticky, self._stick),
            (int(self.odds.stops), self._stop_one),
        ):
            for _ in range(count):
                self.loop.at(self.rng.choice(near), partial(self._while_on, event))

    def _while_on(self, event: Callable[[], None]) -> None:
        if self.faults_on:
            event()

    def _calm_down(self) -> None:
        """Faults end; one coordinator has the run, beside those that still have to find out, or are paused."""
        self.say("world", "faults end")
        self.faults_on = False
        self.store.sticky_until_s = -1.0
        self.disturb()
        self.start_coordinator()
