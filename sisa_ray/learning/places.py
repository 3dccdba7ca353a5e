"""Whether rows of several askers may share a forward pass (design, clause 7)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
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
    asker's rows begin one of their own. It is an experiment, on one machine: up to eight probes (some of the
    given rows, and the same with their values moved) at all places and in all slots, then mixed in every rotation
    of a few passes. It takes about 25 forwards.

    Args:
        stack: with at least one constituent.
        batch: one or more decoded rows on the stack's device, preferably several unlike ones
            (:func:`~sisa_ray.learning.passes.probe_batch`); padding does no harm.

    Returns:
        False also where nothing could be seen, since all probes get the same answer.

    Raises:
        Exception: whatever the recipe raises for the given rows.
    """
    given = _unlike(batch, _MAX_PROBES // 2)
    answers = _repeated(stack, given, rows)
    moved = _moved(given)
    # The model may refuse values in places that are not theirs: the index of another column's table, say.
    with suppress(Exception):
        answers += _repeated(stack, moved, rows)
        given = {name: torch.cat([tensor, moved[name]]) for name, tensor in given.items()}
    num_probes = len(answers)
    said = np.stack([answer[:, 0] for answer in answers], axis=1)
    if len({said[:, probe].tobytes() for probe in range(num_probes)}) < 2:
        return False
    alone = [torch.full((rows,), probe) for probe in range(num_probes)]
    mixtures = ((order, _asked(stack, given, order)) for order in _mixtures(num_probes, rows))
    passes = chain(zip(alone, answers, strict=True), mixtures)
    return all(_same_bits(answer, said[:, order.numpy()]) for order, answer in passes)


def _unlike(batch: Batch, most: int) -> Batch:
    """The first rows that differ from all before them."""
    seen: dict[bytes, int] = {}
    held = [tensor.cpu().contiguous() for tensor in batch.values()]
    for row in range(pass_shape(batch)[0]):
        # Through bytes, since numpy knows no bfloat16.
        key = b"".join(tensor[row : row + 1].view(torch.uint8).numpy().tobytes() for tensor in held)
        seen.setdefault(key, row)
    return _taken(batch, torch.tensor(list(seen.values())[:most]))


def _moved(batch: Batch) -> Batch:
    """The same rows with their values moved: other numbers of the same kind."""
    return {
        name: tensor.flatten(1).roll(1, dims=1).reshape(tensor.shape) if _is_movable(tensor) else tensor
        for name, tensor in batch.items()
    }


def _is_movable(tensor: torch.Tensor) -> bool:
    # An index out of range is an exception on the CPU, and the end of the whole process's CUDA context.
    return tensor.dim() > 1 and (tensor.is_floating_point() or tensor.device.type == "cpu")


def _repeated(stack: StackedModel, probes: Batch, rows: int) -> list[Floats]:
    """For each probe, the answer to a pass of nothing else."""
    return [_asked(stack, probes, torch.full((rows,), probe)) for probe in range(pass_shape(probes)[0])]


def _asked(stack: StackedModel, probes: Batch, order: torch.Tensor) -> Floats:
    return stack.forward(_taken(probes, order))


def _mixtures(num_probes: int, rows: int) -> Iterator[torch.Tensor]:
    """Which probe stands where: in turn, in blocks, and one alone among others."""
    places = torch.arange(rows)
    for shift in range(num_probes):
        yield (places + shift) % num_probes
        yield (places * num_probes // rows + shift) % num_probes
    yield (places == rows - 1).long()
    yield (places != rows - 1).long()


def _taken(batch: Batch, index: torch.Tensor) -> Batch:
    return {name: tensor.index_select(0, index.to(tensor.device)) for name, tensor in batch.items()}


def _same_bits(a: Floats, b: Floats) -> bool:
    return np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
