"""The ensemble: what each constituent says, and what they say together (paper, section IV; design, clause 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from sisa_ray.core.config import ArithmeticConfig
from sisa_ray.core.errors import ConfigError
from sisa_ray.learning.arithmetic import applied
from sisa_ray.learning.passes import padded, padded_batch, predict_pass
from sisa_ray.learning.recipe import Batch, RecipeFactory
from sisa_ray.learning.trainer import load_constituent

Floats = npt.NDArray[np.float64]
Task = Literal["classification", "regression"]
Rule = Literal["majority", "mean", "median", "size_weighted"]

RULES: dict[Task, tuple[Rule, ...]] = {
    "classification": ("majority", "mean", "size_weighted"),
    "regression": ("mean", "median", "size_weighted"),
}
"""The rules for each task; the first is the default (the paper's majority vote for labels)."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the ensemble says about N rows.

    Attributes:
        values: labels (int64, shape ``(N,)``), or values (float64, shape ``(N,)`` or ``(N, D)``).
        probabilities: shape ``(N, C)``: shares of the vote (majority), or (weighted) mean probabilities.
        agreement: shape ``(N,)``: the fraction of voters whose own label is the ensemble's.
    """

    values: npt.NDArray[np.int64] | Floats
    probabilities: Floats | None = None
    agreement: Floats | None = None


def rule_for(rule: str, task: Task) -> Rule:
    """The rule named, ``auto`` being the task's default.

    Raises:
        ConfigError: where it is none of the task's.
    """
    known = RULES[task]
    if rule == "auto":
        return known[0]
    for candidate in known:
        if candidate == rule:
            return candidate
    raise ConfigError(f"aggregation: for {task} it must be auto, {', '.join(known)}, not {rule!r}")


def predict_constituent(
    recipe: RecipeFactory, state: bytes, rows: pa.Table | Batch, arithmetic: ArithmeticConfig
) -> Floats:
    """What one constituent says about each of ``rows``: role columns (labels are not looked at), or decoded
    tensors, as a backbone gives them.

    Every forward pass has exactly ``arithmetic.predict_batch_size`` rows, the last one padded, so that an
    answer's bits depend neither on the other rows asked about nor on how many there are. They may depend on the
    row's place in its pass: vectorised kernels round the last few elements of a tensor in their own way.

    Returns:
        Probabilities ``(N, C)``, or values ``(N,)`` or ``(N, D)``.

    Raises:
        IntegrityError: where ``state`` is no checkpoint.
        RecipeError: where the recipe's answer has the wrong shape.
    """
    size = arithmetic.predict_batch_size
    num_rows = rows.num_rows if isinstance(rows, pa.Table) else len(next(iter(rows.values()), ()))
    answers: list[Floats] = []
    with applied(arithmetic) as device, torch.inference_mode():
        made, model = load_constituent(recipe, state, device)
        for first in range(0, num_rows, size):
            if isinstance(rows, pa.Table):
                batch = padded_batch(made, rows.slice(first, size), size, device)
            else:
                piece = {name: tensor[first : first + size] for name, tensor in rows.items()}
                batch = padded(piece, size, device)
            answer = predict_pass(made, model, batch, arithmetic)
            answers.append(answer[: num_rows - first].to("cpu", torch.float64).numpy())
    return np.concatenate(answers) if answers else np.zeros((0, made.num_classes or 1))


def aggregate(rule: Rule, predictions: Floats, weights: Sequence[int], *, task: Task) -> Prediction:
    """Combine constituents' predictions, in the order of their shards and in double precision.

    Args:
        rule: see :data:`RULES`.
        predictions: shape ``(voters, N, C)`` for classification, ``(voters, N)`` or ``(voters, N, D)`` else.
        weights: records of each voter; ``size_weighted`` uses them.
        task: what the predictions are.
    """
    if task == "regression":
        return Prediction(values=_combined(rule, predictions, weights))
    labels = predictions.argmax(axis=2)
    if rule == "majority":
        shares = _vote_shares(labels, predictions.shape[2])
        # Ties go to the label with the highest summed probability among the tied, then to the lowest label.
        tied = shares == shares.max(axis=1, keepdims=True)
        sums = _ordered_sum(predictions)
        values = np.where(tied, sums, -np.inf).argmax(axis=1)
        probabilities = shares
    else:
        probabilities = _combined(rule, predictions, weights)
        values = probabilities.argmax(axis=1)
    agreement = (labels == values).mean(axis=0)
    return Prediction(values=values.astype(np.int64), probabilities=probabilities, agreement=agreement)


def _vote_shares(labels: npt.NDArray[np.int64], num_classes: int) -> Floats:
    votes = (labels[:, :, None] == np.arange(num_classes)).sum(axis=0)
    shares: Floats = votes / len(labels)
    return shares


def _combined(rule: Rule, predictions: Floats, weights: Sequence[int]) -> Floats:
    if rule == "median":
        median: Floats = np.median(predictions, axis=0)
        return median
    shares = np.ones(len(predictions)) if rule == "mean" else np.asarray(weights, dtype=np.float64)
    shape = (-1,) + (1,) * (predictions.ndim - 1)
    mean: Floats = _ordered_sum(predictions * shares.reshape(shape)) / shares.sum()
    return mean


def _ordered_sum(values: Floats) -> Floats:
    """The sum over voters, one after the other: numpy's own order depends on the array's layout."""
    if not len(values):
        return np.zeros(values.shape[1:])
    total: Floats = np.add.accumulate(values, axis=0)[-1] + 0.0  # without negative zeros
    return total
