from __future__ import annotations

import base64
import io
import json
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
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
from tests.storage.arrow_tables import SCALARS, said, slice_tables, types, values

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


def one_role(column: pa.Array) -> pa.Table:
    ids = pa.array([str(i) for i in range(len(column))], pa.string())
    return pa.table({"record_id": ids, "role": column})


@given(slice_tables(), slice_tables())
def test_tables_share_a_digest_if_and_only_if_they_say_the_same(one: pa.Table, other: pa.Table) -> None:
    assert (content_digest(one, KEY) == content_digest(other, KEY)) == (said(one) == said(other))


@given(st.data(), types())
def test_columns_share_a_digest_if_and_only_if_they_say_the_same(
    data: st.DataObject, kind: pa.DataType
) -> None:
    column = st.lists(values(kind, nulls=True), min_size=2, max_size=2)
    one, other = (one_role(pa.array(data.draw(column), kind)) for _ in range(2))
    assert (content_digest(one, KEY) == content_digest(other, KEY)) == (said(one) == said(other))


@given(st.data(), slice_tables(min_rows=1))
def test_any_changed_cell_changes_the_digest(data: st.DataObject, table: pa.Table) -> None:
    number = data.draw(st.integers(0, table.num_columns - 1))
    row = data.draw(st.integers(0, table.num_rows - 1))
    column = table.column(number)
    if table.schema.names[number] == "record_id":
        new: Any = "".join(table["record_id"].to_pylist()) + "!"  # unique
    else:
        new = data.draw(values(column.type, nulls=True))
    chunks = [*column.slice(0, row).chunks, pa.array([new], column.type), *column.slice(row + 1).chunks]
    changed = table.set_column(number, table.schema.field(number), pa.chunked_array(chunks, column.type))
    assert (content_digest(changed, KEY) == content_digest(table, KEY)) == (said(changed) == said(table))


@given(slice_tables(min_rows=1))
def test_a_removed_record_a_renamed_role_and_another_key_change_the_digest(table: pa.Table) -> None:
    digest = content_digest(table, KEY)
    assert content_digest(table.slice(1), KEY) != digest
    assert content_digest(table.rename_columns([*table.schema.names[:-1], "other"]), KEY) != digest
    assert content_digest(table, b"x" * 32) != digest


@given(st.sampled_from(SCALARS), st.sampled_from(SCALARS))
def test_types_change_the_digest_even_of_empty_tables(one: pa.DataType, other: pa.DataType) -> None:
    first, second = (content_digest(one_role(pa.array([], kind)), KEY) for kind in (one, other))
    assert (first == second) == (one == other)


@given(st.data(), slice_tables())
def test_the_digest_does_not_see_order_chunks_and_offsets(data: st.DataObject, table: pa.Table) -> None:
    digest = content_digest(table, KEY)
    order = data.draw(st.permutations(range(table.num_rows)))
    shuffled = table.take(pa.array(order, pa.int64()))
    assert content_digest(shuffled, KEY) == digest
    cut = data.draw(st.integers(0, table.num_rows))
    assert content_digest(pa.concat_tables([table.slice(0, cut), table.slice(cut)]), KEY) == digest
    rows = list(range(table.num_rows))
    padded = table.take(pa.array([*rows[:2], *rows, *rows[:1]], pa.int64()))
    assert content_digest(padded.slice(len(rows[:2]), table.num_rows), KEY) == digest


