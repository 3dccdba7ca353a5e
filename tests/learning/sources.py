"""Slices in memory, and whole trainings over them, for the tests."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from sisa_ray.core.config import ArithmeticConfig, Precision, WarmStartConfig
from sisa_ray.core.order import buckets_of, record_hashes
from sisa_ray.learning.loader import Loader, ResidentLoader, StreamingLoader
from sisa_ray.learning.recipe import RecipeFactory, RecipeSpec
from sisa_ray.learning.team import Team
from sisa_ray.learning.trainer import Partial, StageTask, train_stage

WIDTH = 6
SEED = 11
CPU = torch.device("cpu")
SCHEMA = pa.schema([("features", pa.list_(pa.float32(), WIDTH)), ("label", pa.int32())])
RECIPES = str(Path(__file__).with_name("recipes.py"))


def arithmetic(**fields: Any) -> ArithmeticConfig:
    return ArithmeticConfig(**{"device": "cpu", **fields})


def recipe(name: str, **args: Any) -> RecipeFactory:
    return RecipeSpec(class_path=f"{RECIPES}:{name}", args=args).factory(SCHEMA)


@dataclass(frozen=True)
class MemorySlice:
    """Rows sorted by (order bucket, record id), as a slice file has them."""

    table: pa.Table
    num_buckets: int

    @property
    def _buckets(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return buckets_of(
            record_hashes(self.table.column("record_id").to_pylist(), seed=SEED), self.num_buckets
        )

    def bucket_num_rows(self, bucket: int) -> int:
        return int((self._buckets == bucket).sum()) if self.table.num_rows else 0

    def read_bucket(self, bucket: int) -> pa.Table:
        assert self.bucket_num_rows(bucket), "an empty bucket was read"
        return self.table.take(pa.array(np.flatnonzero(self._buckets == bucket)))


def make_slices(sizes: Sequence[int], num_buckets: int = 1) -> list[MemorySlice]:
    """Slices of these sizes whose rows depend on nothing but their ids."""
    slices = []
    first = 0
    for size in sizes:
        ids = sorted(str(i) for i in range(first, first + size))
        first += size
        numbers = np.array([[int(i) * 7 + j * 3 for j in range(WIDTH)] for i in ids], dtype=np.float64)
        features = np.sin(numbers.reshape(-1)).astype(np.float32)
        table = pa.table(
            {
                "record_id": pa.array(ids, pa.string()),
                "features": pa.FixedSizeListArray.from_arrays(pa.array(features), WIDTH),
                "label": pa.array([int(i) % 3 for i in ids], pa.int32()),
            }
        )
        slices.append(MemorySlice(table, num_buckets))
    return slices


def load(
    slices: Sequence[MemorySlice],
    make: RecipeFactory,
    kind: Literal["resident", "streaming"] = "resident",
    device: torch.device = CPU,
) -> Loader:
    loader = ResidentLoader if kind == "resident" else StreamingLoader
    return loader(slices, recipe=make, seed=SEED, device=device)


def train(
    make: RecipeFactory,
    data: Loader,
    *,
    stage: int = 1,
    num_steps: int = 9,
    start: bytes | None = None,
    resume: Partial | None = None,
    on_partial: Callable[[int, bytes], None] | None = None,
    settings: ArithmeticConfig | None = None,
    seed: int = SEED,
    shard: int = 0,
    team: Team | None = None,
    warm_start: WarmStartConfig | None = None,
) -> bytes:
    """One stage; with ``on_partial`` a mid-stage state after every step."""
    return train_stage(
        recipe=make,
        data=data,
        arithmetic=settings or arithmetic(),
        task=StageTask(
            seed=seed, shard=shard, stage=stage, num_stages=3, num_steps=num_steps, warm_start=warm_start
        ),
        start=start,
        resume=resume,
        on_partial=on_partial,
        partial_every_s=0.0,
        team=team,
    ).state


def train_fresh(
    name: str,
    *,
    sizes: Sequence[int],
    num_buckets: int = 1,
    kind: Literal["resident", "streaming"] = "resident",
    stage: int = 1,
    num_steps: int = 9,
    start: bytes | None = None,
    resume: Partial | None = None,
    precision: Precision = "fp32",
    warm_start: WarmStartConfig | None = None,
) -> bytes:
    """:func:`train` from picklable arguments, for another process."""
    make = recipe(name)
    data = load(make_slices(sizes, num_buckets), make, kind)
    settings = arithmetic(precision=precision)
    return train(
        make,
        data,
        stage=stage,
        num_steps=num_steps,
        start=start,
        resume=resume,
        settings=settings,
        warm_start=warm_start,
    )


@contextmanager
def fresh_process() -> Iterator[Executor]:
    """An executor whose one process is a new interpreter."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool
