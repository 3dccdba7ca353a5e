"""Who asks: records that are unequally likely to go, and layouts that make use of it (paper, section VII).

Placement by a keyed hash puts likely and unlikely records into every slice alike, so the distribution of requests
over people costs nothing and saves nothing: ``even_layout`` holds for any of them. It saves where a layout knows it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from sisa_ray.core.errors import ConfigError
from sisa_ray.planning.layouts import FloatArray, Layout

Likelihood = Literal["uniform", "exponential", "pareto"]
"""How the probability to be erased is spread over records."""

_PARETO_SHAPE = 1.5


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """Records that are alike in how likely they are to be erased, such as the customers of one country."""

    name: str
    num_records: float
    probability: float
    """That one of its records is erased, in the time that is planned for."""

    def __post_init__(self) -> None:
        where = f"stratum {self.name!r}"
        if not 0 < self.num_records < float("inf"):
            raise ConfigError(
                f"{where}: num_records must be positive, not {self.num_records:g}; leave it out if empty"
            )
        if not 0 <= self.probability <= 1:
            raise ConfigError(
                f"{where}: probability must be from 0 to 1, not {self.probability:g}; "
                "give requests divided by records"
            )


def spread(likelihood: Likelihood, num_records: float, mean: float, num_classes: int = 200) -> list[Stratum]:
    """Records whose probabilities follow a distribution with that mean, as classes of one size, rising.

    Each class has the mean of its quantiles, so that totals are exact; Pareto has shape 1.5.

    >>> [round(s.probability, 4) for s in spread("exponential", 1000, 0.01, num_classes=4)]
    [0.0014, 0.0048, 0.01, 0.0239]

    Raises:
        ConfigError: for a mean that is no probability, or makes one exceed 1.
    """
    if not 0 < mean <= 1:
        raise ConfigError(
            f"mean: must be a probability above 0, not {mean:g}; give requests divided by records"
        )
    edges = np.linspace(0.0, 1.0, num_classes + 1)
    left = 1 - edges
    if likelihood == "uniform":
        below = edges
    elif likelihood == "exponential":  # the Lorenz curve: the share that the lowest part of all records has
        below = edges + left * np.log(left, where=left > 0, out=np.zeros_like(left))
    else:
        below = 1 - left ** (1 - 1 / _PARETO_SHAPE)
    probabilities = np.diff(below) * num_classes * mean
    return [
        Stratum(name=f"{i + 1}", num_records=num_records / num_classes, probability=float(p))
        for i, p in enumerate(probabilities)
    ]


def aware_layout(
    strata: Sequence[Stratum],
    num_shards: int,
    epochs: Sequence[Fraction | float],
    kept: Collection[int] | None = None,
) -> Layout:
    """Shards of one expected number of requests each, likely records in few small ones and there in late slices.

    Source: section VII, algorithm 1: records sorted by probability fill a shard until its expected number of requests
    reaches C; here C is the number of all requests over ``num_shards``. Slices of a shard have one size.

    >>> from sisa_ray.planning.cost import one_request
    >>> from sisa_ray.planning.layouts import even_layout
    >>> home, abroad = Stratum(name="home", num_records=900, probability=0.01), Stratum(
    ...     name="abroad", num_records=100, probability=0.27)
    >>> layout = aware_layout([home, abroad], 4, [1.0])
    >>> layout.sizes.ravel().round(1).tolist()
    [900.0, 33.3, 33.3, 33.3]
    >>> round(one_request(even_layout(1000, 4, [1.0])), 1), round(one_request(layout), 1)
    (249.0, 249.0)

    Raises:
        ConfigError: where nobody asks, or there is no stratum or shard.
    """
    if not strata or num_shards < 1 or not epochs:
        raise ConfigError("layout: needs at least one stratum, shard and stage")
    rising = sorted(strata, key=lambda s: s.probability)
    sizes = np.array([s.num_records for s in rising])
    expected = np.array([s.num_records * s.probability for s in rising])
    if not expected.sum() > 0:
        raise ConfigError(
            "probability: is 0 in every stratum; without requests there is nothing to be planned"
        )
    records = np.concatenate([[0.0], np.cumsum(sizes)])
    requests = np.concatenate([[0.0], np.cumsum(expected)])
    share = np.linspace(0.0, requests[-1], num_shards + 1)
    # Whoever never asks goes first: into the first shard.
    asked = int(np.argmax(requests > 0)) - 1
    ends: FloatArray = np.interp(share, requests[asked:], records[asked:])
    ends[0], ends[-1] = 0.0, records[-1]
    within = np.linspace(0.0, 1.0, len(epochs) + 1)
    edges = ends[:-1, None] + np.diff(ends)[:, None] * within
    table = np.diff(np.interp(edges, records, requests), axis=1)
    return Layout(
        sizes=np.diff(edges, axis=1),
        weights=table / table.sum(),
        copies=np.ones(num_shards, dtype=np.int64),
        epochs=np.array([float(e) for e in epochs]),
        kept=tuple(sorted({*(range(1, len(epochs) + 1) if kept is None else kept), len(epochs)})),
    )
