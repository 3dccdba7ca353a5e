from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from sisa_ray.core.errors import ConfigError
from sisa_ray.planning import paper


@pytest.mark.parametrize(
    ("num_records", "num_requests", "speed_up"),
    [(250_000, 8, 4.23), (604_833, 18, 2.24), (128_545, 4, 7.86), (1_281_167, 39, 1.42)],
)
def test_speed_ups_of_the_headline_tasks(num_records: int, num_requests: int, speed_up: float) -> None:
    """S=20, R=50, equal stages: the simulated column of paper.md's table, within 1 %."""
    cost = paper.sisa_batch(num_records, 20, 50, 15, num_requests)
    assert paper.full_retraining(num_records, 15, num_requests) / cost == pytest.approx(speed_up, rel=0.01)


def test_slicing_pays_at_most_one_and_a_half() -> None:
    gains = [1 / paper.slicing_one(1, num_slices, 1) for num_slices in (1, 2, 10, 1000)]
    assert gains[0] == pytest.approx(1)
    assert gains == sorted(gains)
    assert gains[-1] < 1.5


def test_a_batch_of_everybody_leaves_nothing_to_train() -> None:
    assert paper.full_retraining(10, 3, 10) == 0
    assert paper.sharding_batch(100, 1, 100) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paper.sharding_batch(10, 2, 11), "num_requests: must be at most the 10 records, not 11"),
        (lambda: paper.sharding_sequential(10, 11, 1), "num_shards: must be at most the 10 records, not 11"),
        (lambda: paper.sharding_batch(0, 1, 1), "num_records: must be at least 1, not 0"),
        (lambda: paper.full_retraining(10, 1, 0), "num_requests: must be at least 1, not 0"),
        (lambda: paper.slicing_one(10, 0, 1), "num_slices: must be at least 1, not 0"),
        (lambda: paper.slicing_batch(10, 2, 1, 0), "num_requests: must be at least 1, not 0"),
        (lambda: paper.sisa_batch(10, 2, 0, 1, 1), "num_slices: must be at least 1, not 0"),
    ],
)
def test_numbers_outside_the_domain_are_named(call: Callable[[], float], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        call()
