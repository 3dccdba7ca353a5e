"""The workers that train one shard together, and what they say to each other (contract, clauses 4, 7 and 9).

Worker r of W takes the rows r·B/W to (r+1)·B/W of each batch of B rows, and draws under seeds of its own. The
gradient is the mean over workers: they exchange fixed, flat buffers, and each sums what it was sent in the order
of ranks. No sum is left to a collective, all of them only move bytes, so that neither the algorithm that gloo or
NCCL chooses nor the point at which a stage is resumed shows in a bit. For the same reason torch's
``DistributedDataParallel`` is not used: it regroups its buffers after the first step.

Two ways: ``ddp`` has the whole model on every worker; ``fsdp`` shares out parameters, gradients and the
optimizer's state (``torch.distributed.fsdp.fully_shard``), each by its first dimension.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Generator, Iterable
from contextlib import closing
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from sisa_ray.core.config import Parallel
from sisa_ray.core.errors import RecipeError
from sisa_ray.learning.recipe import Batch, Recipe

_ALIGNMENT_BYTES = 16


class Team:
    """This worker among those of its shard, over torch's default process group.

    Messages between workers (:meth:`gather`, :meth:`agree`) travel in CPU tensors: with GPUs the process group
    has gloo beside NCCL (``cpu:gloo,cuda:nccl``).
    """

    def __init__(self, parallel: Parallel) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.shares_out = parallel == "fsdp"
        self._flag = torch.zeros(1, dtype=torch.uint8)

    @property
    def part(self) -> tuple[int, int]:
        """Which part of a checkpoint is this worker's, and of how many."""
        return (self.rank, self.size) if self.shares_out else (0, 1)

    def rows(self, batches: Generator[Batch]) -> Generator[Batch]:
        """This worker's rows of every batch, in buffers of their own."""
        with closing(batches):
            for batch in batches:
                num_rows = len(next(iter(batch.values()))) // self.size
                first = self.rank * num_rows
                yield {name: tensor[first : first + num_rows].clone() for name, tensor in batch.items()}

    def agree(self, wanted: bool) -> bool:
        """What worker 0 wants."""
        self._flag.fill_(wanted)
        dist.broadcast(self._flag, src=0)
        return bool(self._flag.item())

    def gather(self, message: Any) -> list[Any]:
        """What every worker says, in the order of ranks: plain JSON data. Nobody gets further before all have."""
        text = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(text)]))
        longest = max(int(length) for length in lengths)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(text)] = text
        texts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(texts, padded)
        pairs = zip(texts, lengths, strict=True)
        return [json.loads(bytes(said[: int(length)].tolist())) for said, length in pairs]

    def share_out(self, recipe: Recipe, model: nn.Module, device: torch.device) -> None:
        """Leave this worker, on ``device``, its rows of every parameter of ``model``.

        They are moved unit by unit (``Recipe.fsdp_units``): the device holds no more than one that is whole.

        Raises:
            RecipeError: where a parameter cannot be shared out.
        """
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        name = f"recipe {type(recipe).__name__}"
        if recipe.memory_format != torch.contiguous_format:
            raise RecipeError(
                f"{name}.memory_format: is {recipe.memory_format}, but fsdp shares out contiguous parameters alone; "
                "remove it, or set arithmetic.parallel to ddp"
            )
        mesh = DeviceMesh(device.type, list(range(self.size)))
        try:
            for unit in [*recipe.fsdp_units(model), model]:
                fully_shard(unit, mesh=mesh)
        except ValueError as error:
            raise RecipeError(
                f"{name}: its model cannot be shared out: {error}; or set arithmetic.parallel to ddp"
            ) from None
        for unit in model.modules():
            if isinstance(unit, FSDPModule):
                # A sum, then divided by the number of workers, as ddp has it.
                unit.set_force_sum_reduction_for_comms(True)
                unit.set_custom_reduce_scatter(_OrderedReduceScatter())  # type: ignore[arg-type]


