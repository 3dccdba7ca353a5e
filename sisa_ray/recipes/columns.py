"""Arrow columns as tensors, row by row, in the compact types that they have."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from sisa_ray.core.errors import RecipeError


def row_shape(kind: pa.DataType) -> tuple[int, ...] | None:
    """Shape of one row of a column of type ``kind``; None where the type alone does not say (encoded images)."""
    if pa.types.is_fixed_size_binary(kind):
        return (kind.byte_width,)
    if pa.types.is_fixed_size_list(kind):
        inner = row_shape(kind.value_type)
        return None if inner is None else (kind.list_size, *inner)
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return ()
    return None


def to_tensor(array: pa.Array) -> torch.Tensor:
    """Numbers, bytes, or (nested) fixed-size lists of them: shape ``(rows, *row_shape)``, in fresh memory.

    Raises:
        RecipeError: for columns that are none of these.
    """
    shape = row_shape(array.type)
    if shape is None:
        raise RecipeError(
            f"features of type {array.type} cannot be decoded; give numbers or fixed-size lists of them"
        )
    if pa.types.is_fixed_size_binary(array.type):
        width = array.type.byte_width
        values = np.frombuffer(array.buffers()[1], np.uint8, len(array) * width, array.offset * width)
    else:
        leaf = array
        while pa.types.is_fixed_size_list(leaf.type):
            leaf = leaf.flatten()
        values = leaf.to_numpy(zero_copy_only=False)
    return torch.from_numpy(np.array(values, copy=True)).reshape(len(array), *shape)


def images_to_tensor(array: pa.Array, *, channels: int, size: tuple[int, int] | None) -> torch.Tensor:
    """Encoded images (JPEG, PNG, …) as ``uint8``, shape ``(rows, channels, height, width)``.

    Args:
        array: binary column.
        channels: 1 (grey) or 3 (RGB).
        size: (height, width) that images are resized to; None: all must have the size of the first.
    """
    decoded = []
    for row, data in enumerate(array):
        picture = _decoded(data.as_py(), channels)
        if picture is None:
            raise RecipeError(f"features: row {row} of a batch is no image that can be decoded")
        if size is not None and picture.size != (size[1], size[0]):
            picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture, dtype=np.uint8)
        decoded.append(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1))
    return torch.from_numpy(np.stack(decoded))


def undecodable(array: pa.Array) -> Iterator[int]:
    """Rows of a binary column that hold no image."""
    return (row for row, data in enumerate(array) if _decoded(data.as_py(), 3) is None)


def _decoded(data: bytes, channels: int) -> Image.Image | None:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert({1: "L", 3: "RGB"}[channels])
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ):  # what Pillow says of broken files
        return None
