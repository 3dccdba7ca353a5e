"""The outside world of a simulated cluster: a clock, processes that take turns, and object storage.

Everything random comes from one generator, so that a seed is a whole history.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from typing import Any

from sisa_ray.core.config import SisaSection
from sisa_ray.core.identity import Spec
from sisa_ray.core.partition import Layout, place
from sisa_ray.core.places import Place
from sisa_ray.core.records import Record, SliceRef
from tests.core.builders import make_slice, make_spec

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
NUM_SHARDS, NUM_SLICES = 2, 2
SIZE_BYTES = 100
SUBJECTS = tuple(f"s{i}" for i in range(9))
NOBODY = ("n0", "n1")
"""People whom the table does not hold."""
TABLE = {f"r{i}": s for i, s in enumerate(SUBJECTS)} | {"x0": "s0", "x3": "s3"}
HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
STEP_S = 60.0
"""Seconds of a training step, at most; a slow actor takes three times as long."""
PERMANENT = "certificates/"


class Signal:
    """Something to wait for."""

    __slots__ = ("waiters",)

    def __init__(self) -> None:
        self.waiters: list[tuple[Process, int]] = []


@dataclass(slots=True)
class Wait:
    """Sleep until the signal, or so many seconds."""

    signal: Signal
    timeout_s: float | None = None


NEVER = Wait(Signal())
"""What a process that has crashed waits for."""

Steps = Generator["float | Wait", None, Any]


class Group:
    """Processes that live, die and are paused together: one operating-system process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_alive = True
        self.paused_until = 0.0
        self.sent: dict[int, Callable[[], Any]] = {}
        """Writes on their way to storage."""
        self.on_crash: Callable[[], None] = lambda: None


@dataclass(eq=False, slots=True)
class Process:
    """One thread of a group."""

    steps: Steps
    group: Group
    token: int = 0
    """Of the wake-up that counts; others are stale."""


