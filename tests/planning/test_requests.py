from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from sisa_ray.core.errors import ConfigError, DataError
from sisa_ray.planning import requests
from sisa_ray.planning.layouts import Layout, by_records


@pytest.mark.parametrize("arrivals", get_args(requests.Arrivals))
def test_arrivals_rise_at_their_rate(arrivals: requests.Arrivals) -> None:
    at_s = requests.arrival_times(arrivals, 400_000, 0.25, np.random.default_rng(1))
    assert (np.diff(at_s) >= 0).all()
    # The mean of Pareto gaps of shape 1.5, whose variance is infinite, settles slowly.
    assert requests.per_second(at_s) == pytest.approx(0.25, rel=0.15 if arrivals == "pareto" else 0.01)


def test_pareto_gaps_come_in_bursts() -> None:
    rng = np.random.default_rng(0)
    medians = {
        a: np.median(np.diff(requests.arrival_times(a, 10_000, 1, rng))) for a in get_args(requests.Arrivals)
    }
    assert medians["pareto"] < medians["exponential"] < medians["uniform"]


def test_uniform_streams_ask_for_every_record_once() -> None:
    layout = by_records([[2, 0, 3], [1, 4, 0]], [1.0] * 3)
    stream = requests.uniform_stream(layout, np.arange(10.0), np.random.default_rng(0))
    counted = np.zeros((2, 3))
    np.add.at(counted, (stream.shard, stream.slice - 1), 1)
    assert (counted == layout.sizes).all()


def test_weighted_streams_follow_the_weights() -> None:
    weights = np.array([[0.5, 0.0], [0.2, 0.3]])
    layout = Layout(
        sizes=np.full((2, 2), 10.0), weights=weights, copies=np.ones(2, int), epochs=np.ones(2), kept=(2,)
    )
    stream = requests.weighted_stream(layout, np.arange(100_000.0), np.random.default_rng(0))
    counted = np.zeros((2, 2))
    np.add.at(counted, (stream.shard, stream.slice - 1), 1)
    assert counted / len(stream) == pytest.approx(weights, abs=0.01)
    assert counted[0, 1] == 0


def test_a_history_in_any_order() -> None:
    lines = ["received_at,stratum", "2026-01-02T00:00Z,eu", "2026-01-01T00:00Z,us", "2026-01-01T12:00+00:00,"]
    at_s, strata = requests.read_history(lines, source="h.csv")
    assert at_s.tolist() == [0, 43_200, 86_400]
    assert strata == ["us", "", "eu"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "h.csv: must have a column received_at"),
        (["when", "2026-01-01"], "h.csv: must have a column received_at"),
        (["received_at", "yesterday"], "h.csv: line 2: received_at must be a time in ISO 8601"),
        (["received_at", "2026-01-01"], r"h.csv: has 1 request\(s\); a rate takes two or more"),
        (["received_at", "2026-01-01", "2026-01-01"], "h.csv: all requests have one received_at"),
        (["received_at", "2026-01-01", "2026-01-02T00:00Z"], "h.csv: line 3: give a time zone"),
    ],
)
def test_bad_histories_are_refused_by_line(lines: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        requests.read_history(lines, source="h.csv")


def test_a_history_is_repeated_at_its_rate() -> None:
    at_s = np.array([0.0, 1.0, 9.0])
    longer = requests.repeated(at_s, 3000)
    assert (np.diff(longer) > 0).all()
    assert requests.per_second(longer) == pytest.approx(requests.per_second(at_s), rel=0.001)


def test_bad_numbers_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="rate: must be a positive number of requests a second, not 0"):
        requests.arrival_times("uniform", 1, 0, rng)
    with pytest.raises(ConfigError, match="num_requests: must be from 1"):
        requests.arrival_times("uniform", 0, 1, rng)
    with pytest.raises(ConfigError, match=r"arrivals: must be one of .*; did you mean 'pareto'"):
        requests.arrival_times("paretto", 1, 1, rng)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="num_requests: must be at most the 4 records, not 5"):
        requests.uniform_stream(by_records([[4]], [1.0]), np.arange(5.0), rng)
