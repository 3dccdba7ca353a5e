"""What recipes for images share: decoding to ``(rows, channels, height, width)``, and augmentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, Literal

import pyarrow as pa
import torch
from torch.nn import functional as F

from sisa_ray.core.errors import RecipeError
from sisa_ray.learning.recipe import Batch
from sisa_ray.recipes.base import Classifier, decode_label
from sisa_ray.recipes.columns import images_to_tensor, row_shape, to_tensor, undecodable

PixelLayout = Literal["chw", "hwc"]


class ImageClassifier(Classifier):
    """Classifies images that come as raw pixels (fixed binary, fixed-size lists) or encoded (JPEG, PNG, …).

    Args:
        num_classes: labels are ``0..num_classes-1``.
        shape: ``[channels, height, width]`` that the model sees; encoded images are resized to it.
        layout: of raw pixels: ``chw`` (channels first) or ``hwc``.
        scale: pixels are divided by this constant.
        shift: augmentation: images are moved by up to so many pixels each way (zeros move in).
        flip: augmentation: mirror every other image left to right.
        channels_last: memory format of the model.
        training: see :class:`~sisa_ray.recipes.base.Supervised`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        shape: Sequence[int],
        layout: PixelLayout = "chw",
        scale: float = 255.0,
        shift: int = 0,
        flip: bool = False,
        channels_last: bool = False,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.set_classes(num_classes)
        if len(shape) != 3 or any(n < 1 for n in shape) or shape[0] not in (1, 3):
            raise RecipeError(
                f"recipe.args.shape: must be [1 or 3 channels, height, width], not {list(shape)}"
            )
        if layout not in ("chw", "hwc"):
            raise RecipeError(f"recipe.args.layout: must be chw or hwc, not {layout!r}")
        if not scale > 0:
            raise RecipeError(f"recipe.args.scale: must be positive, not {scale}")
        if not 0 <= shift < min(shape[1:]):
            raise RecipeError(
                f"recipe.args.shift: must be at least 0 and less than the image's size, not {shift}"
            )
        self._shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self._layout = layout
        self._scale = scale
        self._shift = shift
        self._flip = flip
        if channels_last:
            self.memory_format = torch.channels_last

    def bind(self, schema: pa.Schema) -> None:
        """Raw pixels must be as many as ``shape`` has."""
        super().bind(schema)
        kind = schema.field("features").type
        raw = row_shape(kind)
        if raw is None and not pa.types.is_binary(kind):
            raise RecipeError(
                f"recipe {type(self).__name__}: features must be pixels or encoded images, not {kind}"
            )
        if raw is not None and prod(raw) != prod(self._shape):
            raise RecipeError(
                f"recipe.args.shape: {list(self._shape)} has {prod(self._shape)} values, "
                f"but features ({kind}) have {prod(raw)}"
            )

    def decode(self, columns: Mapping[str, pa.Array]) -> Batch:
        """``features`` of shape ``(rows, channels, height, width)``, and the label."""
        column = columns["features"]
        channels, height, width = self._shape
        if pa.types.is_binary(column.type):
            features = images_to_tensor(column, channels=channels, size=(height, width))
        else:
            features = to_tensor(column)
            if self._layout == "hwc":
                features = features.reshape(-1, height, width, channels).permute(0, 3, 1, 2)
            features = features.reshape(-1, *self._shape).contiguous()
        if features.dtype == torch.float64:
            features = features.float()
        return {"features": features, **decode_label(columns)}

    def problems(self, columns: Mapping[str, pa.Array]) -> Iterator[tuple[int, str]]:
        """Labels out of range, and images that cannot be decoded."""
        yield from super().problems(columns)
        if pa.types.is_binary(columns["features"].type):
            for row in undecodable(columns["features"]):
                yield row, "features is no image that can be decoded"

    def augment(self, batch: Batch) -> Batch:
        """Random shifts and mirrorings, drawn from torch's global generator."""
        features = batch["features"]
        if self._flip:
            mirrored = (torch.rand(len(features)) < 0.5).to(features.device)
            features = torch.where(mirrored[:, None, None, None], features.flip(3), features)
        if self._shift:
            features = self._shifted(features)
        return {**batch, "features": features}

    def _shifted(self, features: torch.Tensor) -> torch.Tensor:
        _, height, width = self._shape
        span = 2 * self._shift + 1
        down, right = torch.randint(0, span, (2, len(features))).to(features.device)
        padded = F.pad(features, [self._shift] * 4)
        rows = down[:, None] + torch.arange(height, device=features.device)
        columns = right[:, None] + torch.arange(width, device=features.device)
        images = torch.arange(len(features), device=features.device)
        # Indexing (N,1,1), (N,H,1), (N,1,W) with the channel axis kept puts channels last: moved back.
        return (
            padded[images[:, None, None], :, rows[:, :, None], columns[:, None, :]]
            .permute(0, 3, 1, 2)
            .contiguous()
        )

    def inputs(self, batch: Batch) -> torch.Tensor:
        """Pixels as floats, divided by ``scale``, in the model's memory format."""
        return (batch["features"].float() / self._scale).contiguous(memory_format=self.memory_format)
