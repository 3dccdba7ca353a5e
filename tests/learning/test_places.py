"""Rows that may share a pass, and rows that may not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sisa_ray.learning.places import is_place_independent
from sisa_ray.learning.recipe import Batch
from sisa_ray.learning.stacked import StackedModel
from tests.learning.recipes import Plain
from tests.learning.stacks import ROWS, SETTINGS, TABLE, rows_of, trained
from tests.learning.stages import of


class Crowded(Plain):
    """A row's answer depends on its neighbours."""

    def predict(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        features = batch["features"]
        answer: torch.Tensor = model(features + 1e-6 * features.mean(dim=0)).softmax(dim=1)
        return answer


class Placed(Plain):
    """A row's answer depends on its place."""

    def predict(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        answer = super().predict(model, batch)
        return answer + 1e-6 * (torch.arange(len(answer)) == len(answer) - 1)[:, None]


@pytest.mark.parametrize(("kind", "holds"), [(Plain, True), (Crowded, False), (Placed, False)])
def test_whether_rows_may_share_a_pass(kind: type[Plain], holds: bool) -> None:
    make = of(kind)
    stack = StackedModel.build(make, trained(make, 2), SETTINGS)
    batch = rows_of(make, TABLE.slice(0, 2), 2)
    assert is_place_independent(stack, batch, ROWS) is holds
    if holds:
        assert is_place_independent(stack, rows_of(make, TABLE.slice(0, 1), 1), ROWS)