class Gradients:
    """The gradients of parameters that every worker has whole: made the mean over workers.

    Those that are shared out get theirs in the backward pass.
    """

    def __init__(self, team: Team, parameters: Iterable[nn.Parameter]) -> None:
        grouped: defaultdict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            if parameter.requires_grad and not hasattr(parameter, "placements"):
                grouped[parameter.dtype, parameter.device].append(parameter)
        self._buffers = [_FlatBuffer(team.size, ps, *kind) for kind, ps in grouped.items()]

    def reduce(self) -> None:
        """After the backward pass; a parameter that no worker has a gradient of stays without."""
        for buffer in self._buffers:
            buffer.reduce()


class _FlatBuffer:
    """Gradients of one type in one buffer, in the order of the model's parameters, and which of them there are."""

    def __init__(
        self, size: int, parameters: list[nn.Parameter], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._parameters = parameters
        self._size = size
        count = sum(p.numel() for p in parameters)
        length = -(-(count + len(parameters)) // size) * size
        self._flat = torch.zeros(length, dtype=dtype, device=device)
        self._views = [
            piece.view(p.shape)
            for p, piece in zip(
                parameters, self._flat[:count].split([p.numel() for p in parameters]), strict=True
            )
        ]
        self._present = self._flat[count : count + len(parameters)]

    def reduce(self) -> None:
        grads = [p.grad for p in self._parameters]
        if any(g is not None and g.layout != torch.strided for g in grads):
            raise RecipeError("a gradient is sparse, which workers cannot sum; use dense ones (sparse=False)")
        self._present.fill_(1)
        missing = [i for i, grad in enumerate(grads) if grad is None]
        for i in missing:
            self._views[i].zero_()
            self._present[i] = 0
        pairs = [(view, grad) for view, grad in zip(self._views, grads, strict=True) if grad is not None]
        with torch.no_grad():
            torch._foreach_copy_([view for view, _ in pairs], [grad for _, grad in pairs])
            mean = _sum_in_order(self._flat, self._size).div_(self._size)
            dist.all_gather(list(_as_bytes(self._flat).chunk(self._size)), _as_bytes(mean))
            torch._foreach_copy_([grad for _, grad in pairs], [view for view, _ in pairs])
            # Only who lacks one looks: whoever has a gradient knows that there is one.
            for i in missing:
                if self._present[i]:
                    parameter = self._parameters[i]
                    parameter.grad = torch.empty_like(parameter).copy_(self._views[i])


class Buffers:
    """A model's buffers, which are worker 0's on every worker (as ``DistributedDataParallel`` has it).

    So batch norm normalises by the rows of each worker, and its running statistics are over those of worker 0.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = list(model.buffers())
        sizes = [-(-b.nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES for b in self._buffers]
        device = self._buffers[0].device if self._buffers else None
        self._flat = torch.zeros(sum(sizes), dtype=torch.uint8, device=device)
        self._views = [
            piece[: b.nbytes].view(b.dtype).view(b.shape)
            for b, piece in zip(self._buffers, self._flat.split(sizes), strict=True)
        ]

    def sync(self) -> None:
        """After the backward pass: before it, autograd may still need them."""
        if not self._buffers:
            return
        with torch.no_grad():
            for view, buffer in zip(self._views, self._buffers, strict=True):
                view.copy_(buffer)
            dist.broadcast(self._flat, src=0)
            for view, buffer in zip(self._views, self._buffers, strict=True):
                buffer.copy_(view)


class _OrderedReduceScatter:
    """What ``fully_shard`` sums gradients with: torch.distributed.fsdp's ``ReduceScatter``, in the order of ranks."""

    def allocate(self, size: Iterable[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: object,
        async_op: bool = False,
    ) -> None:
        assert not async_op, "fully_shard waits for its reduce-scatter"
        output_tensor.copy_(_sum_in_order(input_tensor, group.size(), group))


def _sum_in_order(flat: torch.Tensor, size: int, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """This worker's piece, ``1/size`` of ``flat``, summed over workers in the order of ranks."""
    received = torch.empty_like(flat)
    dist.all_to_all_single(_as_bytes(received), _as_bytes(flat), group=group)
    first, *others = received.view(size, -1).unbind()
    total = first.clone()
    for other in others:
        total += other
    return total


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Bytes, so that every type can be sent by every backend."""
    return tensor.view(torch.uint8)
