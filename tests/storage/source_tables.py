"""Source tables on disk for the tests of ingest, and ingest the slow, obvious way: the oracle."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sisa_ray.core.config import DataConfig
from sisa_ray.core.keys import canonical_key, tags
from sisa_ray.core.partition import Layout, place
from sisa_ray.storage.ingest import IngestJob
from sisa_ray.storage.objects import open_store
from sisa_ray.storage.source import open_source
from sisa_ray.storage.tables import content_digest

KEY = b"k" * 32
Place = tuple[int, int]


def people(num_rows: int = 60, *, records_per_person: int = 3) -> pa.Table:
    """Records of some people: integer ids, names, features in three columns and in one, a label."""
    rng = np.random.default_rng(num_rows)
    return pa.table(
        {
            "id": pa.array(rng.permutation(num_rows) + 1000),
            "person": pa.array([f"p{i // records_per_person}" for i in range(num_rows)]),
            "a": pa.array(rng.random(num_rows)),
            "b": pa.array(rng.random(num_rows), pa.float32()),
            "c": pa.array(rng.integers(0, 9, num_rows), pa.int16()),
            "x": pa.FixedSizeListArray.from_arrays(pa.array(rng.random(num_rows * 2), pa.float32()), 2),
            "word": pa.array(rng.choice(["red", "green", "blue"], num_rows)).dictionary_encode(),
            "label": pa.array(rng.integers(0, 3, num_rows)),
        }
    )


def data_config(url: str | Path, *, subject: str = "person", **columns: Any) -> DataConfig:
    """Columns of :func:`people`."""
    return DataConfig(
        train=str(url),
        record_id="id",
        subject_id=subject,
        columns=columns or {"features": ("a", "b", "c"), "x": "x", "word": "word", "label": "label"},
    )


def write_parts(directory: Path, table: pa.Table, *, num_files: int = 1, row_group_size: int = 7) -> Path:
    """A table as files of a new directory."""
    directory.mkdir(parents=True, exist_ok=True)
    bounds = np.linspace(0, table.num_rows, num_files + 1).astype(int)
    for number, (low, high) in enumerate(pairwise(bounds)):
        pq.write_table(
            table.slice(low, high - low), directory / f"part-{number}.parquet", row_group_size=row_group_size
        )
    return directory


def make_job(data: DataConfig, directory: Path, **changes: Any) -> IngestJob:
    """A job of 3 shards × 2 slices."""
    directory.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "source": open_source(data),
        "store": open_store(str(directory)),
        "attempt": "attempt",
        "layout": Layout(num_shards=3, num_slices=2, seed=5),
        "order_buckets": 1,
        "content_key": KEY,
        "tag": partial(tags, KEY),
    }
    return IngestJob(**{**settings, **changes})


def expected_slices(
    table: pa.Table, layout: Layout, *, erased: frozenset[str] = frozenset()
) -> dict[Place, pa.Table]:
    """What every slice of a table with the columns of :func:`people` must hold, one record at a time."""
    rows: dict[Place, list[Mapping[str, Any]]] = {
        (k, r): [] for k in range(layout.num_shards) for r in range(1, layout.num_slices + 1)
    }
    for row in table.to_pylist():
        if row["person"] not in erased:
            shards, slices = place([canonical_key(row["person"])], layout)
            rows[int(shards[0]), int(slices[0])].append(row)
    schema = pa.schema(
        {
            "record_id": pa.string(),
            "subject_id": pa.string(),
            "features": pa.list_(pa.float64(), 3),
            "label": pa.int64(),
            "word": pa.string(),
            "x": pa.list_(pa.float32(), 2),
        }
    )
    return {
        where: pa.Table.from_pylist(
            [
                {
                    "record_id": str(row["id"]),
                    "subject_id": row["person"],
                    "features": [row["a"], row["b"], row["c"]],
                    "label": row["label"],
                    "word": row["word"],
                    "x": row["x"],
                }
                for row in found
            ],
            schema=schema,
        )
        for where, found in rows.items()
    }


def digests(slices: Mapping[Place, pa.Table]) -> dict[Place, tuple[str, int, int]]:
    """Content digest, records and subjects of each slice."""
    return {
        where: (content_digest(table, KEY), table.num_rows, len(set(table["subject_id"].to_pylist())))
        for where, table in slices.items()
    }
