"""Low-rank adapters (LoRA: Hu et al. 2021, arXiv 2106.09685) on frozen layers, in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sisa_ray.core.errors import RecipeError
from sisa_ray.recipes.efficientnet import NUM_BLOCKS, NUM_FEATURES, Tail, Trunk
from sisa_ray.recipes.transfer import PretrainedImageClassifier


class LowRank(nn.Module):
    """A frozen linear layer or 1 × 1 convolution, plus a trained product of two thin ones that begins at zero.

    Args:
        layer: the frozen one.
        rank: width between the two.
        scale: factor of the product.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, *, rank: int, scale: float) -> None:
        super().__init__()
        self.frozen = layer
        self.scale = scale
        self.down: nn.Module
        self.up: nn.Module
        if isinstance(layer, nn.Linear):
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        else:
            self.down = nn.Conv2d(layer.in_channels, rank, 1, bias=False)
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the frozen layer."""
        answer: torch.Tensor = self.frozen(x) + self.scale * self.up(self.down(x))
        return answer


def freeze(module: nn.Module) -> nn.Module:
    """Make every tensor of ``module`` a buffer that no checkpoint holds and no optimizer sees."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach(), persistent=False)
        for name, buffer in list(part.named_buffers(recurse=False)):
            part.register_buffer(name, buffer, persistent=False)
    return module


def adapt(module: nn.Module, *, rank: int, scale: float) -> nn.Module:
    """Put an adapter on every linear layer and 1 × 1 convolution (of one group) below ``module``."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear) or (
            isinstance(child, nn.Conv2d) and child.kernel_size == (1, 1) and child.groups == 1
        ):
            setattr(module, name, LowRank(child, rank=rank, scale=scale))
        else:
            adapt(child, rank=rank, scale=scale)
    return module


class LoRAClassifier(PretrainedImageClassifier):
    """EfficientNet-Lite0 (ImageNet weights, extra ``transfer``), its last blocks with low-rank adapters, and a head.

    What lies below the adapters is computed once and cached; checkpoints hold adapters and head alone.

    Args:
        blocks: the last so many of the 16 blocks, and the last layer, are adapted.
        rank: of the adapters.
        alpha: their products are multiplied by ``alpha / rank``.
        dropout: before the head.
        size, embed_batch_size, images: see :class:`~sisa_ray.recipes.transfer.PretrainedImageClassifier`.
    """

    def __init__(
        self,
        *,
        blocks: int = 2,
        rank: int = 8,
        alpha: float = 8.0,
        dropout: float = 0.2,
        size: int = 96,
        embed_batch_size: int = 16,
        **images: Any,
    ) -> None:
        super().__init__(size=size, embed_batch_size=embed_batch_size, **images)
        if not 0 <= blocks < NUM_BLOCKS:
            raise RecipeError(f"recipe.args.blocks: must be in 0..{NUM_BLOCKS - 1}, not {blocks}")
        if rank < 1:
            raise RecipeError(f"recipe.args.rank: must be at least 1, not {rank}")
        if not alpha > 0:
            raise RecipeError(f"recipe.args.alpha: must be positive, not {alpha}")
        if not 0 <= dropout < 1:
            raise RecipeError(f"recipe.args.dropout: must be in [0, 1), not {dropout}")
        self._first = NUM_BLOCKS - blocks
        self._rank = rank
        self._scale = alpha / rank
        self._dropout = dropout

    def build_backbone(self) -> nn.Module:
        """The network below the adapters."""
        return Trunk(self._size, num_blocks=self._first)

    def build_model(self) -> nn.Module:
        """Adapters on what is above it, and the head."""
        tail = adapt(freeze(Tail(self._size, first=self._first)), rank=self._rank, scale=self._scale)
        return _Adapted(tail, nn.Dropout(self._dropout), nn.Linear(NUM_FEATURES, self.num_classes))


class _Adapted(nn.Sequential):
    """A tail that stays in evaluation mode (its normalisations keep their public statistics), dropout, a head."""

    def train(self, mode: bool = True) -> _Adapted:
        """As torch's, but for the tail."""
        super().train(mode)
        self[0].eval()
        return self
