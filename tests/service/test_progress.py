from __future__ import annotations

import io

import pytest
from rich.console import Console

from sisa_ray.execution.events import (
    CheckpointBroken,
    Notice,
    PhaseStarted,
    StageFinished,
    StageProgress,
    WorkPlanned,
)
from sisa_ray.service.progress import LiveDisplay, PlainDisplay, QuietDisplay, open_display
from tests.service.standins import stage_ref
from tests.service.test_tracker import Clock, progress

PLAN = WorkPlanned(num_shards=12, num_stages=24, num_steps=600)


def console(*, terminal: bool) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=120, color_system=None, _environ={"TERM": "xterm"}
    )


def text(shown: Console) -> str:
    assert isinstance(shown.file, io.StringIO)
    return shown.file.getvalue()


def test_the_display_suits_where_it_is_shown() -> None:
    assert isinstance(open_display(console(terminal=True), quiet=False), LiveDisplay)
    assert isinstance(open_display(console(terminal=False), quiet=False), PlainDisplay)
    assert isinstance(open_display(console(terminal=True), quiet=True), QuietDisplay)
    dumb = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    assert isinstance(open_display(dumb, quiet=False), PlainDisplay)


def test_plain_lines_come_at_the_ends_and_every_ten_seconds() -> None:
    shown, clock = console(terminal=False), Clock()
    with PlainDisplay(shown, clock=clock) as display:
        display(PhaseStarted(text="rewriting slices"))
        clock.now_s = 1.0
        display(PLAN)
        for second in range(2, 26):
            clock.now_s = float(second)
            display(progress(0, 1, 10 * second, 600))
        display(StageFinished(ref=stage_ref(0, 1, 600)))
    assert text(shown).splitlines() == [
        "rewriting slices (1.0 s)",
        "training: 18%  110/600 steps  0/24 stages  10 steps/s  about 49 s left",
        "training: 35%  210/600 steps  0/24 stages  10 steps/s  about 39 s left",
        "training: 1 stage, 600 steps (24 s)",
    ]


def test_news_of_the_same_part_is_no_new_part() -> None:
    shown, clock = console(terminal=False), Clock()
    with PlainDisplay(shown, clock=clock) as display:
        for rows in (0, 1000, 2000):
            display(PhaseStarted(text=f"predicting, {rows} rows done"))
            clock.now_s += 1
    assert text(shown) == "predicting (3.0 s)\n"


def test_what_takes_no_time_is_not_worth_a_line() -> None:
    shown = console(terminal=False)
    with PlainDisplay(shown, clock=Clock()) as display:
        display(PhaseStarted(text="purging"))
    assert text(shown) == ""


def test_work_that_fails_is_not_told_as_done() -> None:
    shown, clock = console(terminal=False), Clock()

    def work() -> None:
        with PlainDisplay(shown, clock=clock) as display:
            display(PLAN)
            clock.now_s = 5.0
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        work()
    assert text(shown) == ""


@pytest.mark.parametrize("quiet", [True, False])
def test_warnings_are_always_shown(quiet: bool) -> None:
    shown = console(terminal=False)
    with open_display(shown, quiet=quiet) as display:
        display(Notice(text="checkpoint [bold]p[/bold] is gone"))
        display(CheckpointBroken(shard=0, stage=1, problem="p is gone"))
    assert text(shown) == "warning: checkpoint [bold]p[/bold] is gone\n"


def test_the_live_display_shows_the_whole_and_the_shards_at_work() -> None:
    shown, clock = console(terminal=True), Clock()
    display = LiveDisplay(shown, training="retraining", clock=clock)
    display(PLAN)
    for shard in range(10):
        display(StageFinished(ref=stage_ref(shard, 1, 25)))
    clock.now_s = 10.0
    display(StageProgress(shard=3, stage=2, step=10, num_steps=25))
    display(StageProgress(shard=0, stage=2, step=5, num_steps=25))
    shown.print(display.render())
    lines = [line.strip() for line in text(shown).splitlines()]
    assert lines[0].startswith("retraining")
    assert lines[0].endswith("44%")
    assert lines[1] == "265/600 steps  10/24 stages  24 steps/s  about 14 s left"
    assert "shard 0   ■▸ stage 2, 20%" in lines
    assert "shard 3   ■▸ stage 2, 40%" in lines
    assert "shard 9   ■ 1 stage built" in lines
    assert lines[-1] == "2 more shards, 2 shards waiting"
    assert len(lines) == 2 + 8 + 1


def test_the_live_display_leaves_finished_parts_and_warnings_behind() -> None:
    shown, clock = console(terminal=True), Clock()
    with LiveDisplay(shown, clock=clock) as display:
        display(PLAN)
        clock.now_s = 75.0
        display(Notice(text="careful"))
        display(StageFinished(ref=stage_ref(0, 1, 600)))
    assert "✓ training: 1 stage, 600 steps (1 min 15 s)" in text(shown)
    assert "warning: careful" in text(shown)


def test_the_live_display_says_what_it_is_at_without_steps() -> None:
    shown, clock = console(terminal=True), Clock()
    display = LiveDisplay(shown, clock=clock)
    shown.print(display.render())
    display(PhaseStarted(text="purging"))
    clock.now_s = 3.0
    shown.print(display.render())
    assert "starting  0.0 s" in text(shown)
    assert "purging  3.0 s" in text(shown)


def test_the_live_display_is_no_wider_than_a_narrow_terminal() -> None:
    shown, clock = console(terminal=True), Clock()
    display = LiveDisplay(shown, training="training from scratch", clock=clock)
    display(WorkPlanned(num_shards=20, num_stages=1000, num_steps=1_234_567))
    shown.print(display.render())
    assert "starting shard actors" in text(shown)
    clock.now_s = 10.0
    display(StageProgress(shard=19, stage=50, step=123_456, num_steps=999_999))
    shown.print(display.render())
    assert max(len(line.rstrip()) for line in text(shown).splitlines()) < 80
