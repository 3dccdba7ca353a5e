"""Residual networks (He et al. 2016): ResNet-18 and ResNet-50, for images small and large."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from sisa_ray.core.errors import RecipeError
from sisa_ray.recipes.images import ImageClassifier

Stem = Literal["imagenet", "small"]

_BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
_STEMS = ("imagenet", "small")
_SMALLEST = {"imagenet": 32, "small": 8}
"""Sides of images that the five halvings (three, after the small stem) leave at least one pixel of."""


class ResNetClassifier(ImageClassifier):
    """ResNet with the stride of a bottleneck on its 3 × 3 convolution, as most implementations have it today.

    Args:
        depth: 18 (two convolutions of 3 × 3 a block) or 50 (bottlenecks: 1 × 1, 3 × 3, 1 × 1).
        width: channels of the first group: 64 in the paper of He et al.; each further group has twice as many.
        stem: ``imagenet``: 7 × 7 of stride 2, and max pooling, which makes 7 × 7 features of 224 × 224 pixels;
            ``small``: one 3 × 3 of stride 1, for images of 32 to 96 pixels.
        images: see :class:`~sisa_ray.recipes.images.ImageClassifier`; default optimizer: SGD with momentum 0.9.
    """

    def __init__(self, *, depth: int = 50, width: int = 64, stem: Stem = "imagenet", **images: Any) -> None:
        if images.setdefault("optimizer", "sgd") == "sgd":
            images.setdefault("momentum", 0.9)
            images.setdefault("lr", 0.1)
        super().__init__(**images)
        if depth not in _BLOCKS:
            raise RecipeError(f"recipe.args.depth: must be 18 or 50, not {depth!r}")
        if width < 1:
            raise RecipeError(f"recipe.args.width: must be positive, not {width}")
        if stem not in _STEMS:
            raise RecipeError(f"recipe.args.stem: must be {' or '.join(_STEMS)}, not {stem!r}")
        if min(self._shape[1:]) < _SMALLEST[stem]:
            raise RecipeError(
                f"recipe.args.shape: images of {self._shape[1:]} pixels are too small for stem: {stem}, which needs "
                f"{_SMALLEST[stem]}" + ("; set stem: small" if stem == "imagenet" else "")
            )
        self._depth = depth
        self._width = width
        self._stem = stem

    def build_model(self) -> nn.Module:
        """The network."""
        layers = self._stem_layers()
        channels = self._width
        for group, num_blocks in enumerate(_BLOCKS[self._depth]):
            for block in range(num_blocks):
                stride = 2 if group and not block else 1
                layers.append(
                    _Block(channels, self._width * 2**group, stride, is_bottleneck=self._depth == 50)
                )
                channels = layers[-1].num_outputs
        return nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, self.num_classes)
        )

    def _stem_layers(self) -> list[Any]:
        if self._stem == "small":
            return [_convolution(self._shape[0], self._width, 3), nn.BatchNorm2d(self._width), nn.ReLU()]
        convolution = _convolution(self._shape[0], self._width, 7, stride=2)
        return [convolution, nn.BatchNorm2d(self._width), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)]


class _Block(nn.Module):
    """Convolutions, each before its normalisation, beside a shortcut; the activation comes after the sum."""

    def __init__(self, channels: int, width: int, stride: int, *, is_bottleneck: bool) -> None:
        super().__init__()
        # (outputs, kernel, stride) of each convolution
        plan = [(width, 3, stride), (width, 3, 1)]
        if is_bottleneck:
            plan = [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
        self.num_outputs = plan[-1][0]
        layers: list[nn.Module] = []
        before = channels
        for outputs, kernel, step in plan:
            layers += [_convolution(before, outputs, kernel, stride=step), nn.BatchNorm2d(outputs), nn.ReLU()]
            before = outputs
        self.residual = nn.Sequential(*layers[:-1])
        same = channels == self.num_outputs and stride == 1
        project = _convolution(channels, self.num_outputs, 1, stride=stride)
        self.shortcut = nn.Identity() if same else nn.Sequential(project, nn.BatchNorm2d(self.num_outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape ``(B, channels, H, W)`` to ``(B, num_outputs, H/stride, W/stride)``."""
        return F.relu(self.shortcut(x) + self.residual(x))


def _convolution(inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> nn.Conv2d:
    """Without a bias, which the normalisation after it would take away; started as He et al. (2015) have it."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer
