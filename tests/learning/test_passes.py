"""Rows made up from a schema."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import torch

from sisa_ray.learning.passes import probe_batch
from sisa_ray.learning.recipe import Batch, Recipe, new_recipe
from tests.learning.recipes import Plain
from tests.learning.sources import CPU, SCHEMA
from tests.learning.stages import of


def test_rows_can_be_made_up_from_a_schema() -> None:
    def arrays(kind: pa.DataType) -> Batch | None:
        return probe_batch(
            new_recipe(of(Echo)), pa.schema([("features", kind), ("label", pa.int32())]), 3, CPU
        )

    class Echo(Plain):
        def bind(self, schema: pa.Schema) -> None:
            pass

        def decode(self, columns: Mapping[str, pa.Array]) -> Batch:
            assert "label" not in columns
            return {"features": torch.tensor(columns["features"].is_valid().to_numpy(zero_copy_only=False))}

    kinds = [
        pa.float32(),
        pa.float16(),
        pa.int8(),
        pa.uint64(),
        pa.bool_(),
        pa.binary(7),
        pa.list_(pa.int8(), 3),
    ]
    for kind in [*kinds, pa.list_(pa.list_(pa.float64(), 2), 3)]:
        batch = arrays(kind)
        assert batch is not None
        assert batch["features"].tolist() == [True] * 3
    assert arrays(pa.string()) is None
    assert arrays(pa.binary()) is None


def test_recipes_that_do_not_know_made_up_rows() -> None:
    class Refuses(Plain):
        def decode(self, columns: Mapping[str, pa.Array]) -> Batch:
            raise ValueError

    made: Recipe = new_recipe(of(Refuses))
    assert probe_batch(made, SCHEMA, 2, CPU) is None
