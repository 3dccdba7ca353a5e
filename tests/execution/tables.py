"""Small runs for the tests: a seeded table, its configuration, and recipes that exercise the contract."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sisa_ray.core.config import SisaConfig

NUM_FEATURES = 8
NUM_CLASSES = 3


def make_table(num_rows: int, *, seed: int = 0, records_per_subject: int = 1) -> pa.Table:
    """Three overlapping clusters; ids ``r0``.., subjects ``p0``.. with so many records each."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, NUM_CLASSES, num_rows)
    centres = np.random.default_rng(99).normal(size=(NUM_CLASSES, NUM_FEATURES))
    features = (centres[labels] + rng.normal(scale=0.7, size=(num_rows, NUM_FEATURES))).astype(np.float32)
    return pa.table(
        {
            "id": pa.array([f"r{i}" for i in range(num_rows)]),
            "person": pa.array([f"p{i // records_per_subject}" for i in range(num_rows)]),
            "x": pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), NUM_FEATURES),
            "y": pa.array(labels, pa.int64()),
        }
    )


MLP_DROPOUT_ADAM: dict[str, Any] = {
    "class": "sisa_ray.recipes.MLPClassifier",
    "args": {"hidden": [16], "num_classes": NUM_CLASSES, "lr": 0.01, "batch_size": 8, "dropout": 0.2},
}


def make_config(
    directory: Path, table: pa.Table | None = None, *, recipe: Mapping[str, Any] | None = None, **changes: Any
) -> SisaConfig:
    """Write ``table`` (default: 120 rows) and configure a run on it: 3 shards × 3 slices."""
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(make_table(120) if table is None else table, directory / "train.parquet")
    pq.write_table(make_table(60, seed=1), directory / "test.parquet")
    base: dict[str, Any] = {
        "name": "run",
        "storage_path": str(directory / "storage"),
        "data": {
            "train": str(directory / "train.parquet"),
            "test": str(directory / "test.parquet"),
            "record_id": "id",
            "subject_id": "person",
            "columns": {"features": "x", "label": "y"},
        },
        "recipe": dict(recipe or MLP_DROPOUT_ADAM),
        "sisa": {"num_shards": 3, "num_slices": 3, "epochs": 4, "seed": 5},
        "arithmetic": {"device": "cpu"},
    }
    for key, value in changes.items():
        base[key] = (
            {**base[key], **value} if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        )
    return SisaConfig.from_mapping(base)
