"""A small convolutional network: the paper's for MNIST, two convolutions and two linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from sisa_ray.core.errors import RecipeError
from sisa_ray.recipes.images import ImageClassifier


class CNNClassifier(ImageClassifier):
    """Convolutions, each followed by 2 × 2 max pooling, then linear layers.

    Args:
        channels: of each convolution (kernels of 3 × 3).
        hidden: widths of the linear layers before the last.
        batch_norm: after every convolution.
        dropout: before the last layer.
        images: see :class:`~sisa_ray.recipes.images.ImageClassifier`.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int] = (32, 64),
        hidden: Sequence[int] = (128,),
        batch_norm: bool = False,
        dropout: float = 0.0,
        **images: Any,
    ) -> None:
        super().__init__(**images)
        if not channels or any(n < 1 for n in (*channels, *hidden)):
            raise RecipeError(
                f"recipe.args.channels, hidden: must be positive, not {list(channels)}, {list(hidden)}"
            )
        if not 0 <= dropout < 1:
            raise RecipeError(f"recipe.args.dropout: must be in [0, 1), not {dropout}")
        if min(self._shape[1:]) >> len(channels) == 0:
            raise RecipeError(
                f"recipe.args.channels: {len(channels)} poolings leave nothing of {self._shape[1:]} pixels"
            )
        self._channels = tuple(channels)
        self._hidden = tuple(hidden)
        self._batch_norm = batch_norm
        self._dropout = dropout

    def build_model(self) -> nn.Module:
        """Convolutions and linear layers."""
        layers: list[nn.Module] = []
        width, rows, columns = self._shape
        for next_width in self._channels:
            layers.append(nn.Conv2d(width, next_width, 3, padding=1, bias=not self._batch_norm))
            if self._batch_norm:
                layers.append(nn.BatchNorm2d(next_width))
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
            width, rows, columns = next_width, rows // 2, columns // 2
        layers.append(nn.Flatten())
        width *= rows * columns
        for next_width in self._hidden:
            layers += [nn.Linear(width, next_width), nn.ReLU()]
            width = next_width
        if self._dropout:
            layers.append(nn.Dropout(self._dropout))
        return nn.Sequential(*layers, nn.Linear(width, self.num_classes))
