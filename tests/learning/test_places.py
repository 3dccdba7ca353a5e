"""Rows that may share a pass, and rows that may not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sisa_ray.learning.places import is_place_independent
from sisa_ray.learning.recipe import Batch
from sisa_ray.learning.stacked import StackedModel
from tests.learning.recipes import Plain
from tests.learning.stacks import ROWS, SETTINGS, TABLE, rows_of, saved, trained
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


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_rows_that_are_all_alike_show_nothing(value: float) -> None:
    """One caller's blank row, padded, must not open the passes to everybody."""
    make = of(Crowded)
    stack = StackedModel.build(make, trained(make, 2), SETTINGS)
    alike = {name: torch.full_like(tensor, value) for name, tensor in rows_of(make).items()}
    assert not is_place_independent(stack, alike, ROWS)


class Indexed(Plain):
    """Columns are indices into tables of different lengths."""

    def build_model(self) -> nn.Module:
        return nn.ModuleList([nn.Embedding(1000, 3), nn.Embedding(2, 3)])

    def predict(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        assert isinstance(model, nn.ModuleList)
        long, short = batch["features"].unbind(dim=1)
        answer: torch.Tensor = (model[0](long) + model[1](short)).softmax(dim=1)
        return answer


def test_moved_rows_that_the_model_refuses_are_left_out() -> None:
    make = of(Indexed)
    stack = StackedModel.build(make, saved(make), SETTINGS)
    indices = torch.tensor([[999, 1], [5, 0]])
    assert is_place_independent(stack, {"features": indices}, ROWS)
    assert is_place_independent(stack, {"features": indices[[0, 0, 0, 0, 0, 1]]}, ROWS), (
        "repeats are passed over"
    )
    assert not is_place_independent(stack, {"features": indices[:1]}, ROWS), "one row is no mixture"
    with pytest.raises((IndexError, RuntimeError)):  # by the module itself, or as a script
        is_place_independent(stack, {"features": torch.tensor([[5, 999]])}, ROWS)