class Loop:
    """Runs processes and events in the order of simulated time (seconds from :data:`START`)."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.num_steps = 0
        self._heap: list[tuple[float, int, Process | Callable[[], None], int]] = []
        self._num = 0

    def now(self) -> datetime:
        return START + timedelta(seconds=self.now_s)

    def at(self, when_s: float, event: Callable[[], None]) -> None:
        self._push(when_s, event, 0)

    def spawn(self, steps: Steps, group: Group, delay_s: float = 0.0) -> None:
        self._push(self.now_s + delay_s, Process(steps, group), 0)

    def notify(self, signal: Signal, delay_s: float = 0.0) -> None:
        waiters, signal.waiters = signal.waiters, []
        for process, token in waiters:
            self._push(self.now_s + delay_s, process, token)

    def run(self, *, until: Callable[[], bool], max_steps: int, max_s: float) -> bool:
        """Go on until something is so; False where nothing is left to do, or it takes too long."""
        while not until():
            if not self._heap or self.num_steps > max_steps or self.now_s > max_s:
                return False
            when_s, _, item, token = heapq.heappop(self._heap)
            self.now_s = max(when_s, self.now_s)
            if isinstance(item, Process):
                self._resume(item, token)
            else:
                item()
        return True

    def _resume(self, process: Process, token: int) -> None:
        group = process.group
        if token != process.token or not group.is_alive:
            return
        if group.paused_until > self.now_s:
            self._push(group.paused_until, process, token)
            return
        self.num_steps += 1
        process.token += 1
        try:
            asked = next(process.steps)
        except StopIteration:
            return
        if asked is NEVER:
            return
        if isinstance(asked, Wait):
            asked.signal.waiters.append((process, process.token))
            if asked.timeout_s is not None:
                self._push(self.now_s + asked.timeout_s, process, process.token)
        else:
            self._push(self.now_s + asked, process, process.token)

    def _push(self, when_s: float, item: Process | Callable[[], None], token: int) -> None:
        self._num += 1
        heapq.heappush(self._heap, (when_s, self._num, item, token))


class Lock:
    """Held across scheduling points; ``yield from lock.taken()``."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._is_held = False
        self._freed = Signal()

    def taken(self) -> Steps:
        while self._is_held:
            yield Wait(self._freed)
        self._is_held = True

    def free(self) -> None:
        self._is_held = False
        self._loop.notify(self._freed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An entry of the commit log."""

    seq: int
    before: str
    """The commit that it follows: its place in the chain."""
    commit: str
    at: datetime
    records: tuple[Record, ...]


@dataclass(slots=True, kw_only=True)
class Stored:
    """An object: the subjects whose data it holds, and what can be read in it."""

    held: frozenset[str]
    content: Any
    writer: str
    written: int
    """On the store's own count of writes and listings."""


@dataclass(kw_only=True)
class Store:
    """Object storage: linearisable, its log entries put-if-absent."""

    objects: dict[str, Stored] = field(default_factory=dict)
    log: list[Entry] = field(default_factory=list)
    count: int = 0
    listed: dict[str, int] = field(default_factory=dict)
    """The count of each attempt's last listing."""
    sticky_until_s: float = -1.0
    """Until then deletions of some objects take no effect."""
    sticky: dict[str, bool] = field(default_factory=dict)
    on_entry: Callable[[Entry], None] = lambda entry: None

    def put(self, path: str, held: frozenset[str], content: Any, writer: str) -> None:
        self.count += 1
        self.objects[path] = Stored(held=held, content=content, writer=writer, written=self.count)

    def list(self, attempt: str) -> list[str]:
        self.count += 1
        self.listed[attempt] = self.count
        return list(self.objects)

    def delete(self, path: str) -> None:
        self.objects.pop(path, None)

    def create_entry(self, entry: Entry) -> bool:
        """Whether the entry is there now: False where another one has its number."""
        if entry.seq < len(self.log):
            return self.log[entry.seq].commit == entry.commit
        assert entry.seq == len(self.log)
        self.log.append(entry)
        self.on_entry(entry)
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Odds:
    """How likely each fault is at a durable action of a coordinator, and in a whole history."""

    crash: float = 0.0
    pause: float = 0.0
    failed: float = 0.0
    lost: float = 0.0
    slow: float = 0.0
    takeovers: int = 0
    vanishing: int = 0
    sticky: int = 0
    stops: int = 0
    other_platform: float = 0.0

    @classmethod
    def drawn(cls, rng: random.Random) -> Odds:
        """Some histories are calm, so that what must be done in time can be seen to be."""
        if rng.random() < 0.2:
            return cls()
        return cls(
            crash=rng.choice((0.0, 0.0, 0.004, 0.015)),
            pause=rng.choice((0.0, 0.0, 0.003, 0.01)),
            failed=rng.choice((0.0, 0.0, 0.01, 0.03)),
            lost=rng.choice((0.0, 0.0, 0.01, 0.04)),
            slow=rng.choice((0.0, 0.2)),
            takeovers=rng.choice((0, 0, 1, 2)),
            vanishing=rng.choice((0, 0, 1, 3)),
            sticky=rng.choice((0, 0, 1, 2)),
            stops=rng.choice((0, 0, 0, 1)),
            other_platform=rng.choice((0.0, 0.0, 0.0, 0.3)),
        )


class _FastSection(SisaSection):
    """Epochs worked out once: they are asked for at every decision."""

    def epochs_of(self, num_stages: int) -> Any:
        return epochs(num_stages)


class FastSpec(Spec):
    """A spec whose digest is worked out once."""

    @property
    def stage_digest(self) -> str:
        return stage_digest()


_PLAIN = make_spec(
    sisa={"num_shards": NUM_SHARDS, "num_slices": NUM_SLICES, "epochs": 2},
    data__subject_id="person",
    batch_size=2,
)


@lru_cache
def stage_digest() -> str:
    return _PLAIN.stage_digest


@lru_cache
def epochs(num_stages: int) -> Any:
    return _PLAIN.config.sisa.epochs_of(num_stages)


@cache
def spec_of(policy: tuple[tuple[str, Any], ...], keep: object) -> FastSpec:
    """The one spec of all histories, with circumstances of its own."""
    config = _PLAIN.config
    fields = {name: value for name, value in config.unlearning if name not in dict(policy)}
    section = type(config.unlearning).model_validate({**fields, **dict(policy)})
    sisa = _FastSection.model_construct(**dict(config.sisa))
    update = {"unlearning": section, "keep_checkpoints": keep, "sisa": sisa}
    return FastSpec.model_construct(**{**dict(_PLAIN), "config": config.model_copy(update=update)})


@cache
def place_of(subject: str) -> Place:
    layout = Layout(num_shards=NUM_SHARDS, num_slices=NUM_SLICES, seed=_PLAIN.config.sisa.seed)
    shards, slices = place([subject], layout)
    return int(shards[0]), int(slices[0])


def tag_of(subject: str) -> str:
    return f"tag {subject}"


@cache
def records_of(where: Place, forgotten: frozenset[str] = frozenset()) -> frozenset[str]:
    """The records that a slice has without some people."""
    return frozenset(r for r, s in TABLE.items() if s not in forgotten and place_of(s) == where)


def slice_ref(shard: int, slice_: int, records: frozenset[str], attempt: str) -> SliceRef:
    """A reference to a slice, its path its contents' own."""
    ref = make_slice(shard, slice_, records, attempt=attempt)
    path = ref.path and f"{ref.path}/{ref.content_digest[:8]}"
    return ref.model_copy(update={"path": path})


def is_below(path: str, shards: set[int]) -> bool:
    """Whether an object is of one of these shards, or of none in particular."""
    kind, *parts = path.split("/")
    if kind not in ("data", "checkpoints", "partials"):
        return True
    return int((parts[1] if kind == "partials" else parts[0]).partition("-")[0]) in shards
