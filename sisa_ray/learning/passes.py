"""Forward passes of a fixed number of rows, the only ones that predictions are made of (design, clause 7)."""

from __future__ import annotations

from math import prod

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from sisa_ray.core.config import ArithmeticConfig
from sisa_ray.core.errors import RecipeError
from sisa_ray.learning.arithmetic import autocast_dtype
from sisa_ray.learning.loader import decode_table
from sisa_ray.learning.recipe import Batch, Recipe

_LABEL = "label"


def features_of(table: pa.Table) -> pa.Table:
    """``table`` without its labels: a prediction does not look at them."""
    return table.drop_columns([_LABEL]) if _LABEL in table.schema.names else table


def padded_batch(recipe: Recipe, table: pa.Table, rows: int, device: torch.device) -> Batch:
    """Tensors of exactly ``rows`` rows on ``device``, in fresh buffers: the first row fills the rest.

    Args:
        table: role columns (labels are dropped), 1 to ``rows`` rows.

    Raises:
        RecipeError: where ``decode`` gives anything but tensors with one row each for the table's rows.
    """
    return padded(decode_table(recipe, features_of(table)), rows, device)


def padded(batch: Batch, rows: int, device: torch.device) -> Batch:
    """The same rows as tensors of exactly ``rows`` rows on ``device``: see :func:`padded_batch`."""
    full_batch = {}
    for name, tensor in batch.items():
        assert 0 < len(tensor) <= rows, "a pass has at least one row, and no more than fit"
        full = tensor.new_empty((rows, *tensor.shape[1:]))
        full[: len(tensor)] = tensor
        full[len(tensor) :] = tensor[:1]
        full_batch[name] = full.to(device)
    return full_batch


def predict_pass(
    recipe: Recipe, model: nn.Module, batch: Batch, arithmetic: ArithmeticConfig
) -> torch.Tensor:
    """One pass of one constituent, in the precision of ``arithmetic``; the caller turns gradients off.

    Returns:
        The recipe's answer: shape ``(rows,)`` or ``(rows, D)``, on the batch's device.

    Raises:
        RecipeError: where the answer has the wrong shape.
    """
    rows, device = pass_shape(batch)
    dtype = autocast_dtype(arithmetic.precision)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        answer = recipe.predict(model, batch)
    if answer.dim() not in (1, 2) or len(answer) != rows:
        raise RecipeError(
            f"recipe {type(recipe).__name__}.predict: must return {rows} rows of one or two dimensions, "
            f"not shape {list(answer.shape)}"
        )
    return answer


def pass_shape(batch: Batch) -> tuple[int, torch.device]:
    """Rows and device of a batch."""
    tensor = next(iter(batch.values()))
    return len(tensor), tensor.device


def probe_batch(recipe: Recipe, schema: pa.Schema, rows: int, device: torch.device) -> Batch | None:
    """A pass of made-up rows, all different, or None where ``schema`` is not enough to make up rows.

    Args:
        schema: one field a role, as :meth:`~sisa_ray.learning.recipe.Recipe.bind` gets it. Numbers and
            fixed-size lists and binaries can be made up; texts and encoded images cannot.
    """
    table = made_up_rows(schema, rows)
    if table is None:
        return None
    try:
        return padded_batch(recipe, table, rows, device)
    except Exception:  # whatever the user's decode makes of rows that are not its data
        return None


def made_up_rows(schema: pa.Schema, rows: int) -> pa.Table | None:
    """Rows for :func:`probe_batch`, as role columns without labels."""
    arrays = {}
    for field in schema:
        if field.name != _LABEL:
            array = _made_up(field.type, rows)
            if array is None:
                return None
            arrays[field.name] = array
    return pa.table(arrays)


def _made_up(kind: pa.DataType, rows: int) -> pa.Array | None:
    if pa.types.is_fixed_size_binary(kind):
        width = kind.byte_width
        pixels = (np.arange(rows * width) * 37 % 256).astype(np.uint8)
        return pa.FixedSizeBinaryArray.from_buffers(kind, rows, [None, pa.py_buffer(pixels.tobytes())])
    sizes = []
    while pa.types.is_fixed_size_list(kind):
        sizes.append(kind.list_size)
        kind = kind.value_type
    count = rows * prod(sizes)
    if pa.types.is_floating(kind):
        array = pa.array(np.sin(np.arange(count)).astype(kind.to_pandas_dtype()), kind)
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        # Small ones: integers may be the indices of an embedding.
        array = pa.array((np.arange(count) // 3 % 2).astype(kind.to_pandas_dtype()), kind)
    else:
        return None
    for size in reversed(sizes):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array
