"""Whether rows of several askers may share a forward pass (design, clause 7)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np
import torch

from sisa_ray.learning.ensemble import Floats
from sisa_ray.learning.passes import pass_shape
from sisa_ray.learning.recipe import Batch
from sisa_ray.learning.stacked import StackedModel

_MAX_PROBES = 8


def is_place_independent(stack: StackedModel, batch: Batch, rows: int) -> bool:
    """Whether an answer's bits depend neither on the row's place in its pass of ``rows`` nor on its neighbours.

    Vectorised kernels may round the last few elements of a tensor in their own way, and matrix products the
    rows that fill no tile. Only where this holds may the rows of several askers share a pass; elsewhere each
    asker's rows begin one of their own. It is an experiment, on one machine: up to eight probes (the given
    rows, and each of them with its values moved) at all places and in all slots, then mixed in every rotation
    of a few passes. It takes about 25 forwards.

    Args:
        stack: with at least one constituent.
        batch: one or more decoded rows on the stack's device; padding does no harm.
    """
    probes = _probes(batch)
    num_probes = pass_shape(probes)[0]
    device = stack.device
    alone = [torch.full((rows,), probe) for probe in range(num_probes)]
    repeated = [stack.forward(_taken(probes, order.to(device))) for order in alone]
    said = np.stack([answer[:, 0] for answer in repeated], axis=1)
    mixtures = (
        (order, stack.forward(_taken(probes, order.to(device)))) for order in _mixtures(num_probes, rows)
    )
    passes = chain(zip(alone, repeated, strict=True), mixtures)
    return all(_same_bits(answer, said[:, order.numpy()]) for order, answer in passes)


def _probes(batch: Batch) -> Batch:
    """A few of the rows, then the same with their values moved: other numbers of the same kind."""
    few = {name: tensor[: _MAX_PROBES // 2] for name, tensor in batch.items()}
    moved = {
        name: tensor.flatten(1).roll(1, dims=1).reshape(tensor.shape) if tensor.dim() > 1 else tensor
        for name, tensor in few.items()
    }
    return {name: torch.cat([tensor, moved[name]]) for name, tensor in few.items()}


def _mixtures(num_probes: int, rows: int) -> Iterator[torch.Tensor]:
    """Which probe stands where: in turn, in blocks, and one alone among others."""
    places = torch.arange(rows)
    for shift in range(num_probes):
        yield (places + shift) % num_probes
        yield (places * num_probes // rows + shift) % num_probes
    yield (places == rows - 1).long()
    yield (places != rows - 1).long()


def _taken(batch: Batch, index: torch.Tensor) -> Batch:
    return {name: tensor.index_select(0, index) for name, tensor in batch.items()}


def _same_bits(a: Floats, b: Floats) -> bool:
    return np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
