"""Stages of small recipes, for the trainer's tests."""

from __future__ import annotations

from typing import Any

from sisa_ray.core.config import Precision
from sisa_ray.learning.recipe import RecipeFactory
from tests.learning.recipes import Plain
from tests.learning.sources import (
    SCHEMA,
    load,
    make_slices,
    train,
)

SIZES = [13, 0, 9]
NAMES = ["Plain", "DropoutAdam", "Conv"]
PRECISIONS: list[Precision] = ["fp32", "bf16", "fp16"]


def of(kind: type[Plain], **attributes: Any) -> RecipeFactory:
    """A factory of a class defined in a test."""

    def make() -> Plain:
        made = kind()
        for name, value in attributes.items():
            setattr(made, name, value)
        made.bind(SCHEMA)
        return made

    return make


def stages(make: RecipeFactory, **kwargs: Any) -> list[bytes]:
    """Stages 1 to 3 in this process, one after the other."""
    data = load(make_slices(SIZES), make)
    states: list[bytes] = []
    for stage in (1, 2, 3):
        states.append(train(make, data, stage=stage, start=states[-1] if states else None, **kwargs))
    return states
