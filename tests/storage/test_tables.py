from __future__ import annotations

import io
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sisa_ray.core.errors import IntegrityError
from sisa_ray.core.order import buckets_of, record_hashes
from sisa_ray.storage import tables
from sisa_ray.storage.columns import normalise
from sisa_ray.storage.tables import (
    SliceFile,
    content_digest,
    count_subject_rows,
    erase_subjects,
    gather,
    read_slice,
    role_columns,
    subjects,
    write_slice,
)
from tests.storage.arrow_tables import said, slice_tables, types, values

KEY = b"k" * 32


def small_table(num_rows: int = 300) -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "record_id": pa.array([f"r{i}" for i in range(num_rows)]),
            "subject_id": pa.array([f"p{i // 3}" for i in range(num_rows)]),
            "features": pa.FixedSizeListArray.from_arrays(pa.array(rng.random(num_rows * 8)), 8),
            "label": pa.array(rng.integers(0, 3, num_rows)),
        }
    )


@given(slice_tables(), slice_tables())
def test_contents_have_one_digest_if_and_only_if_they_say_the_same(one: pa.Table, other: pa.Table) -> None:
    assert (content_digest(one, KEY) == content_digest(other, KEY)) == (said(one) == said(other))


@given(st.data(), slice_tables(min_rows=1))
def test_any_changed_cell_changes_the_digest(data: st.DataObject, table: pa.Table) -> None:
    number = data.draw(st.integers(0, table.num_columns - 1))
    row = data.draw(st.integers(0, table.num_rows - 1))
    column = table.column(number)
    cell = data.draw(values(column.type, nulls=True))
    if column.type == pa.string() and number == 0:
        assume(cell is not None and cell not in column.to_pylist())
    cells = [c.as_py() if pa.types.is_nested(column.type) else c for c in column]
    changed_column = pa.concat_arrays(
        [
            *column.slice(0, row).combine_chunks().chunks_or_self(),
            pa.array([cell], column.type),
            *column.slice(row + 1).combine_chunks().chunks_or_self(),
        ]
        if hasattr(column, "chunks_or_self")
        else [c for part in (column.slice(0, row), column.slice(row + 1)) for c in part.chunks][:0]
        + [*column.slice(0, row).chunks, pa.array([cell], column.type), *column.slice(row + 1).chunks]
    )
    assert cells is not None
    changed = table.set_column(number, table.schema.field(number), changed_column)
    assert (content_digest(changed, KEY) != content_digest(table, KEY)) == (said(changed) != said(table))
