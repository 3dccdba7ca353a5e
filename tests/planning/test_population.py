from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from sisa_ray.core.errors import ConfigError
from sisa_ray.planning.population import Likelihood, Stratum, spread


@pytest.mark.parametrize("likelihood", get_args(Likelihood))
def test_spread_keeps_the_mean_and_rises(likelihood: Likelihood) -> None:
    classes = spread(likelihood, 5000, 0.001, num_classes=50)
    assert sum(s.num_records for s in classes) == pytest.approx(5000)
    assert sum(s.num_records * s.probability for s in classes) == pytest.approx(5.0)
    assert np.all(np.diff([s.probability for s in classes]) > -1e-12)


@pytest.mark.parametrize("likelihood", ["exponential", "pareto"])
def test_spread_has_the_quantiles_of_samples(likelihood: Likelihood) -> None:
    rng = np.random.default_rng(0)
    sampled = rng.exponential(size=10**6) if likelihood == "exponential" else 1 + rng.pareto(1.5, size=10**6)
    mean = 1.0 if likelihood == "exponential" else 3.0
    by_class = np.sort(sampled).reshape(10, -1).mean(axis=1) / mean * 0.01
    classes = spread(likelihood, 100, 0.01, num_classes=10)
    # The tail of a Pareto sample of shape 1.5 settles slowly.
    assert [s.probability for s in classes][:9] == pytest.approx(by_class[:9], rel=0.05)


def test_bad_probabilities_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"stratum 'eu': probability must be from 0 to 1, not 1.5"):
        Stratum(name="eu", num_records=10, probability=1.5)
    with pytest.raises(ConfigError, match="stratum 'eu': num_records must be positive"):
        Stratum(name="eu", num_records=0, probability=0.5)
    with pytest.raises(ConfigError, match="mean: must be a probability above 0, not 0"):
        spread("uniform", 10, 0)
    with pytest.raises(ConfigError, match="probability must be from 0 to 1"):
        spread("pareto", 10, 0.5)
