"""Shrink and perturb: how a stage may start from the checkpoint before it.

Warm starts can hurt generalisation. Ash & Adams, "On Warm-Starting Neural Network Training" (NeurIPS 2020), shrink the
weights and perturb them each time that data is added. The perturbation here is a freshly initialised model, whose
layers each have the scale that suits them.
"""

from __future__ import annotations

import torch
from torch import nn

from sisa_ray.core.config import WarmStartConfig


@torch.no_grad()
def shrink_and_perturb(model: nn.Module, fresh: nn.Module, config: WarmStartConfig) -> None:
    """Every trained parameter becomes ``shrink`` times itself and ``perturb`` times the fresh one.

    Frozen parameters and buffers (running statistics of batch norm) stay as they are.
    """
    for parameter, other in zip(model.parameters(), fresh.parameters(), strict=True):
        if parameter.requires_grad:
            parameter.mul_(float(config.shrink)).add_(other, alpha=float(config.perturb))
