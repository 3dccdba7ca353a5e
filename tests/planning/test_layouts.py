from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sisa_ray.core.errors import ConfigError
from sisa_ray.planning import cost
from sisa_ray.planning.layouts import Layout, by_records, even_layout

FINE: dict[str, Any] = {
    "sizes": np.ones((2, 3)),
    "weights": np.full((2, 3), 1 / 12),
    "copies": np.array([1, 3]),
    "epochs": np.ones(3),
    "kept": (3,),
}


def test_counts() -> None:
    layout = Layout(**FINE)
    assert (layout.num_slices, layout.num_shards, layout.num_records) == (3, 4, 12)
    assert layout.num_checkpoints == 4
    assert layout.keeping([1]).kept == (1, 3)


def test_spelling_out_changes_no_cost() -> None:
    layout = even_layout(1200, 6, [3.0, 2.0], kept=[1])
    spelled = layout.spelled_out()
    assert spelled.sizes.shape == (6, 2)
    assert cost.batch(spelled, 5) == pytest.approx(cost.batch(layout, 5))
    assert cost.batch(by_records(np.full((6, 2), 100), [3.0, 2.0], [1]), 5) == pytest.approx(
        cost.batch(layout, 5)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": np.full((2, 3), 0.1)}, "weights: .* must sum to 1, not 1.2; divide them by their sum"),
        ({"weights": np.array([[1.5, -0.5, 0], [0, 0, 0]])}, "weights: must be finite and not negative"),
        ({"sizes": np.full((2, 3), np.nan)}, "sizes: must be finite and not negative"),
        ({"epochs": np.array([1, 1, -1])}, "epochs: must be finite and not negative"),
        ({"copies": np.array([1, 0])}, "copies: must be at least 1"),
        ({"epochs": np.ones(2)}, "layout: sizes .* a column for each of 2 stages"),
        ({"kept": (1,)}, r"kept: must be rising stages from 1 that end with the last, 3, not \[1\]"),
        ({"kept": (2, 1, 3)}, "kept: must be rising"),
        ({"kept": (0, 3)}, "kept: must be rising"),
        ({"kept": ()}, "kept: must be rising"),
    ],
)
def test_what_is_no_layout_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Layout(**{**FINE, **change})


def test_builders_refuse_what_is_none() -> None:
    with pytest.raises(ConfigError, match="layout: needs at least one record, shard and slice"):
        even_layout(0, 1, [1.0])
    with pytest.raises(ConfigError, match="layout: needs at least one record, shard and slice"):
        even_layout(10, 1, [])
    with pytest.raises(ConfigError, match="sizes: must be a table"):
        by_records([1, 2], [1.0, 1.0])
    with pytest.raises(ConfigError, match="too many to simulate"):
        even_layout(10**9, 10**6, [1.0] * 21).spelled_out()
