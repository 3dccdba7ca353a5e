"""What fixes the bits beside the code: settings, seeds, and their platform (contract clauses 4, 7, 12)."""

from __future__ import annotations

import hashlib
import os
import platform
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from sisa_ray.core.config import ArithmeticConfig, Precision
from sisa_ray.core.errors import ConfigError
from sisa_ray.core.keys import UInt64Array, derive_seed, mix64

NUMERICS = 1
"""Version of sisa_ray's own arithmetic: part of every stage key.

Raise it with any change that alters a bit of a trained state; the golden digests in the tests notice.
"""

_CUBLAS_WORKSPACE = ":4096:8"
_EXCLUSIVE = threading.RLock()
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_dtype(precision: Precision) -> torch.dtype | None:
    """The type that autocast computes in, or None where there is no autocast."""
    return _AUTOCAST.get(precision)


def resolved_device(config: ArithmeticConfig) -> torch.device:
    """The device that ``config`` names, as this process sees it.

    Raises:
        ConfigError: where it is not there, or is still ``auto``.
    """
    if config.device == "auto":
        raise ConfigError(
            "arithmetic.device: is auto; it must be resolved to cpu or cuda when the run is created"
        )
    if config.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "arithmetic.device: is cuda, but this process sees no GPU; give it one "
            "(resources.gpus_per_shard) or make a run with device: cpu"
        )
    if (
        os.environ.get("CUBLAS_WORKSPACE_CONFIG", _CUBLAS_WORKSPACE) != _CUBLAS_WORKSPACE
        and torch.cuda.is_initialized()
    ):
        raise ConfigError(
            "CUBLAS_WORKSPACE_CONFIG: is "
            f"{os.environ['CUBLAS_WORKSPACE_CONFIG']!r}, and CUDA is in use already; unset it, or set it to "
            f"{_CUBLAS_WORKSPACE!r}, which this run's bits rest on"
        )
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = _CUBLAS_WORKSPACE
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def applied(config: ArithmeticConfig) -> Iterator[torch.device]:
    """Pin threads, kernels and precision and give the device; restored afterwards.

    These settings and the global generators are the whole process's, so other threads wait for their turn.
    ``CUBLAS_WORKSPACE_CONFIG`` is set for good, since cuBLAS reads it once.

    Raises:
        ConfigError: where the device is not there, or is still ``auto``.
    """
    device = resolved_device(config)
    with _EXCLUSIVE:
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in _PINNED]
        num_threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
        deterministic = torch.are_deterministic_algorithms_enabled()
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        torch.set_num_threads(config.threads)
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(True)
        for owner, name, value in _PINNED:
            setattr(owner, name, value)
        try:
            yield device
        finally:
            torch.set_num_threads(num_threads)
            torch.set_default_dtype(dtype)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            for owner, name, value in before:
                setattr(owner, name, value)


def seeder(device: torch.device) -> Callable[[int], None]:
    """A function that seeds the global generators: torch's (CPU, and the device's), numpy's and ``random``'s.

    It costs about 7 µs a call; ``torch.manual_seed`` alone would cost 150.
    """
    seed_torch = torch.default_generator.manual_seed
    seed_numpy, seed_random = np.random.seed, random.seed

    def seed_cpu(seed: int) -> None:
        seed_torch(seed)
        seed_numpy(seed & 0xFFFFFFFF)
        seed_random(seed)

    if device.type != "cuda":
        return seed_cpu
    seed_cuda = torch.cuda.default_generators[device.index].manual_seed

    def seed_all(seed: int) -> None:
        seed_cpu(seed)
        seed_cuda(seed)

    return seed_all


def model_seed(*, seed: int, shard: int) -> int:
    """Seeds the construction of a shard's model and optimizer: the same one for every stage."""
    return derive_seed(seed, "build", shard)


