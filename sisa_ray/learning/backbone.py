"""Frozen backbones: what they make of a slice's rows is computed once, in passes of one fixed shape.

Every pass has exactly the recipe's ``embed_batch_size`` rows, the last one padded. So what a backbone makes of a
slice is a function of the slice, the backbone and the shape (design, clause 7), and can be computed again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from sisa_ray.core.config import ArithmeticConfig
from sisa_ray.core.errors import IntegrityError, RecipeError, RunConflict, SelfCheckError
from sisa_ray.core.identity import BackboneIdentity, differences
from sisa_ray.core.keys import UInt64Array, derive_seed, file_digest
from sisa_ray.core.order import record_hashes
from sisa_ray.learning import codec
from sisa_ray.learning.arithmetic import applied, autocast_dtype, resolved_device, seeder
from sisa_ray.learning.code import installed_versions
from sisa_ray.learning.loader import SliceSource, decode_table, joined
from sisa_ray.learning.passes import padded
from sisa_ray.learning.recipe import Batch, Recipe, RecipeFactory, new_recipe, overrides

_SEED = derive_seed("backbone")


class Backbone:
    """A recipe's backbone on its device, in evaluation mode and without gradients."""

    def __init__(self, recipe: Recipe, module: nn.Module, arithmetic: ArithmeticConfig) -> None:
        """Use :meth:`build`."""
        self._recipe = recipe
        self._arithmetic = arithmetic
        self._device = resolved_device(arithmetic)
        self.identity = _identity(recipe, module)
        placed = module.to(self._device).to(memory_format=recipe.memory_format)  # type: ignore[call-overload]
        self._module = placed.eval().requires_grad_(requires_grad=False)

    @classmethod
    def build(cls, factory: RecipeFactory, arithmetic: ArithmeticConfig) -> Backbone | None:
        """The backbone of a recipe, None where it has none. It seeds the generators.

        Raises:
            RecipeError: where the recipe gives no module, or its weights are not there.
        """
        recipe, module = _built(factory, resolved_device(arithmetic))
        return None if module is None else cls(recipe, module, arithmetic)

    def require(self, expected: BackboneIdentity | None) -> None:
        """See to it that this is the backbone that a run was made with.

        Raises:
            RunConflict: where it is another one; what differs is named.
        """
        if expected is None or self.identity != expected:
            there = {} if expected is None else expected.model_dump()
            lines = differences(there, self.identity.model_dump())
            raise RunConflict(
                f"recipe {type(self._recipe).__name__}: its backbone here is not the run's:\n"
                + "\n".join(f"  {line}" for line in lines)
                + "\nInstall the versions and weights that the run was made with, or start a run with another name."
            )

    @property
    def rows_per_pass(self) -> int:
        """Rows of each forward pass."""
        return self._recipe.embed_batch_size

    def embed_table(self, table: pa.Table) -> Batch:
        """What the backbone makes of each row of ``table`` (role columns), on the CPU.

        The caller has the arithmetic applied.

        Raises:
            RecipeError: where ``embed`` gives anything but tensors with one row each for the table's rows.
        """
        rows = self.rows_per_pass
        pieces = [table.slice(first, rows) for first in range(0, table.num_rows, rows)]
        return joined([self.embed(decode_table(self._recipe, piece)) for piece in pieces]) if pieces else {}

    def embed(self, batch: Batch) -> Batch:
        """What the backbone makes of decoded rows, one or more; on the CPU, as :meth:`embed_table`."""
        count, rows = len(next(iter(batch.values()))), self.rows_per_pass
        parts = []
        for first in range(0, count, rows):
            piece = {name: tensor[first : first + rows] for name, tensor in batch.items()}
            answer = self._pass(padded(piece, rows, self._device))
            num_rows = min(rows, count - first)
            parts.append({name: tensor[:num_rows].to("cpu", copy=True) for name, tensor in answer.items()})
        return joined(parts)

    def _pass(self, batch: Batch) -> Batch:
        dtype = autocast_dtype(self._arithmetic.precision)
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None),
        ):
            answer = self._recipe.embed(self._module, batch)
        name = f"recipe {type(self._recipe).__name__}.embed"
        if not isinstance(answer, dict) or not answer:
            raise RecipeError(f"{name}: must return a dict of tensors, not {type(answer).__name__}")
        for key, tensor in answer.items():
            is_right = isinstance(tensor, torch.Tensor) and tensor.dim() > 0
            if not is_right or len(tensor) != self.rows_per_pass:
                got = (
                    f"shape {list(tensor.shape)}"
                    if isinstance(tensor, torch.Tensor)
                    else type(tensor).__name__
                )
                raise RecipeError(
                    f"{name}: {key!r} must be a tensor of {self.rows_per_pass} rows, as many as it was given, "
                    f"not {got}"
                )
        return answer


