"""Patience: with a clock and a sleep of the test's own."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from sisa_ray.core.errors import ObjectExists, StorageDenied, StorageUnavailable
from sisa_ray.storage.retry import Transient, with_patience


class Clock:
    """Time passes while somebody sleeps, and while an operation takes it."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, pause_s: float) -> None:
        self.pauses.append(pause_s)
        self.now_s += pause_s


class Scripted:
    """An operation that fails as told, then answers."""

    def __init__(self, clock: Clock, *failures: Exception, takes_s: float = 0.0) -> None:
        self.clock = clock
        self.failures = list(failures)
        self.takes_s = takes_s
        self.num_calls = 0

    def __call__(self) -> str:
        self.num_calls += 1
        self.clock.now_s += self.takes_s
        if self.failures:
            raise self.failures.pop(0)
        return "answer"


def attempt(
    operation: Callable[[], str], clock: Clock, *, patience_s: float = 60.0, is_repeatable: bool = True
) -> str:
    return with_patience(
        operation,
        what="s3://bucket/log/1",
        patience_s=patience_s,
        is_repeatable=is_repeatable,
        clock=clock,
        sleep=clock.sleep,
    )


def test_passing_failures_are_tried_again_with_growing_pauses() -> None:
    clock = Clock()
    operation = Scripted(clock, *[Transient("refused")] * 10)
    assert attempt(operation, clock) == "answer"
    assert operation.num_calls == 11
    assert clock.pauses == sorted(clock.pauses)
    assert clock.pauses[0] < 0.1
    assert clock.pauses[-1] == 5.0


def test_a_definite_failure_is_raised_at_once() -> None:
    clock = Clock()
    operation = Scripted(clock, StorageDenied("no"), StorageDenied("no"))
    with pytest.raises(StorageDenied):
        attempt(operation, clock)
    assert operation.num_calls == 1


def test_patience_ends_with_a_message_of_what_was_waited_for_and_what_to_do() -> None:
    clock = Clock()
    operation = Scripted(clock, *[Transient("connection refused")] * 1000)
    with pytest.raises(StorageUnavailable) as caught:
        attempt(operation, clock, patience_s=30)
    assert 20 <= clock.now_s - 100 <= 30
    message = str(caught.value)
    assert "s3://bucket/log/1" in message
    assert "connection refused" in message
    assert "run the same command again" in message
    assert f"{clock.now_s - 100:.0f} s" in message


def test_a_long_transfer_that_breaks_off_is_tried_again() -> None:
    """It took longer than our patience, but storage was away for an instant only."""
    clock = Clock()
    operation = Scripted(clock, Transient("reset"), Transient("reset"), takes_s=1000.0)
    assert attempt(operation, clock, patience_s=1) == "answer"


def test_without_patience_there_are_still_three_tries() -> None:
    clock = Clock()
    operation = Scripted(clock, *[Transient("reset")] * 9)
    with pytest.raises(StorageUnavailable):
        attempt(operation, clock, patience_s=0)
    assert operation.num_calls == 3


@pytest.mark.parametrize("is_repeatable", [True, False])
def test_a_refusal_after_a_lost_answer(is_repeatable: bool) -> None:
    """What cannot be repeated may have been applied by the first try: that is not a definite failure."""
    clock = Clock()
    operation = Scripted(clock, Transient("reset"), StorageDenied("token expired"))
    expected = StorageDenied if is_repeatable else StorageUnavailable
    with pytest.raises(expected, match="token expired"):
        attempt(operation, clock, is_repeatable=is_repeatable)


def test_an_object_that_exists_after_a_lost_answer_is_left_to_the_caller() -> None:
    clock = Clock()
    operation = Scripted(clock, Transient("reset"), ObjectExists("there"))
    with pytest.raises(ObjectExists):
        attempt(operation, clock, is_repeatable=False)


def test_who_waits_is_told_once_and_told_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with caplog.at_level(logging.INFO, logger="sisa_ray.storage"):
        attempt(Scripted(clock, *[Transient("connection refused")] * 12), clock)
    waiting, back = caplog.messages
    assert "s3://bucket/log/1" in waiting
    assert "connection refused" in waiting
    assert "60 s" in waiting
    assert "is back" in back


def test_a_hiccup_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    attempt(Scripted(clock, Transient("reset"), Transient("reset")), clock)
    assert caplog.messages == []