def perturbation_seed(*, seed: int, shard: int, stage: int) -> int:
    """Seeds the fresh model that perturbs the checkpoint which a stage starts from."""
    return derive_seed(seed, "perturb", shard, stage)


def step_seeds(
    *, seed: int, shard: int, stage: int, first: int, last: int, rank: int | None = None
) -> list[int]:
    """Seeds (63 bits) of the steps ``first..last-1`` of a stage; ``rank`` is for what one of several workers draws."""
    steps: UInt64Array = np.arange(first, last, dtype=np.uint64)
    own = () if rank is None else ("rank", rank)
    mixed: UInt64Array = mix64(derive_seed(seed, "step", shard, stage, *own), steps) >> np.uint64(1)
    return [int(s) for s in mixed.tolist()]


def platform_fingerprint(config: ArithmeticConfig) -> dict[str, str]:
    """The platform on which a stage's bits hold: states of unequal fingerprints are not comparable.

    Beside versions it has the digest of a small training step, computed under ``config``: libraries choose
    kernels by more than versions and capabilities tell.
    """
    return dict(_fingerprint(config.device, config.threads, config.precision))


@lru_cache(maxsize=8)
def _fingerprint(device: str, threads: int, precision: Precision) -> tuple[tuple[str, str], ...]:
    config = ArithmeticConfig.model_validate({"device": device, "threads": threads, "precision": precision})
    facts = {
        "torch": str(torch.__version__),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    with applied(config) as place:
        if place.type == "cuda":
            facts["device"] = torch.cuda.get_device_name(place)
            facts["cuda"] = str(torch.version.cuda)
            facts["cudnn"] = str(torch.backends.cudnn.version())
        else:
            facts["device"] = "cpu"
        facts["probe"] = _probe(place, precision)
    return tuple(sorted(facts.items()))


def _probe(device: torch.device, precision: Precision) -> str:
    """Digest of one training step through the kernels that models are made of, on fixed numbers."""

    def numbers(*shape: int) -> torch.Tensor:
        count = int(np.prod(shape))
        values = (torch.arange(count, dtype=torch.float32) * 0.6180339887).remainder(1.0) - 0.5
        return values.reshape(shape).to(device).requires_grad_()

    image, kernel, wide, narrow = (
        numbers(8, 3, 16, 16),
        numbers(16, 3, 3, 3),
        numbers(1024, 128),
        numbers(128, 10),
    )
    dtype = autocast_dtype(precision)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        hidden = F.max_pool2d(F.relu(F.conv2d(image, kernel, padding=1)), 2).flatten(1)
        logits = torch.tanh(hidden @ wide) @ narrow
        loss = F.cross_entropy(logits, torch.arange(8, device=device) % 10)
    loss.backward()
    digest = hashlib.sha256()
    for tensor in (logits.float(), image.grad, kernel.grad, wide.grad, narrow.grad):
        assert tensor is not None
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


# Some of their attributes are missing in torch's annotations.
_CUDNN: Any = torch.backends.cudnn
_ONEDNN: Any = torch.backends.mkldnn
_PINNED: tuple[tuple[Any, str, object], ...] = (
    (torch.utils.deterministic, "fill_uninitialized_memory", False),
    (torch.backends.cudnn, "benchmark", False),
    (torch.backends.cudnn, "deterministic", True),
    (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
    (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", False),
    # No TF32, no bf16 in place of fp32. The first resets the others, so it also comes first on the way back.
    (torch.backends, "fp32_precision", "ieee"),
    (torch.backends.cuda.matmul, "fp32_precision", "ieee"),
    (_CUDNN.conv, "fp32_precision", "ieee"),
    (_CUDNN.rnn, "fp32_precision", "ieee"),
    (_ONEDNN.matmul, "fp32_precision", "ieee"),
    (_ONEDNN.conv, "fp32_precision", "ieee"),
    (_ONEDNN.rnn, "fp32_precision", "ieee"),
)
"""Attributes and the values they are pinned to."""