class EmbeddedSlice:
    """What a backbone made of one slice: rows sorted by (order bucket, record id), as the slice's own.

    Args:
        bucket_rows: rows of each order bucket.
        read: the bytes of one bucket that is not empty, as :func:`encode_bucket` wrote them.
    """

    def __init__(self, bucket_rows: Sequence[int], read: Callable[[int], bytes]) -> None:
        self._bucket_rows = tuple(bucket_rows)
        self._read = read

    @property
    def num_buckets(self) -> int:
        """Number of order buckets."""
        return len(self._bucket_rows)

    def bucket_num_rows(self, bucket: int) -> int:
        """Rows of one order bucket."""
        return self._bucket_rows[bucket]

    def read_tensors(self, bucket: int) -> tuple[UInt64Array, Batch]:
        """Order hashes and tensors of a bucket that is not empty.

        Raises:
            IntegrityError: where the object does not hold so many rows.
        """
        content = codec.decode(self._read(bucket))
        hashes = content["hashes"].numpy().view(np.uint64)
        batch = cast(Batch, content["rows"])
        if {len(hashes), *map(len, batch.values())} != {self._bucket_rows[bucket]}:
            raise IntegrityError(
                f"cached features: a bucket has not the {self._bucket_rows[bucket]} rows of its slice"
            )
        return hashes, batch


def encode_bucket(backbone: Backbone, table: pa.Table, *, seed: int) -> bytes:
    """Order hashes and features of one bucket (``record_id`` and role columns) as safetensors."""
    hashes = record_hashes(table.column("record_id").to_pylist(), seed=seed)
    return codec.encode(
        {"hashes": torch.from_numpy(np.array(hashes).view(np.int64)), "rows": backbone.embed_table(table)}
    )


def check_backbone(
    factory: RecipeFactory,
    backbone: Backbone,
    arithmetic: ArithmeticConfig,
    slices: Iterator[tuple[SliceSource, EmbeddedSlice]],
) -> None:
    """Compare a few rows' cached features with those of this process, and with those of other companions.

    Raises:
        SelfCheckError: where they differ, or where ``embed`` draws random numbers.
    """
    name = f"recipe {type(new_recipe(factory)).__name__}.embed"
    for source, embedded in slices:
        for bucket in range(source.num_buckets):
            if source.bucket_num_rows(bucket):
                with applied(arithmetic):
                    _check_rows(name, backbone, source.read_bucket(bucket), embedded.read_tensors(bucket)[1])
                return


def _check_rows(name: str, backbone: Backbone, table: pa.Table, cached: Batch) -> None:
    first = table.slice(0, backbone.rows_per_pass)
    before = random.getstate(), torch.get_rng_state().tolist()
    again = backbone.embed_table(first)
    if (random.getstate(), torch.get_rng_state().tolist()) != before:
        raise SelfCheckError(f"{name}: draws random numbers; it must not: move them to augment")
    for key, tensor in cached.items():
        if not _same_bits(again[key], tensor[: first.num_rows]):
            raise SelfCheckError(
                f"{name}: {key!r} is another one in a fresh process; features must follow from the row, the "
                "backbone's parameters and constants alone"
            )
    alone = backbone.embed_table(first.slice(0, 1))
    for key, tensor in cached.items():
        if not _same_bits(alone[key], tensor[:1]):
            raise SelfCheckError(
                f"{name}: {key!r} of a row depends on the rows beside it; a backbone works on each row on its own "
                "(evaluation mode, no statistics of a batch)"
            )


def backbone_identity(factory: RecipeFactory) -> BackboneIdentity | None:
    """What keys hash of a recipe's backbone; None where it has none.

    Raises:
        RecipeError: as :meth:`Backbone.build`.
    """
    recipe, module = _built(factory, torch.device("cpu"))
    return None if module is None else _identity(recipe, module)


def _built(factory: RecipeFactory, device: torch.device) -> tuple[Recipe, nn.Module | None]:
    """A recipe and its backbone, on the CPU, built under one fixed seed for every device."""
    recipe = new_recipe(factory)
    if not overrides(recipe, "build_backbone"):
        return recipe, None
    seeder(device)(_SEED)
    module = recipe.build_backbone()
    if module is not None and not isinstance(module, nn.Module):
        raise RecipeError(
            f"recipe {type(recipe).__name__}.build_backbone: must return a torch.nn.Module or None, "
            f"not {type(module).__name__}"
        )
    return recipe, module


def _identity(recipe: Recipe, module: nn.Module) -> BackboneIdentity:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    versions = installed_versions({type(part).__module__ for part in module.modules()})
    return BackboneIdentity(
        weights=file_digest(codec.encode({"tensors": tensors})),
        batch_size=recipe.embed_batch_size,
        distributions=dict(sorted(versions.items())),
    )


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    same_form = a.dtype == b.dtype and a.shape == b.shape
    return same_form and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
