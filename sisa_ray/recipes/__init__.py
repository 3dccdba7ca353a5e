"""Ready recipes: multi-layer perceptrons for tables, CNNs and ResNets for images, and pre-trained ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sisa_ray.recipes.cnn import CNNClassifier
    from sisa_ray.recipes.lora import LoRAClassifier
    from sisa_ray.recipes.mlp import MLPClassifier, MLPRegressor
    from sisa_ray.recipes.resnet import ResNetClassifier
    from sisa_ray.recipes.transfer import TransferClassifier
    from sisa_ray.recipes.wide_resnet import WideResNetClassifier

__all__ = [
    "CNNClassifier",
    "LoRAClassifier",
    "MLPClassifier",
    "MLPRegressor",
    "ResNetClassifier",
    "TransferClassifier",
    "WideResNetClassifier",
]

_HOMES = {
    "CNNClassifier": "cnn",
    "LoRAClassifier": "lora",
    "MLPClassifier": "mlp",
    "MLPRegressor": "mlp",
    "ResNetClassifier": "resnet",
    "TransferClassifier": "transfer",
    "WideResNetClassifier": "wide_resnet",
}


def __getattr__(name: str) -> Any:
    """Import on first use: finding a recipe's source must not import torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
