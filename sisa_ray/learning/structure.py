"""The form that stacked constituents share: how they are asked, together or one after the other.

It knows the recipe and the shapes of its models, and holds no number of any constituent.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from sisa_ray.core.config import ArithmeticConfig
from sisa_ray.core.errors import RecipeError
from sisa_ray.learning.arithmetic import model_seed, resolved_device, seeder
from sisa_ray.learning.backbone import Backbone
from sisa_ray.learning.passes import predict_pass
from sisa_ray.learning.recipe import Batch, Recipe, RecipeFactory, new_recipe
from sisa_ray.learning.trainer import load_constituent

Layout = Literal["stacked", "looped"]
Tensors = dict[str, torch.Tensor]
"""Parameters and buffers by name: of one model, or of all along a new first dimension."""

_Form = tuple[tuple[str, torch.Size, torch.dtype], ...]
_Forward = Callable[..., torch.Tensor]

_PROBES = 2
"""Models that the layout is tried on: enough that one can be mistaken for another."""

_RTOL, _ATOL = 1e-4, 1e-5
_LOW_RTOL, _LOW_ATOL = 2e-2, 1e-2
"""How close the stacked answer must be to the plain one: in fp32, and in the 8 to 11 bits of bf16 and fp16."""


_SETTLING_RUNS = 3

_ALIGNMENT_BYTES = 64
"""Of a slot's tensors: what PyTorch gives a tensor of its own."""


class Structure:
    """What stacks of one form share: recipe, a model without weights, layout, forwards. No constituent's numbers."""

    def __init__(self, factory: RecipeFactory, arithmetic: ArithmeticConfig) -> None:
        self._factory, self._arithmetic = factory, arithmetic
        self.device = resolved_device(arithmetic)
        self.recipe = new_recipe(factory)
        self.backbone = Backbone.build(factory, arithmetic)
        self.layout: Layout | None = None
        self._model = self._initialised(0)
        self._call = _Call(self.recipe, self._model, arithmetic)
        self._names = tuple(registered(self._model))
        self._changes_itself = False
        self._forwards: dict[_Form, _Forward] = {}
        self._deciding = threading.Lock()

    def load(self, state: bytes) -> nn.Module:
        """The constituent of a checkpoint; its registered tensors are of the known names and shapes."""
        model = load_constituent(self._factory, state, self.device)[1].requires_grad_(requires_grad=False)
        found, known = registered(model), registered(self._model)
        if {n: t.shape for n, t in found.items()} != {n: t.shape for n, t in known.items()}:
            raise RecipeError(
                f"recipe {type(self.recipe).__name__}.build_model: gives models of different shapes"
            )
        return model

    def zeros(self, num_slots: int) -> Tensors:
        """Room for so many constituents. Made outside inference mode: slots are filled in place."""
        with torch.inference_mode(mode=False):
            return {name: _room(num_slots, like) for name, like in registered(self._model).items()}

    def decide(self, batch: Batch) -> None:
        """Settle the layout: stacked where that gives on made-up models what they give by themselves."""
        with self._deciding, torch.inference_mode():
            if self.layout is not None:
                return
            models = [self._perturbed(seed) for seed in range(_PROBES)]
            kept = [copy.deepcopy(registered(model)) for model in models]
            plain = [predict_pass(self.recipe, model, batch, self._arithmetic) for model in models]
            self._changes_itself = any(
                not torch.equal(tensor, before[name])
                for model, before in zip(models, kept, strict=True)
                for name, tensor in registered(model).items()
            )
            self.layout = "stacked" if self._stackable(kept, plain, batch) else "looped"

    def _stackable(self, held: list[Tensors], plain: list[torch.Tensor], batch: Batch) -> bool:
        extra = self._model.state_dict().keys() - _all_names(self._model)
        if self._changes_itself or extra:
            return False
        tensors = {name: torch.stack([one[name] for one in held]) for name in self._names}
        low = self._arithmetic.precision != "fp32"
        try:
            answers = self._vmapped(*tensors.values(), batch)
            # Asked twice: a forward that remembers gives another answer.
            again = self._vmapped(*tensors.values(), batch)
            return torch.equal(answers, again) and torch.allclose(
                answers.float(),
                torch.stack(plain).float(),
                rtol=_LOW_RTOL if low else _RTOL,
                atol=_LOW_ATOL if low else _ATOL,
                equal_nan=True,
            )
        except Exception:  # whatever vmap, or the user's code under it, raises
            return False

    def looped(self, models: Sequence[nn.Module | None], batch: Batch) -> torch.Tensor:
        """One pass of each model; zeros for those that are not there."""
        said = {
            slot: self._plain(slot, model, batch) for slot, model in enumerate(models) if model is not None
        }
        like = next(iter(said.values())) if said else self._plain(0, self._model, batch)
        return torch.stack([said.get(slot, torch.zeros_like(like)) for slot in range(len(models))])

    def _plain(self, slot: int, model: nn.Module, batch: Batch) -> torch.Tensor:
        # What a prediction draws depends on its slot alone.
        seeder(self.device)(model_seed(seed=0, shard=slot))
        # A model whose buffers a forward changes answers each time as if it had just been loaded.
        used = copy.deepcopy(model) if self._changes_itself else model
        return predict_pass(self.recipe, used, batch, self._arithmetic)

    def stacked(self, tensors: Tensors, batch: Batch) -> torch.Tensor:
        """One batched pass: the first of its form untraced, the others traced where the bits are the same."""
        inputs = [*tensors.values(), *batch.values()]
        form = tuple((name, tensor.shape, tensor.dtype) for name, tensor in batch.items())
        if forward := self._forwards.get(form):
            return forward(*inputs)
        untraced = self._untraced(tuple(batch))
        answers = untraced(*inputs)
        self._forwards[form] = _traced(untraced, inputs, answers) or untraced
        return answers

    def _untraced(self, names: tuple[str, ...]) -> _Forward:
        count = len(self._names)

        def forward(*inputs: torch.Tensor) -> torch.Tensor:
            return self._vmapped(*inputs[:count], dict(zip(names, inputs[count:], strict=True)))

        return forward

    def _vmapped(self, *inputs: object) -> torch.Tensor:
        dims = (*[0] * len(self._names), None)
        answers: torch.Tensor = torch.vmap(self._one, in_dims=dims)(*inputs)
        return answers

    def _one(self, *inputs: object) -> torch.Tensor:
        named = {f"model.{name}": tensor for name, tensor in zip(self._names, inputs, strict=False)}
        answer: torch.Tensor = functional_call(self._call, named, (inputs[-1],))  # type: ignore[arg-type]
        return answer

    def _initialised(self, number: int) -> nn.Module:
        seeder(self.device)(model_seed(seed=0, shard=number))
        model = self.recipe.build_model()
        placed: nn.Module = model.to(self.device).to(memory_format=self.recipe.memory_format)  # type: ignore[call-overload]
        return placed.eval().requires_grad_(requires_grad=False)

    def _perturbed(self, number: int) -> nn.Module:
        """A fresh model with nothing left at zero, where a mistake could hide."""
        model = self._initialised(number)
        for tensor in registered(model).values():
            if tensor.is_floating_point():
                noise = torch.arange(tensor.numel(), device=tensor.device).reshape(tensor.shape)
                tensor.add_((0.02 * (1 + torch.sin(noise + 1.0 + number))).to(tensor.dtype))
        return model


