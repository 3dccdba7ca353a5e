from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sisa_ray.core.errors import ConfigError
from sisa_ray.core.schedule import ScheduleName, record_visits, stage_epochs, stage_steps
from sisa_ray.planning import cost, paper
from sisa_ray.planning.layouts import Layout, by_records, even_layout
from tests.planning.brute import mean_batch, mean_sequential, rebuild, records_of, small_layouts


@settings(max_examples=60)
@given(small_layouts(), st.integers(1, 4))
def test_uniform_batch_is_the_mean_over_all_sets(layout: Layout, num_requests: int) -> None:
    num_requests = min(num_requests, int(layout.num_records))
    assert cost.uniform_batch(layout, num_requests) == pytest.approx(mean_batch(layout, num_requests))


@settings(max_examples=40)
@given(small_layouts(), st.integers(1, 3))
def test_uniform_sequential_is_the_mean_over_all_orders(layout: Layout, num_requests: int) -> None:
    num_requests = min(num_requests, int(layout.num_records))
    expected = mean_sequential(layout, num_requests)
    assert cost.uniform_sequential(layout, num_requests) == pytest.approx(expected)


@given(small_layouts())
def test_one_request_is_the_same_however_it_is_asked(layout: Layout) -> None:
    one = cost.uniform_batch(layout, 1)
    assert cost.one_request(layout) == pytest.approx(one)
    assert cost.batch(layout, 1) == pytest.approx(one)
    assert cost.uniform_sequential(layout, 1) == pytest.approx(one)
    assert cost.window(layout, 0.0) == pytest.approx(one)


@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 60))
def test_the_papers_equations_are_special_cases(num_shards: int, num_slices: int, num_requests: int) -> None:
    n, epochs = 12_000, stage_epochs("equal", num_slices, 15)
    whole, sliced = even_layout(n, num_shards, [1.0]), even_layout(n, num_shards, epochs)
    assert cost.batch(whole, num_requests) == pytest.approx(paper.sharding_batch(n, num_shards, num_requests))
    assert cost.sequential(whole, num_requests) == pytest.approx(
        paper.sharding_sequential(n, num_shards, num_requests)
    )
    assert cost.batch(sliced, num_requests) == pytest.approx(
        paper.sisa_batch(n, num_shards, num_slices, 15, num_requests)
    )
    assert cost.full_training(sliced, num_requests) == pytest.approx(
        paper.full_retraining(n, 15, num_requests)
    )
    d = n / num_shards
    erased_itself = float(sum(e * Fraction(r, num_slices) for r, e in enumerate(epochs, 1)))
    assert cost.one_request(sliced) == pytest.approx(paper.slicing_one(d, num_slices, 15) - erased_itself)


@pytest.mark.parametrize(
    ("num_requests", "equal", "equal_cost", "harmonic"),
    [
        (1, 29.8, 39.2, 90.1),
        (4, 7.9, 10.3, 23.3),
        (8, 4.2, 5.5, 12.3),
        (18, 2.2, 2.9, 6.1),
        (39, 1.4, 1.7, 3.5),
    ],
)
def test_speed_ups_of_the_schedules(
    num_requests: int, equal: float, equal_cost: float, harmonic: float
) -> None:
    """S=20, R=50: the simulated table of paper.md, to its last digit or 1 %."""
    wanted: dict[ScheduleName, float] = {"equal": equal, "equal_cost": equal_cost, "harmonic": harmonic}
    for schedule, speed_up in wanted.items():
        layout = even_layout(250_000, 20, stage_epochs(schedule, 50, 15))
        gain = cost.full_training(layout, num_requests) / cost.batch(layout, num_requests)
        assert gain == pytest.approx(speed_up, rel=0.01, abs=0.051)


