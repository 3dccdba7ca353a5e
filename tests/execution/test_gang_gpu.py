"""Gangs on GPUs, over NCCL: the same promises. Two GPUs are needed, since NCCL gives each worker its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch

from sisa_ray.core.config import SisaConfig
from sisa_ray.execution import commands
from sisa_ray.execution.verify import verify
from tests.execution.tables import make_config, make_table
from tests.execution.test_gang import PEOPLE, digests

pytestmark = [pytest.mark.slow, pytest.mark.gpu, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[None]:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"{torch.cuda.device_count()} CUDA device(s), two are needed")
    ray.init(
        address="local", num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    yield
    ray.shutdown()


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_forgetting_is_exact_on_gpus(tmp_path: Path, parallel: str, precision: str) -> None:
    def config(directory: Path) -> SisaConfig:
        return make_config(
            directory,
            make_table(60),
            sisa={"num_shards": 1, "num_slices": 2, "epochs": 2},
            arithmetic={"device": "cuda", "workers": 2, "parallel": parallel, "precision": precision},
        )

    first, again = config(tmp_path / "first"), config(tmp_path / "again")
    for each in (first, again):
        commands.train(each)
    assert digests(first) == digests(again)
    commands.unlearn(first, PEOPLE)
    assert verify(first).bit_identical
