from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sisa_ray.core.errors import DataError
from sisa_ray.storage.objects import open_store
from sisa_ray.storage.source import Source, open_source
from tests.storage.source_tables import data_config, people, write_parts


def rows_of(source: Source, **options: Any) -> list[dict[str, Any]]:
    rows = []
    expected = 0
    for batch in source.read(**options):
        assert batch.first_row == expected
        expected += batch.num_rows
        assert batch.record_ids is not None
        ids, owners = batch.record_ids.to_pylist(), (batch.subjects or batch.record_ids).to_pylist()
        for record_id, person, columns in zip(ids, owners, batch.columns.to_pylist(), strict=True):
            rows.append({"id": record_id, "person": person, **columns})
    return rows


def expected_rows(table: pa.Table) -> list[dict[str, Any]]:
    return [
        {
            "id": str(row["id"]),
            "person": row["person"],
            "features": [row["a"], row["b"], row["c"]],
            "label": row["label"],
            "word": row["word"],
            "x": row["x"],
        }
        for row in table.to_pylist()
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    num_rows=st.integers(1, 40),
    num_files=st.integers(1, 4),
    row_group_size=st.integers(1, 20),
    max_rows=st.none() | st.integers(1, 9),
    max_bytes=st.integers(1, 5000),
)
def test_a_table_is_read_in_order_however_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory,
    num_rows: int,
    num_files: int,
    row_group_size: int,
    max_rows: int | None,
    max_bytes: int,
) -> None:
    table = people(num_rows)
    directory = write_parts(
        tmp_path_factory.mktemp("table"), table, num_files=num_files, row_group_size=row_group_size
    )
    source = open_source(data_config(directory))
    assert source.num_rows == num_rows
    assert source.role_schema.names == ["features", "label", "word", "x"]
    assert rows_of(source, max_rows=max_rows, max_bytes=max_bytes) == expected_rows(table)
    again = pickle.loads(pickle.dumps(source))
    parts = again.split(max_bytes)
    assert [f for part in parts for f in part] == list(source.fragments)
    read = [b for part in parts for b in again.read(part, use_threads=False)]
    assert sum(b.num_rows for b in read) == num_rows
    assert [b.first_row for b in read] == sorted(b.first_row for b in read)


def test_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    table = people(30)
    write_parts(tmp_path, table, num_files=3)
    (tmp_path / "part-0.parquet").rename(tmp_path / "part-9.parquet")
    source = open_source(data_config(tmp_path))
    assert rows_of(source) == expected_rows(pa.concat_tables([table.slice(10), table.slice(0, 10)]))
    assert source.where(3) == "3 (part-1.parquet: 3)"
    assert source.where(29) == "29 (part-9.parquet: 9)"


def test_rows_of_a_single_file_are_just_numbers(tmp_path: Path) -> None:
    assert open_source(data_config(write_parts(tmp_path, people(30)))).where(17) == "17"


def test_the_subject_column_is_read_once_where_it_is_the_record_id(tmp_path: Path) -> None:
    source = open_source(data_config(write_parts(tmp_path, people(9)), subject="id"))
    assert source.subject_id is None
    assert next(source.read()).subjects is None
    ids = next(source.keys_only().read())
    assert ids.columns.num_columns == 0
    assert ids.record_ids is not None
    assert ids.num_rows == len(ids.record_ids) > 0


def test_the_estimated_size_does_not_believe_in_dictionaries(tmp_path: Path) -> None:
    table = pa.table({"id": range(100_000), "person": ["p"] * 100_000, "x": [0.5] * 100_000})
    directory = write_parts(tmp_path, table, row_group_size=100_000)
    assert open_source(data_config(directory, x="x")).num_bytes >= 100_000 * 16


def test_rows_in_a_file_with_wide_rows_come_a_few_at_a_time(tmp_path: Path) -> None:
    table = pa.table({"id": range(64), "person": ["p"] * 64, "image": [bytes(2**20)] * 64})
    pq.write_table(table, tmp_path / "t.parquet", compression="zstd", use_dictionary=False)
    source = open_source(data_config(tmp_path / "t.parquet", image="image"))
    assert max(batch.num_rows for batch in source.read()) <= 16


def refuse(tmp_path: Path, change: Callable[[pa.Table], pa.Table], match: str, **columns: Any) -> None:
    directory = write_parts(tmp_path / "table", change(people(20)))
    with pytest.raises(DataError, match=match):
        open_source(data_config(directory, **columns))


def retyped(name: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    return lambda t: t.set_column(t.schema.get_field_index(name), name, pa.nulls(t.num_rows, kind))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda t: t.rename_columns([n.replace("person", "persona") for n in t.schema.names]),
            r"data\.subject_id: the table has no column 'person'; did you mean 'persona'\?",
        ),
        (
            lambda t: t.drop_columns(["c", "label"]),
            r"(?s)columns\.features: the table has no column 'c'.*columns\.label: the table has no column 'label'",
        ),
        (lambda t: t.drop_columns(["id"]), r"no column 'id'; it has 'person', 'a'"),
        (
            lambda t: t.append_column("label", t["label"]),
            r"data\.columns\.label: the table has 2 columns 'label'",
        ),
        (
            retyped("id", pa.float64()),
            r"data\.record_id: column 'id' is of type double, but keys are integers",
        ),
        (retyped("person", pa.timestamp("s")), r"data\.subject_id: column 'person' is of type timestamp"),
        (
            retyped("word", pa.null()),
            r"data\.columns\.word: column 'word' cannot be used: has no values, only nulls",
        ),
        (
            retyped("b", pa.string()),
            r"data\.columns\.features: columns 'a', 'b', 'c' cannot be used: column 2 of the",
        ),
        (lambda t: t.slice(0, 0), r"is an empty table"),
    ],
)
def test_tables_that_do_not_fit_are_refused(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], match: str
) -> None:
    refuse(tmp_path, change, match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            retyped("label", pa.string()),
            r"part-1\.parquet: column 'label' is of type string, but of type int64 in .*0",
        ),
        (
            lambda t: t.drop_columns(["label"]),
            r"part-1\.parquet: lacks a \(single\) column 'label', unlike .*part-0",
        ),
    ],
)
def test_files_that_disagree_are_refused(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], match: str
) -> None:
    write_parts(tmp_path, people(20), num_files=2)
    pq.write_table(change(people(10)), tmp_path / "part-1.parquet")
    with pytest.raises(DataError, match=match):
        open_source(data_config(tmp_path))


