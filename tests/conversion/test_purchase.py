from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sisa_ray.conversion.purchase import CHUNK, purchase_arrays, write_purchase
from sisa_ray.core.errors import ConfigError


def test_the_same_seed_gives_these_bytes_on_every_machine() -> None:
    features, labels = purchase_arrays("train", 500)
    digest = hashlib.sha256(features.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    assert digest[:16] == "2c3b03fcd82f2eb1"


def test_tables_are_what_arrays_are_and_a_smaller_one_is_a_beginning(tmp_path: Path) -> None:
    size = CHUNK + 50
    result = write_purchase(str(tmp_path / "p"), num_train=size, num_test=60, seed=3)
    assert (result.num_train, result.num_test, result.seed) == (size, 60, 3)
    for split, rows in (("train", size), ("test", 60)):
        features, labels = purchase_arrays(split, rows, seed=3)  # type: ignore[arg-type]
        table = pq.read_table(tmp_path / "p" / f"{split}.parquet")
        assert table.schema.types == [pa.string(), pa.binary(600), pa.int64()]
        assert table["features"].to_pylist() == [row.tobytes() for row in features]
        assert table["label"].to_pylist() == labels.tolist()
        assert table["id"][rows - 1].as_py() == f"{split}-{rows - 1:06d}"
    shorter, _ = purchase_arrays("train", CHUNK - 7, seed=3)
    assert np.array_equal(shorter, purchase_arrays("train", size, seed=3)[0][: CHUNK - 7])


def test_shoppers_are_binary_balanced_and_never_the_same_twice() -> None:
    train, labels = purchase_arrays("train", 2000)
    test, _ = purchase_arrays("test", 2000)
    other, _ = purchase_arrays("train", 2000, seed=1)
    assert np.unique(train).tolist() == [0, 1]
    assert 0.45 < labels.mean() < 0.55
    assert 0.05 < train.mean() < 0.5
    assert len(np.unique(np.concatenate([train, test, other]), axis=0)) == 6000


def test_what_is_out_of_range_is_refused(tmp_path: Path) -> None:
    faults: list[tuple[dict[str, Any], str]] = [
        ({"num_train": 0}, "--train: must be a whole number from 1 to"),
        ({"num_test": -1}, "--test: must be a whole number from 1 to"),
        ({"seed": -1}, "--seed: must be a whole number from 0 to"),
    ]
    for options, message in faults:
        with pytest.raises(ConfigError, match=message):
            write_purchase(str(tmp_path / "p"), **options)
    assert not list(tmp_path.iterdir())
