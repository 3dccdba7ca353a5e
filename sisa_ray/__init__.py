"""sisa_ray: SISA training on Ray, and unlearning that is bit-for-bit equal to never having known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sisa_ray.core.config import SisaConfig
    from sisa_ray.execution.trainer import SisaTrainer, TrainedEnsemble
    from sisa_ray.learning.recipe import Batch, Recipe

__version__ = "0.1.0"

__all__ = ["Batch", "Recipe", "SisaConfig", "SisaTrainer", "TrainedEnsemble", "__version__"]

_HOMES = {
    "Batch": "sisa_ray.learning.recipe",
    "Recipe": "sisa_ray.learning.recipe",
    "SisaConfig": "sisa_ray.core.config",
    "SisaTrainer": "sisa_ray.execution.trainer",
    "TrainedEnsemble": "sisa_ray.execution.trainer",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that the command line does not wait for torch and Ray to print its help."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