def test_files_may_differ_in_encodings_and_in_columns_that_are_not_used(tmp_path: Path) -> None:
    table = people(20)
    write_parts(tmp_path, table, num_files=2)
    plain = table.slice(10).set_column(6, "word", table["word"].slice(10).cast(pa.large_string()))
    pq.write_table(plain.append_column("more", pa.array(range(10))), tmp_path / "part-1.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "part-2.parquet")
    assert rows_of(open_source(data_config(tmp_path))) == expected_rows(table)


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    write_parts(tmp_path, people(20), num_files=2)
    (tmp_path / "part-1.parquet").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match=r"part-1\.parquet: is not a Parquet file"):
        open_source(data_config(tmp_path))


def test_a_file_that_breaks_in_the_middle_is_named(tmp_path: Path) -> None:
    file = write_parts(tmp_path, people(2000), row_group_size=100) / "part-0.parquet"
    source = open_source(data_config(file))
    data = bytearray(file.read_bytes())
    data[2000:9000] = bytes(7000)
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"part-0\.parquet: cannot be read"):
        list(source.read())
    file.unlink()
    with pytest.raises(DataError, match=r"part-0\.parquet: cannot be read"):
        list(source.read())


def test_numbers_that_do_not_fit_the_common_type_are_refused(tmp_path: Path) -> None:
    table = people(5).set_column(4, "c", pa.array([2**60 + 1] * 5))
    source = open_source(data_config(write_parts(tmp_path, table)))
    with pytest.raises(DataError, match=r"features \(columns 'a' … 'c'\) has values that fixed_size_list"):
        list(source.read())


def test_a_table_for_prediction_may_lack_labels_and_ids(tmp_path: Path) -> None:
    directory = write_parts(tmp_path, people(9).drop_columns(["label", "id", "person"]))
    source = open_source(data_config("elsewhere.parquet"), str(directory), for_training=False)
    assert source.roles == ("features", "word", "x")
    batches = list(source.batches(4))
    assert sum(b.num_rows for b in batches) == 9
    assert max(b.num_rows for b in batches) == 4
    assert all(b.record_ids is None and b.subjects is None for b in batches)


@pytest.mark.parametrize(
    ("cell", "match"), [(None, r"is null: row 5$"), (float("nan"), r"not finite .*: row 5$")]
)
def test_a_table_for_prediction_is_checked_by_row(tmp_path: Path, cell: float | None, match: str) -> None:
    table = people(9)
    column = [*table["a"].to_pylist()[:5], cell, *table["a"].to_pylist()[6:]]
    source = open_source(
        data_config(write_parts(tmp_path, table.set_column(2, "a", pa.array(column, pa.float64()))))
    )
    with pytest.raises(DataError, match=match):
        list(source.batches(4))


@pytest.mark.parametrize(
    ("dropped", "match"),
    [
        (
            ["b"],
            r"fit the configuration:\n  data\.columns\.features: the table has no column 'b'; it has [^\n]*$",
        ),
        (
            ["a", "b", "c", "x", "word", "label"],
            r"(?s)columns\.features: .*columns\.label: .*columns\.word: .*columns\.x: ",
        ),
    ],
)
def test_a_table_for_prediction_has_whole_roles_and_at_least_one(
    tmp_path: Path, dropped: list[str], match: str
) -> None:
    directory = write_parts(tmp_path, people(9).drop_columns(dropped))
    with pytest.raises(DataError, match=match):
        open_source(data_config("elsewhere.parquet"), str(directory), for_training=False)


def test_subjects_do_not_matter_for_prediction(tmp_path: Path) -> None:
    directory = write_parts(tmp_path, retyped("person", pa.float64())(people(9)))
    batch = next(open_source(data_config("elsewhere.parquet"), str(directory), for_training=False).read())
    assert batch.subjects is None
    assert batch.record_ids is not None


def test_record_ids_that_are_no_keys_are_refused_for_prediction_too(tmp_path: Path) -> None:
    directory = write_parts(tmp_path, retyped("id", pa.float64())(people(9)))
    with pytest.raises(DataError, match="record_id: column 'id' is of type double"):
        open_source(data_config("elsewhere.parquet"), str(directory), for_training=False)


@pytest.mark.s3
def test_a_table_on_s3_is_read_like_one_on_disk(tmp_path: Path, s3_bucket: str) -> None:
    table = people(50)
    store = open_store(f"s3://{s3_bucket}/tables/people")
    for file in write_parts(tmp_path, table, num_files=3).iterdir():
        store.put(file.name, file.read_bytes())
    for url in (store.url, f"{store.url}/part-*.parquet"):
        source = pickle.loads(pickle.dumps(open_source(data_config(url))))
        assert rows_of(source) == expected_rows(table)
    store.put("part-1.parquet", b"x" * 100)
    with pytest.raises(DataError, match=r"people/part-1\.parquet: is not a Parquet file"):
        open_source(data_config(store.url))