@given(slice_tables(), st.sampled_from(["1.0", "2.4", "2.6"]), st.integers(1, 4), st.booleans())
def test_the_digest_does_not_see_how_a_parquet_file_was_written(
    table: pa.Table, version: str, row_group_size: int, use_dictionary: bool
) -> None:
    kinds = [str(field.type) for field in table.schema]
    if version != "2.6" and any("[ns]" in kind or "uint32" in kind for kind in kinds):
        version = "2.6"  # older ones change these values, not only their encoding
    file = io.BytesIO()
    named = table.replace_schema_metadata({"pandas": "{}", "origin": "a laptop"})
    pq.write_table(
        named,
        file,
        version=version,
        row_group_size=row_group_size,
        use_dictionary=use_dictionary,
        compression="gzip",
    )
    back = pq.read_table(file)
    columns = [
        pa.chunked_array([normalise(chunk) for chunk in column.chunks], field.type)
        for column, field in zip(back.columns, table.schema, strict=True)
    ]
    assert content_digest(pa.table(columns, names=table.schema.names), KEY) == content_digest(table, KEY)


def test_the_digest_does_not_see_what_lies_below_nulls() -> None:
    def masked(garbage: int, mask: pa.Buffer) -> list[pa.Array]:
        numbers = pa.array([1, garbage, 3], pa.int64())
        text = pa.array(["a", "x" * (garbage % 7), "c"])
        fixed = pa.array([b"aa", bytes([garbage % 256]) * 2, b"cc"], pa.binary(2))
        lists = pa.array([[1], [garbage] * (garbage % 3), [3]])
        pairs = pa.array([[1, 2], [garbage, garbage], [3, 4]], pa.list_(pa.int64(), 2))
        return [
            pa.Array.from_buffers(numbers.type, 3, [mask, numbers.buffers()[1]]),
            pa.Array.from_buffers(text.type, 3, [mask, *text.buffers()[1:]]),
            pa.Array.from_buffers(fixed.type, 3, [mask, fixed.buffers()[1]]),
            pa.Array.from_buffers(lists.type, 3, [mask, lists.buffers()[1]], children=[lists.values]),
            pa.Array.from_buffers(pairs.type, 3, [mask], children=[pairs.values]),
            pa.Array.from_buffers(pa.struct([("a", pa.int64())]), 3, [mask], children=[numbers]),
        ]

    mask = pa.py_buffer(b"\x05")
    for one, other in zip(masked(17, mask), masked(23, mask), strict=True):
        assert one.is_null().to_pylist() == [False, True, False]
        assert content_digest(one_role(one), KEY) == content_digest(one_role(other), KEY)
        other_row = pa.concat_arrays([one.slice(0, 1), one.slice(2, 1), one.slice(2, 1)])
        assert content_digest(one_role(other_row), KEY) != content_digest(one_role(one), KEY)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["ab", "c"], ["a", "bc"]),
        ([b"ab", b""], [b"", b"ab"]),
        ([[1], [2, 3]], [[1, 2], [3]]),
        ([[], [1]], [[1], []]),
        ([["a"], ["b", ""]], [["a", "b"], [""]]),
        ([None, ""], ["", None]),
        ([None, [1]], [[1], None]),
        ([[None], [1]], [None, [1]]),
        ([{"a": None}, {"a": 1}], [None, {"a": 1}]),
        ([[], None, [1]], [None, [], [1]]),
    ],
)
def test_contents_that_only_differ_in_where_they_are_cut_differ(one: list[Any], other: list[Any]) -> None:
    kind = pa.array([*one, *other]).type
    first, second = (one_role(pa.array(cells, kind)) for cells in (one, other))
    assert content_digest(first, KEY) != content_digest(second, KEY)


