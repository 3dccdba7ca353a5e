"""Where long work stands, from its events: figures without screens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from sisa_ray.execution.events import StageFinished, StageProgress, WorkPlanned

Clock = Callable[[], float]

_RATE_WINDOW_S = 20.0
_RATE_AFTER_S = 0.5


@dataclass(kw_only=True)
class ShardLine:
    """What one shard is at."""

    shard: int
    stages_built: int = 0
    stage: int | None = None
    step: int = 0
    num_steps: int = 0


class Tracker:
    """Where the work stands, from the events so far."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.begin()

    def begin(self, plan: WorkPlanned | None = None) -> None:
        """Start counting anew, for ``plan``."""
        self.num_shards = plan.num_shards if plan else 0
        self.num_stages = plan.num_stages if plan else 0
        self._planned_steps = plan.num_steps if plan else 0
        self.stages_built = 0
        self.shards: dict[int, ShardLine] = {}
        self._built_steps = 0
        # From the first news on: what went before was the start of shard actors, or done by an earlier command.
        self._samples: deque[tuple[float, int]] = deque()

    def advance(self, event: StageProgress | StageFinished) -> None:
        """A shard got further."""
        shard = event.shard if isinstance(event, StageProgress) else event.ref.shard
        line = self.shards.pop(shard, None) or ShardLine(shard=shard)
        self.shards[shard] = line  # latest last
        if isinstance(event, StageProgress):
            line.stage, line.step, line.num_steps = event.stage, event.step, event.num_steps
        else:
            line.stage = None
            line.step = 0
            line.stages_built += 1
            self.stages_built += 1
            self._built_steps += event.ref.num_steps
        now = self._clock()
        self._samples.append((now, self.steps))
        while len(self._samples) > 2 and now - self._samples[0][0] > _RATE_WINDOW_S:
            self._samples.popleft()

    @property
    def steps(self) -> int:
        """Steps done."""
        return self._built_steps + sum(line.step for line in self.shards.values())

    @property
    def num_steps(self) -> int:
        """Steps in all; more than planned where a checkpoint had to be rebuilt."""
        return max(self._planned_steps, self.steps)

    @property
    def fraction(self) -> float:
        """Share of the steps done, in [0, 1]."""
        return self.steps / self.num_steps if self.num_steps else 1.0

    @property
    def steps_per_s(self) -> float | None:
        """Recent speed, None while there is nothing to go by."""
        if not self._samples:
            return None
        (t0, n0), (t1, n1) = self._samples[0], self._samples[-1]
        return (n1 - n0) / (t1 - t0) if t1 - t0 >= _RATE_AFTER_S and n1 > n0 else None

    @property
    def left_s(self) -> float | None:
        """Estimate of the seconds left."""
        rate = self.steps_per_s
        return (self.num_steps - self.steps) / rate if rate else None

    def figures(self) -> list[str]:
        """Steps and stages done, and rate and time left where they are known."""
        parts = [f"{self.steps:,}/{self.num_steps:,} steps"]
        parts.append(f"{self.stages_built}/{max(self.num_stages, self.stages_built)} stages")
        rate, left = self.steps_per_s, self.left_s
        if rate is not None and left is not None and self.steps < self.num_steps:
            parts += [f"{rate:,.0f} steps/s", f"about {duration(left)} left"]
        return parts


def count(number: int, noun: str) -> str:
    """A number of things.

    >>> count(1, "stage"), count(2000, "stage")
    ('1 stage', '2,000 stages')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(0.42), duration(75), duration(7500)
    ('0.4 s', '1 min 15 s', '2 h 05 min')
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
