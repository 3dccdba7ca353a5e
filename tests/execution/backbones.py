"""Recipes with a frozen backbone, small enough for tests, and some that break the contract."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sisa_ray.learning.recipe import Batch
from sisa_ray.recipes import MLPClassifier
from tests.execution.tables import NUM_CLASSES, NUM_FEATURES

WIDTH = 12
CALLS: list[int] = []
"""Rows of each pass of a backbone in this process."""


class Frozen(MLPClassifier):
    """A head on a fixed random projection of eight numbers to twelve."""

    embed_batch_size = 4

    def __init__(self, *, scale: float = 1.0, **args: Any) -> None:
        super().__init__(
            **{"hidden": [], "num_classes": NUM_CLASSES, "lr": 0.05, "batch_size": 8, "dropout": 0.1, **args}
        )
        self._frozen_scale = scale

    def build_backbone(self) -> nn.Module:
        layers = nn.Sequential(
            nn.Linear(NUM_FEATURES, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Dropout(0.5)
        )
        with torch.no_grad():
            layers[0].weight.mul_(self._frozen_scale)  # type: ignore[operator]
        return layers

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Dropout(0.1), nn.Linear(WIDTH, NUM_CLASSES))

    def embed(self, backbone: nn.Module, batch: Batch) -> Batch:
        CALLS.append(len(batch["features"]))
        return {**batch, "features": backbone(batch["features"])}


class LooksAround(Frozen):
    """Breaks the contract: a row's features depend on its companions."""

    def embed(self, backbone: nn.Module, batch: Batch) -> Batch:
        return super().embed(backbone, {**batch, "features": batch["features"] - batch["features"].mean(0)})


class Draws(Frozen):
    """Breaks the contract: random numbers in the features."""

    def embed(self, backbone: nn.Module, batch: Batch) -> Batch:
        batch = super().embed(backbone, batch)
        return {**batch, "features": batch["features"] + torch.rand(1)}


class Counts(Frozen):
    """Breaks the contract: features depend on how many were made before."""

    def embed(self, backbone: nn.Module, batch: Batch) -> Batch:
        batch = super().embed(backbone, batch)
        return {**batch, "features": batch["features"] * (1 + len(CALLS) % 5)}


class DropsRows(Frozen):
    """Gives fewer rows than it was given."""

    def embed(self, backbone: nn.Module, batch: Batch) -> Batch:
        return {"features": super().embed(backbone, batch)["features"][1:]}
