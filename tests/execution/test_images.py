"""A convolutional network with batch norm, augmentation and a learning-rate schedule forgets, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.errors import DataError
from sisa_ray.execution import commands
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.verify import verify
from tests.execution.tables import make_config
from tests.support.inline import InlineWorkers

SIDE = 6
CNN: dict[str, Any] = {
    "class": "sisa_ray.recipes.CNNClassifier",
    "args": {
        "num_classes": 3,
        "shape": [1, SIDE, SIDE],
        "channels": [4],
        "hidden": [8],
        "batch_norm": True,
        "dropout": 0.1,
        "shift": 1,
        "flip": True,
        "optimizer": "sgd",
        "momentum": 0.9,
        "lr": 0.05,
        "lr_schedule": "cosine",
        "batch_size": 8,
    },
}


def images(num_rows: int) -> pa.Table:
    rng = np.random.default_rng(3)
    pixels = [rng.integers(0, 256, SIDE * SIDE, dtype=np.uint8).tobytes() for _ in range(num_rows)]
    return pa.table(
        {
            "id": pa.array([f"r{i}" for i in range(num_rows)]),
            "person": pa.array([f"p{i}" for i in range(num_rows)]),
            "x": pa.array(pixels, pa.binary(SIDE * SIDE)),
            "y": pa.array(rng.integers(0, 3, num_rows), pa.int64()),
        }
    )


def configure(directory: Path, table: pa.Table, **changes: Any) -> SisaConfig:
    columns = {"features": "x", "label": "y"}
    data = {
        "train": str(directory / "train.parquet"),
        "record_id": "id",
        "subject_id": "person",
        "columns": columns,
    }
    made = make_config(directory, table, recipe=CNN, **changes)
    return SisaConfig.from_mapping(
        {**made.model_dump(mode="json", by_alias=True, exclude={"data"}), "data": data}
    )


def bits(config: SisaConfig) -> dict[tuple[int, int], str]:
    return {place: ref.file_digest for place, ref in existing_run(config).state.stages.items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_forgets_in_any_order_what_it_never_would_have_known(tmp_path: Path, precision: str) -> None:
    table = images(70)
    gone = ["p3", "p17", "p42", "p69"]
    arithmetic = {"precision": precision}
    one, other = (configure(tmp_path / name, table, arithmetic=arithmetic) for name in ("one", "other"))
    left = table.filter(pc.invert(pc.is_in(table["person"], pa.array(gone))))
    oracle = configure(tmp_path / "oracle", left, arithmetic=arithmetic)
    for config in (one, other, oracle):
        commands.train(config, new_workers=InlineWorkers)
    assert bits(one) == bits(other) != bits(oracle)
    commands.unlearn(one, gone, new_workers=InlineWorkers)
    for batch in (gone[2:], gone[:1], gone[1:2]):
        commands.unlearn(other, batch, new_workers=InlineWorkers)
    assert bits(one) == bits(other) == bits(oracle)
    assert verify(one, new_workers=InlineWorkers).outcome == "bit-identical"


def test_an_image_that_cannot_be_decoded_is_named_by_its_row_and_nothing_is_kept(tmp_path: Path) -> None:
    table = images(5)
    broken = table.set_column(2, "x", pa.array([b"no image"] * 5, pa.binary()))
    config = configure(tmp_path, broken)
    with pytest.raises(DataError, match=r"features is no image that can be decoded: rows 0, 1, 2, 3, 4"):
        commands.ingest(config, new_workers=InlineWorkers)
    assert not [p for p in Path(config.address).rglob("*") if p.is_file()]
