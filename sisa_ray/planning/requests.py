"""Streams of requests: when they come, and into which shard and slice they fall. Seeded; no clock of its own."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

import numpy as np

from sisa_ray.core.errors import ConfigError, DataError
from sisa_ray.core.fields import shown, suggestion
from sisa_ray.planning.layouts import FloatArray, IntArray, Layout

Arrivals = Literal["uniform", "exponential", "pareto"]
"""Gaps between requests: all alike; exponential (a Poisson stream); Pareto with shape 1.5 (bursts, long silences)."""

PARETO_SHAPE = 1.5
_MAX_REQUESTS = 20_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """Requests in the order in which they come; three arrays of one length, shape (T,)."""

    at_s: FloatArray
    """Seconds from the start, rising."""
    shard: IntArray
    """From 0."""
    slice: IntArray
    """From 1."""

    def __len__(self) -> int:
        return len(self.at_s)


def arrival_times(
    arrivals: Arrivals, num_requests: int, per_second: float, rng: np.random.Generator
) -> FloatArray:
    """Rising times (T,) in seconds of so many requests, whose mean gap is ``1 / per_second``.

    >>> arrival_times("uniform", 3, 0.5, np.random.default_rng(0)).tolist()
    [2.0, 4.0, 6.0]

    Raises:
        ConfigError: for an unknown distribution, a rate that is not positive, or a bad number of requests.
    """
    if arrivals not in get_args(Arrivals):
        raise ConfigError(
            f"arrivals: must be one of {', '.join(get_args(Arrivals))}, not {shown(arrivals)}"
            f"{suggestion(arrivals, get_args(Arrivals))}"
        )
    if not (0 < per_second < float("inf")):
        raise ConfigError(
            f"rate: must be a positive number of requests a second, not {per_second:g}; give one above 0"
        )
    if not 1 <= num_requests <= _MAX_REQUESTS:
        raise ConfigError(f"num_requests: must be from 1 to {_MAX_REQUESTS}, not {num_requests}")
    if arrivals == "uniform":
        gaps = np.ones(num_requests)
    elif arrivals == "exponential":
        gaps = rng.exponential(size=num_requests)
    else:  # numpy's Pareto begins at 0: its mean is 1/(shape - 1)
        gaps = rng.pareto(PARETO_SHAPE, size=num_requests) * (PARETO_SHAPE - 1)
    times: FloatArray = np.cumsum(gaps) / per_second
    return times


def uniform_stream(layout: Layout, at_s: FloatArray, rng: np.random.Generator) -> Stream:
    """Every record as likely as any other, none twice. ``layout`` is spelled out and has whole sizes.

    Raises:
        ConfigError: for more requests than records.
    """
    sizes = layout.sizes.astype(np.int64).ravel()
    total = int(sizes.sum())
    if len(at_s) > total:
        raise ConfigError(
            f"num_requests: must be at most the {total} records, not {len(at_s)}; nobody can be erased twice"
        )
    records = rng.choice(total, size=len(at_s), replace=False)
    return _placed(layout, at_s, np.searchsorted(np.cumsum(sizes), records, side="right"))


def weighted_stream(layout: Layout, at_s: FloatArray, rng: np.random.Generator) -> Stream:
    """Slices drawn from ``layout.weights``, each as if there were always another record in it."""
    reach = np.cumsum(layout.weights.ravel())
    cells = np.searchsorted(reach, rng.random(len(at_s)) * reach[-1], side="right")
    return _placed(layout, at_s, np.minimum(cells, len(reach) - 1))


def read_history(lines: Iterable[str], *, source: str) -> tuple[FloatArray, list[str]]:
    """Times (seconds from the first) and strata of a CSV with the columns ``received_at`` and, perhaps, ``stratum``.

    Times are ISO 8601, with a time zone everywhere or nowhere, in any order. Messages name lines, never what is in
    them.

    Raises:
        DataError: for a file that is not that.
    """
    reader = csv.DictReader(lines)
    if "received_at" not in (reader.fieldnames or ()):
        raise DataError(f"{source}: must have a column received_at; name it in the first line")
    rows: list[tuple[datetime, str]] = []
    for row in reader:
        line = f"{source}: line {reader.line_num}"
        try:
            at = datetime.fromisoformat((row["received_at"] or "").strip())
        except ValueError:
            raise DataError(
                f"{line}: received_at must be a time in ISO 8601, such as 2026-11-02T09:30Z"
            ) from None
        if rows and (at.tzinfo is None) != (rows[0][0].tzinfo is None):
            raise DataError(f"{line}: give a time zone for every received_at, or for none")
        rows.append((at, (row.get("stratum") or "").strip()))
    if len(rows) < 2:
        raise DataError(f"{source}: has {len(rows)} request(s); a rate takes two or more")
    rows.sort()
    at_s = np.array([(at - rows[0][0]).total_seconds() for at, _ in rows])
    if at_s[-1] <= 0:
        raise DataError(f"{source}: all requests have one received_at; a rate takes some time between them")
    return at_s, [stratum for _, stratum in rows]


def repeated(at_s: FloatArray, num_requests: int) -> FloatArray:
    """A history's times, repeated one after another until there are so many: its bursts and silences stay.

    >>> repeated(np.array([0.0, 1.0, 4.0]), 5).tolist()
    [0.0, 1.0, 4.0, 6.0, 7.0]
    """
    # Between two repetitions the mean gap passes, so that the rate stays what it was.
    span = at_s[-1] * len(at_s) / (len(at_s) - 1)
    index = np.arange(num_requests)
    times: FloatArray = at_s[index % len(at_s)] + (index // len(at_s)) * span
    return times


def per_second(at_s: Sequence[float] | FloatArray) -> float:
    """Requests a second of a history: gaps over time.

    >>> per_second([0.0, 1.0, 4.0])
    0.5
    """
    return (len(at_s) - 1) / float(at_s[-1] - at_s[0])


def _placed(layout: Layout, at_s: FloatArray, cells: IntArray) -> Stream:
    shard, slice_ = np.divmod(cells, layout.num_slices)
    return Stream(at_s=at_s, shard=shard.astype(np.int64), slice=slice_.astype(np.int64) + 1)