@settings(max_examples=15)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 12), st.data())
def test_weighted_batches_agree_with_monte_carlo(
    num_shards: int, num_slices: int, num_requests: int, data: st.DataObject
) -> None:
    """Unequal slices, requests that prefer some, checkpoints not all kept; within five standard errors."""
    numbers = st.lists(st.integers(1, 9), min_size=num_slices, max_size=num_slices)
    table = st.lists(numbers, min_size=num_shards, max_size=num_shards)
    sizes, likely = np.array(data.draw(table), float) * 1000, np.array(data.draw(table), float)
    kept = data.draw(st.sets(st.integers(1, num_slices)))
    layout = Layout(
        sizes=sizes,
        weights=likely / likely.sum(),
        copies=np.ones(num_shards, dtype=np.int64),
        epochs=np.array(data.draw(numbers), float),
        kept=tuple(sorted({*kept, num_slices})),
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    costs = []
    for _ in range(1500):
        cells = rng.choice(layout.weights.size, size=num_requests, p=layout.weights.ravel())
        left, first = layout.sizes.copy(), np.full(num_shards, num_slices + 1)
        for shard, index in zip(*np.divmod(cells, num_slices), strict=True):
            left[shard, index] -= 1
            first[shard] = min(first[shard], index + 1)
        visits = 0.0
        for shard in np.flatnonzero(first <= num_slices):
            restart = max((r for r in layout.kept if r < first[shard]), default=0)
            visits += (np.cumsum(left[shard]) * layout.epochs)[restart:].sum()
        costs.append(visits)
    error = np.std(costs) / np.sqrt(len(costs))
    # A costly case of one batch in thousands may never be drawn, and the error then knows nothing of it.
    assert cost.batch(layout, num_requests) == pytest.approx(np.mean(costs), rel=2e-3, abs=5 * error + 1e-6)


def test_a_window_is_a_mean_over_poisson_numbers() -> None:
    layout = even_layout(5000, 4, [2.0, 1.0, 1.0], kept=[2])
    rng = np.random.default_rng(0)
    sampled = [cost.batch(layout, 1 + k) for k in rng.poisson(6.0, size=20_000).tolist()]
    assert cost.window(layout, 6.0) == pytest.approx(np.mean(sampled), rel=0.005)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=8), st.integers(1, 64), st.data())
def test_a_rebuild_is_what_the_trainer_counts(sizes: list[int], batch_size: int, data: st.DataObject) -> None:
    """``core.schedule`` rounds to whole steps: at most a batch apart at either end."""
    first = data.draw(st.integers(1, len(sizes)))
    epochs = stage_epochs(data.draw(st.sampled_from(["equal", "equal_cost", "harmonic"])), len(sizes), 7)
    layout = by_records([sizes], epochs)
    gone = (0, first)
    left = records_of(layout)
    expected = rebuild(left, [gone], layout)
    counted = record_visits(stage_steps(sizes, epochs, batch_size), batch_size, first)
    assert abs(counted - expected) <= 2 * batch_size


@given(small_layouts(), st.integers(2, 5))
def test_dropping_a_checkpoint_never_pays(layout: Layout, num_requests: int) -> None:
    costs = [cost.batch(layout.keeping(range(1, r)), 1) for r in range(1, layout.num_slices + 1)]
    assert costs == sorted(costs, reverse=True)


def test_shards_hit_and_longest_shard() -> None:
    layout = by_records([[10, 10], [30, 0]], [1.0, 2.0])
    assert cost.longest_shard(layout) == 30 + 2 * 30
    assert cost.shards_hit(layout, 1) == pytest.approx(1)
    assert cost.shards_hit(layout, 10_000) == pytest.approx(2)


def test_more_requests_than_records_are_refused() -> None:
    layout = even_layout(10, 2, [1.0])
    for function in (cost.batch, cost.sequential, cost.uniform_batch, cost.uniform_sequential):
        with pytest.raises(ConfigError, match="num_requests: must be at most the 10 records, not 11"):
            function(layout, 11)
        with pytest.raises(ConfigError, match="num_requests: must be at least 1"):
            function(layout, 0)
    with pytest.raises(ConfigError, match="mean_requests: must be 0 or more"):
        cost.window(layout, -1.0)
    with pytest.raises(ConfigError, match="num_records: must be at least 2"):
        cost.uniform_sequential(by_records([[1]], [1.0]), 1)
