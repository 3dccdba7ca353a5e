from __future__ import annotations

from sisa_ray.execution.events import StageFinished, StageProgress, WorkPlanned
from sisa_ray.service.tracker import Tracker
from tests.service.standins import stage_ref


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def tracker(num_steps: int = 100) -> tuple[Tracker, Clock]:
    clock = Clock()
    made = Tracker(clock)
    made.begin(WorkPlanned(num_shards=2, num_stages=4, num_steps=num_steps))
    return made, clock


def progress(shard: int, stage: int, step: int, num_steps: int = 25) -> StageProgress:
    return StageProgress(shard=shard, stage=stage, step=step, num_steps=num_steps)


def test_steps_are_those_of_built_stages_and_of_stages_at_work() -> None:
    made, _ = tracker()
    made.advance(progress(0, 1, 10))
    made.advance(progress(1, 1, 5))
    made.advance(StageFinished(ref=stage_ref(0, 1, 25)))
    made.advance(progress(0, 2, 1))
    assert (made.steps, made.stages_built, made.fraction) == (31, 1, 0.31)


def test_a_stage_begun_again_counts_once() -> None:
    made, _ = tracker()
    made.advance(progress(0, 1, 20))
    made.advance(progress(0, 1, 3))  # its actor died
    assert made.steps == 3


def test_rate_and_time_left_count_from_the_first_news() -> None:
    made, clock = tracker()
    assert made.steps_per_s is None
    clock.now_s = 60.0  # actors took a minute to start, and had a mid-stage checkpoint
    made.advance(progress(0, 1, 10))
    assert made.steps_per_s is None
    assert made.left_s is None
    clock.now_s = 64.0
    made.advance(progress(0, 1, 20))
    assert made.steps_per_s == 2.5
    assert made.left_s == 32.0


def test_the_rate_waits_for_something_to_go_by() -> None:
    made, clock = tracker()
    made.advance(progress(0, 1, 1))
    clock.now_s = 0.001
    made.advance(progress(0, 1, 2))
    assert made.steps_per_s is None


def test_the_rate_is_a_recent_one() -> None:
    made, clock = tracker(num_steps=1000)
    for second in range(100):
        clock.now_s += 1
        made.advance(progress(0, 1, second + 1 if second < 50 else 50 + 10 * (second - 49), 1000))
    assert made.steps_per_s is not None
    assert 9.9 < made.steps_per_s < 10.1


def test_more_steps_than_planned_never_show_more_than_all() -> None:
    made, _ = tracker(num_steps=20)
    made.advance(StageFinished(ref=stage_ref(0, 1, 25)))
    assert (made.fraction, made.num_steps) == (1.0, 25)


def test_no_steps_at_all() -> None:
    made, _ = tracker(num_steps=0)
    made.advance(StageFinished(ref=stage_ref(0, 1, 0)))
    assert made.fraction == 1.0
    assert made.figures() == ["0/0 steps", "1/4 stages"]


def test_figures() -> None:
    made, clock = tracker(num_steps=2000)
    made.advance(progress(0, 1, 0, 1000))
    clock.now_s = 10.0
    made.advance(progress(0, 1, 500, 1000))
    assert made.figures() == ["500/2,000 steps", "0/4 stages", "50 steps/s", "about 30 s left"]
