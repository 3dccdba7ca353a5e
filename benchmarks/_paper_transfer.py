"""Transfer learning on and off: CIFAR-10 with a frozen ImageNet backbone, and with a CNN from scratch.

    python benchmarks/_paper_transfer.py [--shards 20 5] [--records 50000]

Everything goes through the product: ingest, train, the paper's baselines (one model on all records, one on 1/S of
them), unlearn a few people, verify a shard by training it again from scratch. It needs ``../shared/data`` (or
``SISA_DATA``) and the extra ``transfer``.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sisa_ray import SisaConfig, SisaTrainer
from sisa_ray.execution.baselines import BaselineKind, baseline
from sisa_ray.execution.opening import existing_run

PRESET = Path(__file__).parents[1] / "jobs" / "paper" / "cifar10-transfer.yaml"
"""What the figures are of; the benchmark changes where things are, and the number of shards."""

SCRATCH: dict[str, Any] = {
    "class": "sisa_ray.recipes.CNNClassifier",
    "args": {
        "num_classes": 10,
        "shape": [3, 32, 32],
        "channels": [32, 64],
        "hidden": [128],
        "dropout": 0.3,
        "flip": True,
        "shift": 2,
        "lr": 0.001,
        "lr_schedule": "cosine",
        "batch_size": 64,
    },
}
"""The other side: a small CNN that starts from random weights."""

SCRATCH_EPOCHS = 10
NUM_FORGOTTEN = 4
_BASELINES: tuple[tuple[BaselineKind, str], ...] = (("full", "single"), ("one_shard", "one_shard"))


def data_dir() -> Path:
    """Where the data sets lie."""
    return Path(os.environ.get("SISA_DATA", Path(__file__).parents[2] / "shared" / "data"))


def run(
    directory: Path,
    *,
    shards: tuple[int, ...] = (20, 5),
    num_records: int = 50_000,
    num_test: int = 10_000,
    transfer: tuple[bool, ...] = (True, False),
) -> dict[str, Any]:
    """Train, measure, forget and verify.

    Args:
        directory: for tables and runs.
        shards: numbers of constituents; the baselines are measured beside the first.
        num_records: of the training table's first rows (they are in random order).
        num_test: likewise of the test table.
        transfer: with the backbone, without it, or both.

    Returns:
        A list of rows under ``"runs"``: accuracies from 0 to 1, seconds of wall time, record-visits.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tables = {}
    for part, count in (("train", num_records), ("test", num_test)):
        tables[part] = directory / f"cifar10-{part}.parquet"
        pq.write_table(pq.read_table(data_dir() / f"cifar10-{part}.parquet").slice(0, count), tables[part])
    rows = [
        _measured(_configuration(directory, tables, num_shards, on), with_baselines=num_shards == shards[0])
        for on in transfer
        for num_shards in shards
    ]
    return {"num_records": num_records, "num_test": num_test, "runs": rows}


def _configuration(directory: Path, tables: dict[str, Path], num_shards: int, on: bool) -> SisaConfig:
    preset = SisaConfig.from_yaml(PRESET).model_dump(mode="json", by_alias=True)
    preset["name"] = f"{'transfer' if on else 'scratch'}-{num_shards}"
    preset["storage_path"] = str(directory / "runs")
    preset["data"] |= {part: str(path) for part, path in tables.items()}
    preset["sisa"]["num_shards"] = num_shards
    if not on:
        preset["recipe"] = SCRATCH
        preset["sisa"]["epochs"] = SCRATCH_EPOCHS
    return SisaConfig.from_mapping(preset)


def _measured(config: SisaConfig, *, with_baselines: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"name": config.name, "num_shards": config.sisa.num_shards}
    trainer = SisaTrainer(config)
    trained = trainer.fit().result
    row |= {
        "ensemble": trained.ensemble,
        "constituents": trained.constituents,
        "train_s": trained.seconds,
        "record_visits": trained.record_visits,
    }
    if with_baselines:
        for kind, name in _BASELINES:
            found = baseline(config, kind)
            row |= {name: found.value, f"{name}_s": found.seconds}
    ids = pq.read_table(config.data.train, columns=["id"])["id"].slice(0, NUM_FORGOTTEN).to_pylist()
    forgotten = trainer.unlearn(ids)
    row |= {
        "num_forgotten": forgotten.num_forgotten,
        "unlearn_s": forgotten.seconds,
        "unlearn_record_visits": forgotten.record_visits,
        "retrain_record_visits": forgotten.full_retrain_record_visits,
    }
    verified = trainer.verify(shards=forgotten.shards_rebuilt[:1])
    row |= {"verified": verified.outcome, "verify_s": verified.seconds}
    state = existing_run(config).state
    row["checkpoint_bytes"] = max(ref.size_bytes for ref in state.stages.values())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, nargs="+", default=[20, 5])
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--only", choices=["transfer", "scratch"])
    parser.add_argument("--directory", type=Path, help="keep tables and runs here (default: a temporary one)")
    options = parser.parse_args()
    transfer = (True, False) if options.only is None else (options.only == "transfer",)
    with tempfile.TemporaryDirectory() as temporary:
        found = run(
            options.directory or Path(temporary),
            shards=tuple(options.shards),
            num_records=options.records,
            num_test=options.test,
            transfer=transfer,
        )
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
