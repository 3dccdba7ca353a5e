"""Recipes for the tests: small, and each with something that could break exactness."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.nn import functional as F

from sisa_ray.learning.recipe import Batch, Recipe

WIDTH = 6


class Plain(Recipe):
    """A linear layer, SGD; features of six floats."""

    task = "classification"
    num_classes = 3

    def __init__(self, *, batch_size: int = 5, lr: float = 0.1) -> None:
        self.batch_size = batch_size
        self.lr = lr

    def bind(self, schema: pa.Schema) -> None:
        self.width = schema.field("features").type.list_size

    def build_model(self) -> nn.Module:
        return nn.Linear(self.width, 3)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.lr)

    def decode(self, columns: Mapping[str, pa.Array]) -> Batch:
        features = columns["features"].flatten().to_numpy(zero_copy_only=False).reshape(-1, self.width)
        batch = {"features": torch.tensor(features, dtype=torch.float32)}
        if "label" in columns:
            batch["label"] = torch.tensor(columns["label"].to_numpy(zero_copy_only=False), dtype=torch.int64)
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return F.cross_entropy(model(batch["features"]), batch["label"])

    def predict(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        result: torch.Tensor = model(batch["features"]).softmax(dim=1)
        return result


class DropoutAdam(Plain):
    """Dropout, Adam, tied weights, and augmentation that draws from torch, numpy and ``random``."""

    def build_model(self) -> nn.Module:
        tied = nn.Linear(self.width, self.width)
        layers = (tied, nn.ReLU(), nn.Dropout(0.3), tied, nn.Tanh(), nn.Linear(self.width, 3))
        return nn.Sequential(*layers)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=0.01)

    def augment(self, batch: Batch) -> Batch:
        x = batch["features"]
        noise = torch.from_numpy(np.random.normal(size=tuple(x.shape)).astype(np.float32)).to(x.device)
        x = x + 0.1 * noise + 0.1 * torch.randn_like(x)
        return {**batch, "features": x.roll(random.randrange(self.width), dims=1)}


class Conv(Plain):
    """Batch norm, momentum, a learning-rate schedule, channels last, a weight average after every step."""

    memory_format = torch.channels_last

    def build_model(self) -> nn.Module:
        return _ConvNet(self.width)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        trained = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.SGD(trained, lr=0.05, momentum=0.9, weight_decay=1e-3)

    def learning_rate(self, stage: int, num_stages: int, fraction: float) -> float:
        return 1.0 / stage * (1.0 - fraction)

    def after_step(self, model: nn.Module) -> None:
        assert isinstance(model, _ConvNet)
        model.average.lerp_(model.head.weight, 0.1)


class _ConvNet(nn.Module):
    average: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, (1, 2)), nn.Flatten()
        )
        self.head = nn.Linear(4 * 2 * (width // 2 - 1), 3)
        self.register_buffer("average", torch.zeros_like(self.head.weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        image = x.reshape(len(x), 1, 2, -1).contiguous(memory_format=torch.channels_last)
        result: torch.Tensor = self.head(self.body(image))
        return result


class OwnGenerator(Plain):
    """Breaks the contract: a generator of its own."""

    def __init__(self, **args: Any) -> None:
        super().__init__(**args)
        self.generator = torch.Generator().manual_seed(1)

    def augment(self, batch: Batch) -> Batch:
        x = batch["features"]
        return {**batch, "features": x + 0.1 * torch.randn(x.shape, generator=self.generator)}


class OwnCounter(Plain):
    """Breaks the contract: a counter of its own."""

    calls = 0

    def augment(self, batch: Batch) -> Batch:
        self.calls += 1
        return {**batch, "features": batch["features"] * (1 + 0.1 * (self.calls % 7))}


class GlobalCounter(Plain):
    """Breaks the contract: a counter in a global."""

    counts: tuple[int, ...] = ()

    def augment(self, batch: Batch) -> Batch:
        GlobalCounter.counts = (*GlobalCounter.counts, 1)
        return {**batch, "features": batch["features"] * (1 + 0.1 * (len(GlobalCounter.counts) % 7))}


class OwnClock(Plain):
    """Breaks the contract: a clock."""

    def augment(self, batch: Batch) -> Batch:
        import time

        return {**batch, "features": batch["features"] + (time.perf_counter_ns() % 1000) / 1e4}


class UnseededNumpy(Plain):
    """Breaks the contract: entropy of the operating system."""

    def augment(self, batch: Batch) -> Batch:
        noise = np.random.default_rng().normal(size=tuple(batch["features"].shape))
        return {**batch, "features": batch["features"] + torch.from_numpy(noise.astype(np.float32))}


class HiddenState(Plain):
    """Breaks the contract: state of the model that is in no checkpoint."""

    def build_model(self) -> nn.Module:
        model = super().build_model()
        model.register_buffer("scale", torch.ones(()), persistent=False)
        return model

    def after_step(self, model: nn.Module) -> None:
        scale = model.get_buffer("scale")
        scale.mul_(1.1)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return super().loss(model, batch) * model.get_buffer("scale")


class DecodeDraws(Plain):
    """Breaks the contract: random numbers while decoding."""

    def decode(self, columns: Mapping[str, pa.Array]) -> Batch:
        batch = super().decode(columns)
        return {**batch, "features": batch["features"] + torch.rand(1)}


class DecodeCounts(Plain):
    """Breaks the contract: decoding remembers how often it was called."""

    calls = 0

    def decode(self, columns: Mapping[str, pa.Array]) -> Batch:
        DecodeCounts.calls += 1
        batch = super().decode(columns)
        return {**batch, "features": batch["features"] * (1 + 1e-7 * DecodeCounts.calls)}


class DecodeFits(Plain):
    """Breaks the contract: a statistic of the rows."""

    def decode(self, columns: Mapping[str, pa.Array]) -> Batch:
        batch = super().decode(columns)
        return {**batch, "features": batch["features"] - batch["features"].mean(dim=0)}
