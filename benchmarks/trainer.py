"""The stage trainer against a bare PyTorch loop that makes the same steps, and the cost of checkpoints.

    python benchmarks/trainer.py

Both run in this process, in turn (A B A B …) on one thread; the ratio of each pair is taken, and the median
of the ratios counts, so that a machine whose speed drifts does not matter. The bare loop gathers its batches
from tensors in memory, in a random order that is drawn once an epoch, and does nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.nn import functional as F

from sisa_ray.core.config import ArithmeticConfig
from sisa_ray.core.schedule import stage_epochs, stage_steps
from sisa_ray.learning.arithmetic import applied
from sisa_ray.learning.loader import ResidentLoader
from sisa_ray.learning.recipe import RecipeSpec
from sisa_ray.learning.trainer import StageTask, train_stage
from sisa_ray.storage.objects import open_store

ARITHMETIC = ArithmeticConfig(device="cpu", threads=1)
BATCH_SIZE = 16


class InMemorySlice:
    """A slice as the loaders see it, from a table in memory."""

    num_buckets = 1

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def bucket_num_rows(self, bucket: int) -> int:
        return int(self._table.num_rows)

    def read_bucket(self, bucket: int) -> pa.Table:
        return self._table


def make_slices(num_slices: int, num_rows: int, width: int, *, num_classes: int) -> list[InMemorySlice]:
    """Random rows: their values do not matter here."""
    rng = np.random.default_rng(0)
    slices = []
    for number in range(num_slices):
        pixels = pa.array(rng.integers(0, 2, num_rows * width, dtype=np.uint8))
        slices.append(
            InMemorySlice(
                pa.table(
                    {
                        "record_id": pa.array([f"{number}-{i}" for i in range(num_rows)]),
                        "features": pa.FixedSizeListArray.from_arrays(pixels, width),
                        "label": pa.array(rng.integers(0, num_classes, num_rows)),
                    }
                )
            )
        )
    return slices


MLP: dict[str, Any] = {
    "class_path": "sisa_ray.recipes.MLPClassifier",
    "args": {
        "hidden": [128],
        "activation": "tanh",
        "num_classes": 2,
        "optimizer": "sgd",
        "lr": 0.05,
        "batch_size": BATCH_SIZE,
    },
}
CNN: dict[str, Any] = {
    "class_path": "sisa_ray.recipes.CNNClassifier",
    "args": {"shape": [1, 28, 28], "num_classes": 10, "batch_size": BATCH_SIZE},
}


def bare_loop(
    model: nn.Module, optimizer: torch.optim.Optimizer, slices: list[InMemorySlice], num_steps: int
) -> None:
    """What one would write by hand."""
    columns = pa.concat_tables([s.read_bucket(0) for s in slices])
    width = columns["features"].type.list_size
    features = torch.tensor(columns["features"].combine_chunks().flatten().to_numpy()).reshape(-1, width)
    labels = torch.tensor(columns["label"].to_numpy())
    is_image = any(isinstance(m, nn.Conv2d) for m in model.modules())
    if is_image:
        features = features.reshape(-1, 1, 28, 28)
    model.train()
    order = torch.randperm(len(labels))
    start = 0
    for _ in range(num_steps):
        if start + BATCH_SIZE > len(labels):
            order, start = torch.randperm(len(labels)), 0
        index = order[start : start + BATCH_SIZE]
        start += BATCH_SIZE
        batch = features[index].float()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch / 255 if is_image else batch), labels[index])
        loss.backward()
        optimizer.step()


def compare(
    recipe: dict[str, Any], *, width: int, num_classes: int, num_steps: int, pairs: int
) -> dict[str, float]:
    """Seconds of both loops, and the median ratio, over ``pairs`` pairs."""
    slices = make_slices(1, 4096, width, num_classes=num_classes)
    schema = slices[0].read_bucket(0).drop_columns(["record_id"]).schema
    factory = RecipeSpec(**recipe).factory(schema)
    loader = ResidentLoader(slices, recipe=factory, seed=0, device=torch.device("cpu"))
    task = StageTask(seed=0, shard=0, stage=1, num_stages=1, num_steps=num_steps)

    def ours() -> None:
        train_stage(recipe=factory, data=loader, arithmetic=ARITHMETIC, task=task, start=None)

    def bare() -> None:
        made = factory()
        with applied(ARITHMETIC):
            model = made.build_model()
            bare_loop(model, made.build_optimizer(model), slices, num_steps)

    ours()  # warm up
    bare()
    times = [(_seconds(ours), _seconds(bare)) for _ in range(pairs)]
    return {
        "ratio": round(statistics.median(a / b for a, b in times), 3),
        "ours_us_per_step": round(statistics.median(a for a, _ in times) / num_steps * 1e6, 1),
        "bare_us_per_step": round(statistics.median(b for _, b in times) / num_steps * 1e6, 1),
    }


def checkpointing(*, num_slices: int, num_rows: int, epochs: int, pairs: int) -> dict[str, float]:
    """A shard of ``num_slices`` stages, with every checkpoint written durably beside the training, and with none."""
    slices = make_slices(num_slices, num_rows // num_slices, 600, num_classes=2)
    schema = slices[0].read_bucket(0).drop_columns(["record_id"]).schema
    factory = RecipeSpec(**MLP).factory(schema)
    loader = ResidentLoader(slices, recipe=factory, seed=0, device=torch.device("cpu"))
    sizes = [num_rows // num_slices] * num_slices
    steps = stage_steps(sizes, stage_epochs("equal", num_slices, epochs), BATCH_SIZE)

    def train(write: Callable[[int, bytes], object]) -> None:
        state = None
        for stage, num_steps in enumerate(steps, start=1):
            task = StageTask(seed=0, shard=0, stage=stage, num_stages=num_slices, num_steps=num_steps)
            state = train_stage(
                recipe=factory, data=loader, arithmetic=ARITHMETIC, task=task, start=state
            ).state
            write(stage, state)

    def without() -> None:
        """The same steps as a single stage: no state is saved or loaded between."""
        task = StageTask(seed=0, shard=0, stage=num_slices, num_stages=num_slices, num_steps=sum(steps))
        train_stage(recipe=factory, data=loader, arithmetic=ARITHMETIC, task=task, start=None)

    def written() -> None:
        with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(1) as writer:
            store = open_store(directory)
            train(
                lambda stage, state: (
                    writer.submit(store.put, f"stage={stage}/state.safetensors", state) and None
                )
            )

    without()
    written()
    times = [(_seconds(written), _seconds(without)) for _ in range(pairs)]
    return {
        "ratio": round(statistics.median(a / b for a, b in times), 3),
        "with_checkpoints_s": round(statistics.median(a for a, _ in times), 2),
        "without_s": round(statistics.median(b for _, b in times), 2),
    }


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=7, help="pairs of runs (default: %(default)s)")
    options = parser.parse_args()
    mlp = compare(MLP, width=600, num_classes=2, num_steps=4000, pairs=options.pairs)
    print(json.dumps({"MLP 600-128-2, batch 16": mlp}))
    cnn = compare(CNN, width=784, num_classes=10, num_steps=300, pairs=options.pairs)
    print(json.dumps({"CNN 28x28, batch 16": cnn}))
    # A shard of the paper's Purchase task: 250,000 records in 20 shards.
    saved = checkpointing(num_slices=50, num_rows=12_500, epochs=20, pairs=max(3, options.pairs // 2))
    print(json.dumps({"checkpoints, R=50": saved}))


if __name__ == "__main__":
    main()
