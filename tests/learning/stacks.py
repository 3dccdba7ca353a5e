"""Stacks for the tests, and recipes that have something against being stacked."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from sisa_ray.learning import codec
from sisa_ray.learning.ensemble import Floats, predict_constituent
from sisa_ray.learning.passes import padded_batch, probe_batch
from sisa_ray.learning.recipe import Batch, RecipeFactory, RecipeSpec, new_recipe
from sisa_ray.learning.stacked import StackedModel
from tests.learning.recipes import Plain
from tests.learning.sources import CPU, arithmetic, load, make_slices, recipe, train

ROWS = 8
SETTINGS = arithmetic(predict_batch_size=ROWS)
TABLE = make_slices([ROWS])[0].table
IMAGES = pa.schema([("features", pa.binary(64)), ("label", pa.int32())])
BYTES = pa.schema([("features", pa.binary(784))])
VECTORS = pa.schema([("features", pa.list_(pa.float32(), 6)), ("label", pa.list_(pa.float32(), 2))])


@cache
def states(name: str = "DropoutAdam", count: int = 4) -> tuple[bytes, ...]:
    return trained(recipe(name), count)


def trained(make: RecipeFactory, count: int = 4) -> tuple[bytes, ...]:
    data = load(make_slices([13]), make)
    return tuple(train(make, data, num_steps=3, seed=seed) for seed in range(count))


def saved(make: RecipeFactory, count: int = 3) -> tuple[bytes, ...]:
    """Checkpoints without training, for recipes of other schemas."""

    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        model = new_recipe(make).build_model()
        made.append(
            codec.encode({"model": model.state_dict(), "optimizer": {}, "trainer": {"model_seed": seed}})
        )
    return tuple(made)


def ready(name: str, schema: pa.Schema, **args: Any) -> RecipeFactory:
    return RecipeSpec(class_path=f"sisa_ray.recipes.{name}", args=args).factory(schema)


MLP = ready("MLPClassifier", IMAGES, hidden=[32], num_classes=10, scale=255.0, batch_norm=True)
CNN = ready("CNNClassifier", IMAGES, channels=[8], hidden=[16], num_classes=10, shape=[1, 8, 8])
REGRESSOR = ready("MLPRegressor", VECTORS, hidden=[16])


def rows_of(make: RecipeFactory, table: pa.Table = TABLE, rows: int = ROWS) -> Batch:
    return padded_batch(new_recipe(make), table, rows, CPU)


def made_up(make: RecipeFactory, schema: pa.Schema, rows: int = ROWS) -> Batch:
    batch = probe_batch(new_recipe(make), schema, rows, CPU)
    assert batch is not None
    return batch


def alone(make: RecipeFactory, held: tuple[bytes, ...], table: pa.Table = TABLE) -> Floats:
    return np.stack([predict_constituent(make, state, table, SETTINGS) for state in held])


def tensors_of(stack: StackedModel) -> list[torch.Tensor]:
    """Every live tensor that lies in memory of the stack's size or is one of its models'."""
    held = [vars(stack)["_tensors"] or {}]
    held += [dict(m.state_dict(keep_vars=True)) for m in vars(stack)["_models"] or () if m is not None]
    return [tensor for tensors in held for tensor in tensors.values()]


class ByValue(Plain):
    """Which way it goes depends on the batch and on the weights."""

    def predict(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        answer = super().predict(model, batch)
        assert isinstance(model, nn.Linear)
        return answer if bool(model.weight.sum() > -1e9) else -answer


class Counts(Plain):
    """A buffer that every forward changes, and that answers depend on."""

    def build_model(self) -> nn.Module:
        model = super().build_model()
        model.register_buffer("asked", torch.zeros(()))
        return model

    def predict(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        model.get_buffer("asked").add_(0.25)
        answer: torch.Tensor = (model(batch["features"]) * model.get_buffer("asked")).softmax(dim=1)
        return answer


class Tallies(Plain):
    """A buffer that every forward changes, and that no answer depends on."""

    def build_model(self) -> nn.Module:
        model = super().build_model()
        model.register_buffer("asked", torch.zeros(()))
        return model

    def predict(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        model.get_buffer("asked").add_(1)
        return super().predict(model, batch)


class Extra(Plain):
    """State of a checkpoint that is neither parameter nor buffer."""

    class _Linear(nn.Linear):
        extra = torch.ones(())

        def get_extra_state(self) -> torch.Tensor:
            return self.extra

        def set_extra_state(self, state: torch.Tensor) -> None:
            self.extra = state

    def build_model(self) -> nn.Module:
        return self._Linear(self.width, 3)


class Numpy(Plain):
    """Computes outside of torch."""

    def predict(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return torch.from_numpy(super().predict(model, batch).numpy() * 1.0)


class Unregistered(Plain):
    """Constituents differ in what no parameter or buffer holds."""

    def build_model(self) -> nn.Module:
        model = super().build_model()
        model.factor = torch.rand(()).item()  # type: ignore[assignment]
        return model

    def predict(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        factor = float(vars(model)["factor"])
        answer: torch.Tensor = (model(batch["features"]) * factor).softmax(dim=1)
        return answer


class Draws(Plain):
    """Predictions by chance."""

    def predict(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return super().predict(model, batch) + torch.rand(())


class Baked(Plain):
    """Takes a number out of the batch that a careless tracer would keep."""

    def predict(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return super().predict(model, batch) * float(batch["features"].numpy().max())


class Suspicious(Plain):
    """Answers otherwise where it is traced."""

    def predict(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        answer = super().predict(model, batch)
        return answer if get_proxy_mode() is None else answer + 1