def test_a_part_of_a_table_is_taken_from_its_own_place() -> None:
    table = small_table(9).drop_columns(["subject_id"])
    columns = {
        "flag": pa.array([i % 2 == 0 for i in range(9)]),
        "fixed": pa.array([bytes([i]) * 2 for i in range(9)], pa.binary(2)),
        "text": pa.array([str(i) * i for i in range(9)]),
        "lists": pa.array([[i] * (i % 3) for i in range(9)]),
        "structs": pa.array([{"a": i, "b": str(i)} for i in range(9)]),
        "nested": pa.array([[[i, i + 1]] * 2 for i in range(9)], pa.list_(pa.list_(pa.int16(), 2), 2)),
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    part, copy = table.slice(4, 3), pa.Table.from_pylist(table.to_pylist()[4:7], schema=table.schema)
    assert content_digest(part, KEY) == content_digest(copy, KEY)
    assert write_slice(part) == write_slice(copy)
    assert read_slice(write_slice(part)) == copy


def test_zeros_of_different_sign_differ() -> None:
    for kind in (pa.float16(), pa.float32(), pa.float64()):
        plus, minus = (one_role(pa.array([np.float16(z)]).cast(kind)) for z in (0.0, -0.0))
        assert content_digest(plus, KEY) != content_digest(minus, KEY)


def test_the_digest_of_a_table_never_changes() -> None:
    # Golden: a release that changes this value makes every stage of every run rebuild.
    table = pa.table(
        {
            "record_id": ["b", "a"],
            "features": pa.array([[1.5, -0.0], [2.0, 3.0]], pa.list_(pa.float32(), 2)),
            "image": pa.array([b"\xff", b""]),
            "label": pa.array([1, None], pa.int8()),
        }
    )
    assert content_digest(table, KEY) == GOLDEN


GOLDEN = "a36866600b43ca65f382302fbf1a4f00f79ab1328c8dbf33e74ebe495fe3ba6b"


@given(slice_tables(), st.integers(1, 3))
def test_a_slice_comes_back_as_it_was_written(table: pa.Table, num_buckets: int) -> None:
    back = read_slice(write_slice(table, num_buckets=num_buckets, seed=1))
    assert back.schema.equals(table.schema, check_metadata=True)
    assert said(back) == said(table)
    assert content_digest(back, KEY) == content_digest(table, KEY)


@given(slice_tables(), st.integers(1, 4), st.integers(0, 3))
def test_buckets_hold_their_records_in_the_order_of_ids(table: pa.Table, num_buckets: int, seed: int) -> None:
    file = SliceFile(
        io.BytesIO(write_slice(table, num_buckets=num_buckets, seed=seed)), num_buckets=num_buckets
    )
    ids = sorted(table["record_id"].to_pylist(), key=str.encode)
    buckets = buckets_of(record_hashes(ids, seed=seed), num_buckets)
    assert file.num_buckets == num_buckets
    for bucket in range(num_buckets):
        expected = [i for i, b in zip(ids, buckets, strict=True) if b == bucket]
        assert file.bucket_num_rows(bucket) == len(expected)
        if expected:
            assert file.read_bucket(bucket)["record_id"].to_pylist() == expected
    assert sum(file.bucket_num_rows(b) for b in range(num_buckets)) == table.num_rows


@given(st.data(), slice_tables())
def test_the_bytes_of_a_slice_do_not_depend_on_how_its_table_came_about(
    data: st.DataObject, table: pa.Table
) -> None:
    order = data.draw(st.permutations(range(table.num_rows)))
    cut = data.draw(st.integers(0, table.num_rows))
    shuffled = table.take(pa.array(order, pa.int64())).replace_schema_metadata({"origin": "elsewhere"})
    pieces = pa.concat_tables([shuffled.slice(0, cut), shuffled.slice(cut)])
    assert write_slice(pieces, num_buckets=2) == write_slice(table, num_buckets=2)


def test_an_empty_slice_has_buckets_of_no_rows() -> None:
    file = SliceFile(None, num_buckets=3)
    assert [file.bucket_num_rows(b) for b in range(file.num_buckets)] == [0, 0, 0]


def test_a_bucket_may_be_cut_into_row_groups() -> None:
    table = small_table()
    data = write_slice(table, num_buckets=3)
    stored = pq.ParquetFile(io.BytesIO(data))
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, stored.schema_arrow) as writer:
        for group in range(stored.num_row_groups):
            writer.write_table(stored.read_row_group(group), row_group_size=17)
    one, other = SliceFile(io.BytesIO(data)), SliceFile(sink)
    assert pq.ParquetFile(sink).num_row_groups > 12
    for bucket in range(3):
        assert one.read_bucket(bucket) == other.read_bucket(bucket)


