"""Recipes of a user's own, for the tests."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from sisa_ray.learning.recipe import Batch
from sisa_ray.recipes import MLPClassifier

_CALLS = {"count": 0}


class Small(MLPClassifier):
    """Three classes, one small hidden layer."""

    def __init__(self, *, batch_size: int = 8, **args: Any) -> None:
        super().__init__(hidden=[16], num_classes=3, lr=0.01, batch_size=batch_size, **args)


class WithNote(Small):
    """Carries a string column that the model does not use."""

    def decode(self, columns: Mapping[str, pa.Array]) -> Batch:
        return super().decode({role: array for role, array in columns.items() if role != "note"})


class Counting(Small):
    """Breaks the contract: a counter of its own changes what it learns."""

    def augment(self, batch: Batch) -> Batch:
        _CALLS["count"] += 1
        return {**batch, "features": batch["features"] + 0.01 * (_CALLS["count"] % 7)}


class Slow(Small):
    """Takes its time, so that it can be killed inside a stage."""

    def augment(self, batch: Batch) -> Batch:
        time.sleep(0.05)
        return batch


class Raising(Small):
    """Fails while it trains."""

    def augment(self, batch: Batch) -> Batch:
        raise RuntimeError("out of cheese")
