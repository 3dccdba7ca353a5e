"""Models and optimizers, made anew and given a saved state (contract, clause 6)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sisa_ray.core.errors import RecipeError
from sisa_ray.learning.arithmetic import seeder
from sisa_ray.learning.codec import Rows
from sisa_ray.learning.recipe import Recipe
from sisa_ray.learning.team import Team


def build_model(
    recipe: Recipe, seed: int, saved: dict[str, Any] | None, device: torch.device, team: Team | None = None
) -> nn.Module:
    """A model initialised on the CPU under ``seed`` (for every device), then loaded, moved and laid out.

    Raises:
        RecipeError: where the recipe gives no module, one that ``saved`` does not fit, or one that cannot be
            shared out among a team that does so.
    """
    seeder(device)(seed)
    model = recipe.build_model()
    name = f"recipe {type(recipe).__name__}.build_model"
    if not isinstance(model, nn.Module):
        raise RecipeError(f"{name}: must return a torch.nn.Module, not {type(model).__name__}")
    if team is not None and team.shares_out:
        team.share_out(recipe, model, device)
    if saved is not None:
        _load_model(name, model, saved["model"])
    if team is not None and team.shares_out:
        return model
    return model.to(device).to(memory_format=recipe.memory_format)  # type: ignore[call-overload,no-any-return]


def _load_model(name: str, model: nn.Module, saved: dict[str, Any]) -> None:
    # Filled into a state dict of this very model, which carries the versions of its modules' formats.
    state = model.state_dict()
    if changed := sorted(state.keys() ^ saved.keys()):
        raise RecipeError(
            f"{name}: gave a model that the checkpoint does not fit: only one of them has {changed[0]!r}"
        )
    state.update({key: _given(value, state[key]) for key, value in saved.items()})
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise RecipeError(f"{name}: gave a model that the checkpoint does not fit: {error}") from None


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Restore the very tensors it had: torch's own loading casts them to the parameters' types."""
    fresh = optimizer.state_dict()["param_groups"]
    groups = [
        {**group, "params": new["params"]} for group, new in zip(saved["param_groups"], fresh, strict=True)
    ]
    optimizer.load_state_dict({**saved, "param_groups": groups})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, entries in saved["state"].items():
        parameter = parameters[index]
        current = optimizer.state[parameter]
        for name, value in entries.items():
            if isinstance(value, Rows):
                current[name] = _given(value, parameter)
            elif isinstance(value, torch.Tensor):
                current[name] = _laid_out_like(value, parameter, current[name].device)


def _given(value: Any, like: torch.Tensor) -> Any:
    """A saved value as it is; rows as a tensor that is shared out as ``like`` is."""
    if not isinstance(value, Rows):
        return value
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor), "what was shared out is shared out again"
    return DTensor.from_local(
        value.tensor.to(like.device, copy=True),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def _laid_out_like(value: torch.Tensor, parameter: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A fresh copy with the parameter's strides, as an optimizer would have made it beside the parameter."""
    if value.shape != parameter.shape or hasattr(parameter, "placements"):
        return value.to(device, copy=True)
    return torch.empty_like(parameter, dtype=value.dtype, device=device, requires_grad=False).copy_(value)