def test_a_slice_keeps_nothing_but_its_rows() -> None:
    secret = "Ada Lovelace"
    table = small_table().replace_schema_metadata({"pandas": secret, secret: "origin"})
    table = table.append_column(
        "word", pa.array(["x"] * 299 + [secret]).dictionary_encode().dictionary_decode()
    )
    metadata = pq.ParquetFile(io.BytesIO(write_slice(table))).metadata
    assert set(metadata.metadata) == {b"sisa_ray.slice", b"ARROW:schema"}
    for index in range(metadata.num_columns):
        column = metadata.row_group(0).column(index)
        assert not column.is_stats_set
        assert not column.has_dictionary_page
    arrow_schema = base64.b64decode(metadata.metadata[b"ARROW:schema"])
    own_schema = bytes.fromhex(json.loads(metadata.metadata[b"sisa_ray.slice"])["schema"])
    assert secret.encode() not in arrow_schema + own_schema


def test_small_slices_are_written_fast() -> None:
    table = small_table()
    started = time.process_time()
    for _ in range(200):
        write_slice(table)
        content_digest(table, KEY)
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize("data", [b"", b"PAR1", b"not parquet at all" * 100, None])
def test_what_is_no_slice_is_refused(data: bytes | None) -> None:
    if data is None:
        file = io.BytesIO()
        pq.write_table(small_table(), file)
        data = file.getvalue()
    with pytest.raises(IntegrityError, match="no Parquet file that sisa_ray wrote"):
        read_slice(data)


def test_a_truncated_slice_is_refused() -> None:
    data = write_slice(small_table())
    with pytest.raises(IntegrityError):
        read_slice(data[:-20])


def test_a_slice_with_another_number_of_buckets_is_refused() -> None:
    data = write_slice(small_table(), num_buckets=2)
    with pytest.raises(IntegrityError, match="has 2 order buckets, the run's spec has 4"):
        SliceFile(io.BytesIO(data), num_buckets=4)


@given(slice_tables(), st.sets(st.sampled_from(["ada", "bob", "", "cleo"])))
def test_erasing_removes_all_records_of_some_subjects_and_no_others(
    table: pa.Table, erased: set[str]
) -> None:
    people = subjects(table).to_pylist()
    left = erase_subjects(table, erased)
    kept = [row for row, person in enumerate(people) if person not in erased]
    assert said(left) == said(table.take(pa.array(kept, pa.int64())))
    counted = count_subject_rows(table, erased)
    assert counted == {person: people.count(person) for person in erased if person in people}
    assert sum(counted.values()) == table.num_rows - left.num_rows


def test_subjects_are_the_record_ids_where_there_is_no_other_column() -> None:
    table = small_table(3)
    assert subjects(table).to_pylist() == ["p0", "p0", "p0"]
    assert subjects(table.drop_columns(["subject_id"])).to_pylist() == ["r0", "r1", "r2"]
    assert role_columns(table).schema.names == ["features", "label"]


@given(st.data(), slice_tables(min_rows=1), st.integers(1, 200))
def test_gathering_in_parts_is_taking(data: st.DataObject, table: pa.Table, part_bytes: int) -> None:
    table = pa.concat_tables([table, table])
    indices = data.draw(st.lists(st.integers(0, table.num_rows - 1), max_size=10))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_GATHER_BYTES", part_bytes)
        gathered = gather(table, np.array(indices, dtype=np.int64))
    taken = table.take(pa.array(indices, pa.int64()))
    # In this order: said() sorts by id, which is not unique here.
    assert [said(gathered.slice(i, 1)) for i in range(len(indices))] == [
        said(taken.slice(i, 1)) for i in range(len(indices))
    ]
    assert gathered.num_rows == len(indices)
