"""Wide residual networks (Zagoruyko & Komodakis 2016), for images such as CIFAR-10 and SVHN."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sisa_ray.core.errors import RecipeError
from sisa_ray.recipes.images import ImageClassifier

_STEM = 16


class WideResNetClassifier(ImageClassifier):
    """Wide ResNet.

    Args:
        blocks: residual blocks in each of the three groups: the depth is ``6 * blocks + 4``. The paper's
            Wide ResNet-1-1 has ``blocks: 1, width: 1``.
        width: widening factor.
        dropout: inside every block.
        images: see :class:`~sisa_ray.recipes.images.ImageClassifier`; default optimizer: SGD with momentum 0.9.
    """

    def __init__(self, *, blocks: int = 1, width: int = 1, dropout: float = 0.0, **images: Any) -> None:
        if images.setdefault("optimizer", "sgd") == "sgd":
            images.setdefault("momentum", 0.9)
            images.setdefault("lr", 0.1)
        super().__init__(**images)
        if blocks < 1 or width < 1:
            raise RecipeError(f"recipe.args.blocks, width: must be positive, not {blocks}, {width}")
        if not 0 <= dropout < 1:
            raise RecipeError(f"recipe.args.dropout: must be in [0, 1), not {dropout}")
        self._blocks = blocks
        self._width = width
        self._dropout = dropout

    def build_model(self) -> nn.Module:
        """The network."""
        layers: list[nn.Module] = [nn.Conv2d(self._shape[0], _STEM, 3, padding=1, bias=False)]
        channels = _STEM
        for group in range(3):
            target = _STEM * 2**group * self._width
            for block in range(self._blocks):
                stride = 2 if group and not block else 1
                layers.append(_Block(channels, target, stride, self._dropout))
                channels = target
        head = [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, *head, nn.Linear(channels, self.num_classes))


class _Block(nn.Module):
    """Two convolutions, each after normalisation and activation, beside a shortcut."""

    def __init__(self, channels: int, target: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, target, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(target)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(target, target, 3, padding=1, bias=False)
        same = channels == target and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, target, 1, stride=stride, bias=False)
        self.is_identity = same

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape ``(B, channels, H, W)`` to ``(B, target, H/stride, W/stride)``."""
        active = F.relu(self.norm1(x))
        residual = self.conv1(active)
        residual = self.conv2(self.dropout(F.relu(self.norm2(residual))))
        shortcut: torch.Tensor = x if self.is_identity else self.shortcut(active)
        total: torch.Tensor = shortcut + residual
        return total
