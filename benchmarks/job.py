"""The whole job: a table of 54,000 × 600 binary features, 5 shards × 10 slices, then 8 people forgotten.

    python benchmarks/job.py                 # on a Ray that is already up (started here, before the clock)
    python benchmarks/job.py --cold          # the clock includes starting Ray
    python benchmarks/job.py --release       # forgetting starts shard actors of its own

The clock runs from the call of ``fit`` (ingest included) to the published ensemble, and from the call of
``unlearn`` to the closed batch (rebuilt, published, purged, verified absent). Both calls are one program's, whose
shard actors stay in between, unless ``--release``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sisa_ray.core.config import SisaConfig
from sisa_ray.execution.cluster import ensure_ray
from sisa_ray.execution.trainer import SisaTrainer

NUM_ROWS, NUM_FEATURES, NUM_FORGOTTEN = 54_000, 600, 8


def write_table(path: Path, *, num_rows: int, seed: int) -> None:
    """Two noisy classes of binary vectors, like the paper's Purchase data."""
    rng = np.random.default_rng(seed)
    rates = np.random.default_rng(1).uniform(0.05, 0.35, size=(2, NUM_FEATURES))
    labels = rng.integers(0, 2, size=num_rows)
    features = (rng.random((num_rows, NUM_FEATURES)) < rates[labels]).astype(np.uint8)
    table = pa.table(
        {
            "id": pa.array([f"customer-{i:06d}" for i in range(num_rows)]),
            "bought": pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), NUM_FEATURES),
            "label": pa.array(labels, pa.int64()),
        }
    )
    pq.write_table(table, path)


def configuration(directory: Path) -> SisaConfig:
    """The run of the benchmark."""
    return SisaConfig.from_mapping(
        {
            "name": "job",
            "storage_path": str(directory / "runs"),
            "data": {
                "train": str(directory / "train.parquet"),
                "record_id": "id",
                "columns": {"features": "bought", "label": "label"},
            },
            "recipe": {
                "class": "sisa_ray.recipes.MLPClassifier",
                "args": {
                    "hidden": [128],
                    "activation": "tanh",
                    "num_classes": 2,
                    "optimizer": "sgd",
                    "lr": 0.05,
                    "batch_size": 16,
                },
            },
            "sisa": {"num_shards": 5, "num_slices": 10, "epochs": 10, "seed": 0},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cold", action="store_true", help="include the start of Ray in the time")
    parser.add_argument("--release", action="store_true", help="give the shard actors back before forgetting")
    parser.add_argument("--runs", type=int, default=1, help="repeat so many times, each in a new directory")
    options = parser.parse_args()
    if not options.cold:
        ensure_ray()
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            write_table(directory / "train.parquet", num_rows=NUM_ROWS, seed=0)
            config = configuration(directory)
            people = [
                f"customer-{i:06d}"
                for i in np.random.default_rng(7).choice(NUM_ROWS, NUM_FORGOTTEN, replace=False)
            ]
            trainer = SisaTrainer(config)
            with nullcontext() if options.release else trainer:
                started = time.perf_counter()
                trained = trainer.fit().result
                train_s = time.perf_counter() - started
                started = time.perf_counter()
                forgotten = trainer.unlearn(people)
                forget_s = time.perf_counter() - started
        figures = {
            "ray": "cold" if options.cold else "up",
            "shard_actors": "released" if options.release else "kept",
            "train_s": round(train_s, 2),
            "train_record_visits": trained.record_visits,
            "forget_s": round(forget_s, 2),
            "forget_record_visits": forgotten.record_visits,
            "full_retrain_record_visits": forgotten.full_retrain_record_visits,
        }
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
