"""A head on a frozen, publicly pre-trained backbone: features are computed once, constituents train heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sisa_ray.core.errors import RecipeError
from sisa_ray.learning.recipe import Batch
from sisa_ray.recipes.efficientnet import CHANNELS, NUM_BLOCKS, NUM_FEATURES, Pooled
from sisa_ray.recipes.images import ImageClassifier


class PretrainedImageClassifier(ImageClassifier):
    """Images in colour, resized for a pre-trained backbone that a subclass builds and uses.

    Args:
        size: side in pixels that the backbone sees; a multiple of 32.
        embed_batch_size: rows of each of the backbone's passes. The shape shows in the bits, so it is identity.
        images: see :class:`~sisa_ray.recipes.images.ImageClassifier`; ``shift``, ``flip`` and ``scale`` are not
            for cached features.
    """

    def __init__(self, *, size: int, embed_batch_size: int, **images: Any) -> None:
        for name in ("shift", "flip", "scale"):
            if name in images:
                raise RecipeError(
                    f"recipe.args.{name}: is not for a frozen backbone, whose features are computed once; remove it"
                )
        super().__init__(channels_last=True, **images)
        if self._shape[0] != 3:
            raise RecipeError(f"recipe.args.shape: must have 3 channels (RGB), not {self._shape[0]}")
        if not isinstance(size, int) or isinstance(size, bool) or size < 32 or size % 32:
            raise RecipeError(f"recipe.args.size: must be a positive multiple of 32, not {size!r}")
        self.embed_batch_size = embed_batch_size
        self._size = size

    def embed(self, backbone: nn.Module, batch: Batch) -> Batch:
        """``features`` as the backbone gives them, in half precision: half the storage."""
        return {**batch, "features": backbone(batch["features"]).half()}

    def inputs(self, batch: Batch) -> torch.Tensor:
        """Features as floats."""
        return batch["features"].float()


class TransferClassifier(PretrainedImageClassifier):
    """A head on the features of a frozen EfficientNet-Lite0 (ImageNet weights, extra ``transfer``).

    The head sees the 1280 features after the last layer beside averages and maxima of earlier blocks, normalised row
    by row: nothing is fitted on any record but the head.

    Args:
        depths: blocks (1..16) whose maps are pooled beside the last layer's.
        hidden: widths of hidden layers of the head; none: a linear head.
        dropout: on the features; hidden layers have one half.
        size, embed_batch_size, images: see :class:`PretrainedImageClassifier`.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int] = (11,),
        hidden: Sequence[int] = (),
        dropout: float = 0.2,
        size: int = 96,
        embed_batch_size: int = 16,
        **images: Any,
    ) -> None:
        super().__init__(size=size, embed_batch_size=embed_batch_size, **images)
        if any(not 1 <= depth <= NUM_BLOCKS for depth in depths):
            raise RecipeError(f"recipe.args.depths: must be blocks 1..{NUM_BLOCKS}, not {list(depths)}")
        if any(width < 1 for width in hidden):
            raise RecipeError(f"recipe.args.hidden: must be positive widths, not {list(hidden)}")
        if not 0 <= dropout < 1:
            raise RecipeError(f"recipe.args.dropout: must be in [0, 1), not {dropout}")
        self._depths = tuple(depths)
        self._hidden = tuple(hidden)
        self._dropout = dropout

    def build_backbone(self) -> nn.Module:
        """The whole network, pooled at several depths."""
        return Pooled(self._size, self._depths)

    def build_model(self) -> nn.Module:
        """The head."""
        width = NUM_FEATURES + 2 * sum(CHANNELS[depth - 1] for depth in set(self._depths))
        layers: list[nn.Module] = [nn.LayerNorm(width, elementwise_affine=False), nn.Dropout(self._dropout)]
        for next_width in self._hidden:
            layers += [nn.Linear(width, next_width), nn.ReLU(), nn.Dropout(0.5)]
            width = next_width
        return nn.Sequential(*layers, nn.Linear(width, self.num_classes))