class _Call(nn.Module):
    """The recipe's prediction as a module, so that it can be called with other parameters."""

    def __init__(self, recipe: Recipe, model: nn.Module, arithmetic: ArithmeticConfig) -> None:
        super().__init__()
        self._recipe, self._arithmetic = recipe, arithmetic
        self.model = model

    def forward(self, batch: Batch) -> torch.Tensor:
        return predict_pass(self._recipe, self.model, batch, self._arithmetic)


def registered(model: nn.Module) -> Tensors:
    """Parameters and buffers, those that no checkpoint holds included, each once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _all_names(model: nn.Module) -> set[str]:
    """Names of parameters and buffers; what is tied has several."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {name for name, _ in (*parameters, *model.named_buffers(remove_duplicate=False))}


def _room(num_slots: int, like: torch.Tensor) -> torch.Tensor:
    """Zeros whose slots all begin at a multiple of the alignment: kernels choose their way by it.

    With slots packed closely, matrix products of odd widths make the bits of a slot depend on its number.
    """
    numel, step = like.numel(), _ALIGNMENT_BYTES // like.element_size()
    flat = torch.zeros((num_slots, -(-numel // step) * step), dtype=like.dtype, device=like.device)
    return flat[:, :numel].unflatten(1, like.shape) if like.dim() else flat[:, 0]


def fill(tensors: Tensors, slot: int, model: nn.Module | None) -> None:
    """Write a constituent over whatever the slot held; zeros for none."""
    with torch.no_grad():
        if model is None:
            for tensor in tensors.values():
                tensor[slot].zero_()
        else:
            for name, value in registered(model).items():
                tensors[name][slot].copy_(value)


def _traced(forward: _Forward, inputs: list[torch.Tensor], expected: torch.Tensor) -> _Forward | None:
    """``forward`` as a plain list of operators for inputs of this form, without vmap's work in Python.

    Traced on tensors without contents: a number taken from a constituent or a row cannot become a constant
    of the list, which outlives them. None where that fails, or where it answers with other bits.
    """
    try:
        graph = make_fx(forward, tracing_mode="fake")(*inputs)
        answers = graph(*inputs)
    except Exception:  # whatever the tracer, or the user's code under it, raises
        return None
    if not _same_bits(answers, expected):
        return None
    for node in graph.graph.nodes:
        node.meta.clear()
    listed: _Forward = graph.forward
    return _scripted(listed, inputs, expected) or listed


def _scripted(listed: _Forward, inputs: list[torch.Tensor], expected: torch.Tensor) -> _Forward | None:
    """A list of operators as one call that leaves the interpreter once: a third less time for a short pass.

    It is shown zeros, so that it holds on to nobody's numbers. None where that fails (TorchScript is leaving
    PyTorch), or where one of its first runs, in which it settles how it works, answers with other bits.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            blank = tuple(torch.zeros_like(tensor) for tensor in inputs)
            scripted: _Forward = torch.jit.trace(listed, blank, check_trace=False)
            is_same = all(_same_bits(scripted(*inputs), expected) for _ in range(_SETTLING_RUNS))
    except Exception:  # whatever the tracer raises
        return None
    return scripted if is_same else None


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal to the bit; not-a-numbers count."""
    same_form = a.dtype == b.dtype and a.shape == b.shape
    return same_form and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
