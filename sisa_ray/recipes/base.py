"""What the ready recipes share: classification, regression, optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.nn import functional as F

from sisa_ray.core.errors import RecipeError
from sisa_ray.learning.recipe import Batch, Recipe
from sisa_ray.recipes.columns import to_tensor

OptimizerName = Literal["adam", "adamw", "sgd"]
RateSchedule = Literal["constant", "cosine", "step", "last_cosine"]


class Supervised(Recipe):
    """A model of ``features`` that is trained on ``label``.

    Args of every ready recipe:
        batch_size: rows a step.
        lr: learning rate.
        optimizer: ``adam``, ``adamw`` or ``sgd``.
        momentum: of SGD.
        weight_decay: as the optimizer defines it.
        lr_schedule: over each stage's budget: ``constant``, ``cosine`` (to zero), ``step`` (a tenth at one half,
            a hundredth at three quarters); or ``last_cosine``: constant, then to zero over the last stage alone.
    """

    def __init__(
        self,
        *,
        batch_size: int = 64,
        lr: float = 1e-3,
        optimizer: OptimizerName = "adam",
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        lr_schedule: RateSchedule = "constant",
    ) -> None:
        _check("lr", lr, lr > 0, "must be positive")
        _check("optimizer", optimizer, optimizer in ("adam", "adamw", "sgd"), "must be adam, adamw or sgd")
        _check("momentum", momentum, 0 <= momentum < 1, "must be in [0, 1)")
        _check("momentum", momentum, not momentum or optimizer == "sgd", "is only for optimizer: sgd")
        _check("weight_decay", weight_decay, weight_decay >= 0, "must not be negative")
        known = get_args(RateSchedule)
        _check("lr_schedule", lr_schedule, lr_schedule in known, f"must be one of {', '.join(known)}")
        self.batch_size = batch_size
        self._lr = lr
        self._optimizer = optimizer
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._lr_schedule = lr_schedule

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer that the arguments name."""
        parameters = model.parameters()
        if self._optimizer == "sgd":
            return torch.optim.SGD(
                parameters, lr=self._lr, momentum=self._momentum, weight_decay=self._weight_decay
            )
        kind = torch.optim.Adam if self._optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, lr=self._lr, weight_decay=self._weight_decay)

    def learning_rate(self, stage: int, num_stages: int, fraction: float) -> float:
        """The factor that ``lr_schedule`` names."""
        if self._lr_schedule == "cosine" or (self._lr_schedule == "last_cosine" and stage == num_stages):
            return 0.5 * (1 + math.cos(math.pi * fraction))
        if self._lr_schedule == "step":
            return 1.0 if fraction < 0.5 else 0.1 if fraction < 0.75 else 0.01
        return 1.0

    def inputs(self, batch: Batch) -> torch.Tensor:
        """What the model is called with."""
        return batch["features"]


class Classifier(Supervised):
    """Cross-entropy on integer labels ``0..num_classes-1``; probabilities by softmax."""

    task = "classification"

    def set_classes(self, num_classes: int) -> None:
        """Check and keep the number of classes."""
        whole = isinstance(num_classes, int) and not isinstance(num_classes, bool)
        _check("num_classes", num_classes, whole and num_classes >= 2, "must be an integer of at least 2")
        self.num_classes: int = num_classes

    def bind(self, schema: pa.Schema) -> None:
        """Labels must be integers."""
        require_roles(self, schema)
        kind = schema.field("label").type if "label" in schema.names else pa.int64()
        if not pa.types.is_integer(kind):
            raise RecipeError(
                f"recipe {type(self).__name__}: data.columns.label: must be integers 0..{self.num_classes - 1}, "
                f"but the column is of type {kind}; convert it"
            )

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(model(self.inputs(batch)), batch["label"])

    def predict(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Probabilities ``(B, num_classes)``."""
        return F.softmax(model(self.inputs(batch)).float(), dim=1)

    def problems(self, columns: Mapping[str, pa.Array]) -> Iterator[tuple[int, str]]:
        """Labels out of range."""
        labels = np.asarray(columns["label"])
        # Compared as they are: an unsigned label never wraps into the range.
        bad = (labels < 0) | (labels >= self.num_classes)
        for row in np.flatnonzero(bad).tolist():
            yield row, f"label is not in 0..{self.num_classes - 1} (num_classes is {self.num_classes})"


class Regressor(Supervised):
    """Mean squared error on one number or a list of them."""

    task = "regression"

    def bind(self, schema: pa.Schema) -> None:
        """Both roles must be there."""
        require_roles(self, schema)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean squared error."""
        return F.mse_loss(self.predict(model, batch), batch["label"].float())

    def predict(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Values ``(B,)`` for plain labels, ``(B, D)`` for lists."""
        values: torch.Tensor = model(self.inputs(batch)).float()
        return values


def decode_label(columns: Mapping[str, pa.Array]) -> Batch:
    """The label's tensor, where there is a label."""
    if "label" not in columns:
        return {}
    label = to_tensor(columns["label"])
    return {"label": label.long() if not label.is_floating_point() else label.float()}


def require_roles(recipe: Recipe, schema: pa.Schema) -> None:
    """The roles that ready recipes know must be configured."""
    if "features" not in schema.names:
        raise RecipeError(
            f"recipe {type(recipe).__name__}: data.columns: needs the role 'features', "
            f"has {', '.join(schema.names)}; map features (and label) to columns"
        )


def _check(name: str, value: object, ok: bool, rule: str) -> None:
    if not ok:
        raise RecipeError(f"recipe.args.{name}: {rule}, not {value!r}")
