"""Long work on standard error: a live display on a terminal, occasional plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from sisa_ray.execution.events import (
    CheckpointBroken,
    Event,
    Notice,
    PhaseStarted,
    StageFinished,
    StageProgress,
    WorkPlanned,
)
from sisa_ray.service.tracker import Clock, ShardLine, Tracker, count, duration

_MAX_SHARD_LINES = 8
_PLAIN_EVERY_S = 10.0
_WORTH_TELLING_S = 0.1


class Display(Protocol):
    """Receives events while it is entered."""

    def __call__(self, event: Event) -> None:
        """Show what happened."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Base:
    """Keeps track and tells finished parts of the work; warnings are shown whatever the display."""

    def __init__(
        self, console: Console, *, training: str = "training", clock: Clock = time.monotonic
    ) -> None:
        self._console = console
        self._training = training
        self._clock = clock
        self._lock = threading.Lock()
        self._tracker = Tracker(clock)
        self._phase: str | None = None
        self._phase_started_at = clock()
        self._counting = False

    def __call__(self, event: Event) -> None:
        match event:
            case Notice(text=text):
                warn(self._console, text)
            case PhaseStarted(text=text):
                if self._continues(text):
                    self._phase = text
                else:
                    self._start(text, None)
            case WorkPlanned():
                self._start(self._training, event)
            case StageProgress() | StageFinished():
                with self._lock:
                    self._tracker.advance(event)
                self._advanced()
            case CheckpointBroken():
                pass  # a Notice says so in words

    def _start(self, phase: str, plan: WorkPlanned | None) -> None:
        self._finish()
        with self._lock:
            self._phase, self._phase_started_at = phase, self._clock()
            self._counting = plan is not None
            self._tracker.begin(plan)
        self._started(phase)

    def _continues(self, text: str) -> bool:
        """Whether ``text`` is news of the part at work ("predicting, 2000 rows done"), not a new part."""
        return self._phase is not None and not self._counting and _head(self._phase) == _head(text)

    def _finish(self) -> None:
        if self._phase is None:
            return
        seconds = self._clock() - self._phase_started_at
        with self._lock:
            phase, self._phase = self._phase, None
            built = self._tracker
            done = (
                f": {count(built.stages_built, 'stage')}, {count(built.steps, 'step')}"
                if self._counting
                else ""
            )
        if self._counting or seconds >= _WORTH_TELLING_S:
            self._finished(f"{_head(phase)}{done} ({duration(seconds)})")

    def _started(self, phase: str) -> None: ...
    def _advanced(self) -> None: ...
    def _finished(self, text: str) -> None: ...


class QuietDisplay(_Base):
    """Warnings only."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class PlainDisplay(_Base):
    """A line when a part of the work begins and ends, and every ten seconds in between."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()

    def _started(self, phase: str) -> None:
        self._said_at = self._clock()

    def _advanced(self) -> None:
        now = self._clock()
        if now - self._said_at >= _PLAIN_EVERY_S:
            self._said_at = now
            self._say(
                f"{self._phase}: {'  '.join([f'{self._tracker.fraction:.0%}', *self._tracker.figures()])}"
            )

    def _finished(self, text: str) -> None:
        self._say(text)

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)


class LiveDisplay(_Base):
    """A bar over all steps with rate and time left, and a line for each shard at work; gone when done."""

    def __init__(
        self, console: Console, *, training: str = "training", clock: Clock = time.monotonic
    ) -> None:
        super().__init__(console, training=training, clock=clock)
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(console=console, get_renderable=self.render, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        self._phase_started_at = self._clock()
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        else:
            self._phase = None
        self._live.stop()

    def _finished(self, text: str) -> None:
        self._console.print(Text.assemble(("✓ ", "green"), (text, "dim")))

    def render(self) -> RenderableType:
        """What the screen shows now."""
        with self._lock:
            if self._phase is None or not self._counting:
                elapsed = duration(self._clock() - self._phase_started_at)
                self._spinner.update(text=Text.assemble(self._phase or "starting", ("  " + elapsed, "dim")))
                return self._spinner
            figures = Text("  " + "  ".join(self._tracker.figures()), style="dim")
            return Group(self._overall(), figures, *self._shard_lines())

    def _overall(self) -> RenderableType:
        row = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=1.0, completed=self._tracker.fraction, width=30)
        row.add_row(Text(self._phase or "", style="bold"), bar, Text(f"{self._tracker.fraction:.0%}"))
        return row

    def _shard_lines(self) -> list[RenderableType]:
        tracker = self._tracker
        if not tracker.shards:
            return [Text("  starting shard actors", style="dim")]
        at_work = [line for line in tracker.shards.values() if line.stage is not None]
        resting = [line for line in tracker.shards.values() if line.stage is None]
        shown = sorted((at_work[::-1] + resting[::-1])[:_MAX_SHARD_LINES], key=lambda line: line.shard)
        lines: list[RenderableType] = [_shard_text(line) for line in shown]
        hidden = len(tracker.shards) - len(shown)
        waiting = max(0, tracker.num_shards - len(tracker.shards))
        rest = [f"{count(hidden, 'more shard')}"] * bool(hidden) + [
            f"{count(waiting, 'shard')} waiting"
        ] * bool(waiting)
        if rest:
            lines.append(Text("  " + ", ".join(rest), style="dim"))
        return lines


def _shard_text(line: ShardLine) -> Text:
    text = Text.assemble(f"  shard {line.shard:<4}", ("■" * min(line.stages_built, 40), "green"))
    if line.stage is None:
        return text.append(f" {count(line.stages_built, 'stage')} built", style="dim")
    share = line.step / line.num_steps if line.num_steps else 1.0
    return text.append("▸ ", style="cyan").append(f"stage {line.stage}, {share:.0%}")


def _head(text: str) -> str:
    return text.partition(", ")[0]


def open_display(console: Console, *, quiet: bool, training: str = "training") -> Display:
    """The display that suits ``console`` (standard error)."""
    if quiet:
        return QuietDisplay(console)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveDisplay(console, training=training)
    return PlainDisplay(console, training=training)


def warn(console: Console, text: str) -> None:
    """One warning line."""
    console.print(Text.assemble(("warning: ", "yellow"), text), soft_wrap=True)
