from __future__ import annotations

import os
import random
import threading
from typing import Any

import numpy as np
import pytest
import torch

from sisa_ray.core.errors import ConfigError
from sisa_ray.learning import arithmetic as arithmetic_module
from sisa_ray.learning.arithmetic import (
    applied,
    autocast_dtype,
    model_seed,
    platform_fingerprint,
    resolved_device,
    seeder,
    step_seeds,
)
from tests.learning.sources import CPU, arithmetic


def settings() -> dict[str, Any]:
    cudnn: Any = torch.backends.cudnn
    onednn: Any = torch.backends.mkldnn
    return {
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        "benchmark": cudnn.benchmark,
        "cudnn": cudnn.deterministic,
        "bf16": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "fp16": torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        "fp32": (
            torch.backends.cuda.matmul.fp32_precision,
            cudnn.conv.fp32_precision,
            cudnn.rnn.fp32_precision,
            onednn.matmul.fp32_precision,
            onednn.conv.fp32_precision,
        ),
    }


PINNED = {
    "threads": 2,
    "dtype": torch.float32,
    "deterministic": True,
    "warn_only": False,
    "fill": False,
    "benchmark": False,
    "cudnn": True,
    "bf16": False,
    "fp16": False,
    "fp32": ("ieee",) * 5,
}


def test_settings_are_pinned_and_given_back() -> None:
    untouched = settings()
    onednn: Any = torch.backends.mkldnn
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = True
    torch.set_default_dtype(torch.float64)
    onednn.matmul.fp32_precision = "bf16"
    before = settings()
    try:
        assert before != {**PINNED, "threads": 1}
        with applied(arithmetic(threads=2)) as device:
            assert device == CPU
            assert settings() == PINNED
        assert settings() == before
        with pytest.raises(KeyError), applied(arithmetic(threads=2)):
            raise KeyError
        assert settings() == before
    finally:
        torch.set_num_threads(untouched["threads"])
        torch.use_deterministic_algorithms(untouched["deterministic"])
        torch.backends.cudnn.benchmark = untouched["benchmark"]
        torch.set_default_dtype(untouched["dtype"])
        onednn.matmul.fp32_precision = untouched["fp32"][3]
    assert settings() == untouched


def test_an_operation_without_a_deterministic_kernel_is_an_error() -> None:
    with applied(arithmetic()):
        source = torch.ones(4)
        with pytest.raises(RuntimeError, match="deterministic"):
            torch.zeros(4).put_(torch.zeros(4, dtype=torch.int64), source, accumulate=False)


def test_threads_take_turns() -> None:
    entered = threading.Event()

    def other() -> None:
        with applied(arithmetic()):
            entered.set()

    with applied(arithmetic()), applied(arithmetic(threads=2)):  # the same thread may nest
        thread = threading.Thread(target=other)
        thread.start()
        assert not entered.wait(0.1)
    thread.join()
    assert entered.is_set()


def draws() -> tuple[float, ...]:
    numpy_draws = (np.random.random(), np.random.normal())
    return (torch.rand(()).item(), torch.randn(()).item(), *numpy_draws, random.random(), random.gauss(0, 1))


def test_seeding_reaches_every_generator_and_forgets_all_before() -> None:
    seed = seeder(CPU)
    seed(2**62 + 5)
    first = draws()
    draws()
    seed(2**62 + 5)
    assert draws() == first
    seed(2**62 + 6)
    assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_seeding_torch_is_what_manual_seed_does() -> None:
    seeder(CPU)(1234)
    drawn = torch.rand(3)
    torch.manual_seed(1234)
    assert torch.rand(3).equal(drawn)


def test_step_seeds_are_distinct_and_do_not_depend_on_the_piece() -> None:
    whole = step_seeds(seed=1, shard=2, stage=3, first=0, last=5000)
    assert len(set(whole)) == 5000
    assert all(0 <= s < 2**63 for s in whole)
    assert step_seeds(seed=1, shard=2, stage=3, first=70, last=75) == whole[70:75]
    for changed in ({"seed": 2}, {"shard": 1}, {"stage": 2}):
        other = step_seeds(**{"seed": 1, "shard": 2, "stage": 3, "first": 0, "last": 5000, **changed})
        assert not set(other) & set(whole)


def test_the_model_s_seed_is_the_shard_s() -> None:
    assert model_seed(seed=1, shard=2) == model_seed(seed=1, shard=2)
    assert len({model_seed(seed=s, shard=k) for s in range(3) for k in range(3)}) == 9


def test_the_platform_is_named_and_the_same_every_time() -> None:
    found = platform_fingerprint(arithmetic())
    assert found["torch"] == torch.__version__
    assert found["device"] == "cpu"
    assert found["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert all(isinstance(value, str) for value in found.values())
    found.clear()
    assert platform_fingerprint(arithmetic()) == platform_fingerprint(arithmetic(predict_batch_size=7)) != {}


def test_the_platform_s_probe_sees_other_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    before = platform_fingerprint(arithmetic())
    assert platform_fingerprint(arithmetic(precision="bf16"))["probe"] != before["probe"]
    tanh = torch.tanh
    monkeypatch.setattr(torch, "tanh", lambda x: tanh(x) * (1 + 2**-23))
    assert platform_fingerprint(arithmetic(threads=3))["probe"] != before["probe"]


def test_the_probe_does_not_depend_on_generators() -> None:
    torch.manual_seed(1)
    one = arithmetic_module._probe(CPU, "fp32")  # noqa: SLF001 - the public function computes it only once
    torch.manual_seed(2)
    assert arithmetic_module._probe(CPU, "fp32") == one  # noqa: SLF001


def test_precisions() -> None:
    assert [autocast_dtype(p) for p in ("fp32", "bf16", "fp16")] == [None, torch.bfloat16, torch.float16]


def test_auto_must_be_resolved_before() -> None:
    with pytest.raises(ConfigError, match=r"arithmetic.device: is auto; it must be resolved"):
        resolved_device(arithmetic(device="auto"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ConfigError, match="this process sees no GPU; give it one"):
        resolved_device(arithmetic(device="cuda"))


@pytest.mark.parametrize("initialized", [False, True])
def test_another_cublas_workspace_is_replaced_or_refused(
    initialized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialized)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    if initialized:
        with pytest.raises(
            ConfigError, match="CUBLAS_WORKSPACE_CONFIG: is ':16:8', and CUDA is in use already"
        ):
            resolved_device(arithmetic(device="cuda"))
    else:
        assert resolved_device(arithmetic(device="cuda")) == torch.device("cuda", 3)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.gpu
def test_seeding_reaches_the_gpu() -> None:
    device = torch.device("cuda", 0)
    seed = seeder(device)
    seed(5)
    first = torch.rand(3, device=device)
    torch.rand(3, device=device)
    seed(5)
    assert torch.rand(3, device=device).equal(first)


@pytest.mark.gpu
def test_the_platform_names_the_gpu() -> None:
    found = platform_fingerprint(arithmetic(device="cuda"))
    assert found["device"] == torch.cuda.get_device_name(0)
    assert {"cuda", "cudnn", "probe"} < found.keys()
