"""Who asks: records that are unequally likely to go (paper, section VII).

Placement by a keyed hash puts likely and unlikely records into every slice alike, so the distribution of requests
over people costs nothing and saves nothing: ``even_layout`` holds for any of them. It saves where a layout knows it:
``sisa_ray.planning.strata``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sisa_ray.core.errors import ConfigError

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
