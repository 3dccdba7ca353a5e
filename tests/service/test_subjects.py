from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sisa_ray.core.errors import ConfigError, DataError
from sisa_ray.service.subjects import SubjectList, gather_subjects
from tests.support.weed import WeedServer


def from_text(tmp_path: Path, data: bytes) -> SubjectList:
    file = tmp_path / "leavers.txt"
    file.write_bytes(data)
    return gather_subjects([], str(file), None)


def from_parquet(tmp_path: Path, column: str | None = None, **columns: pa.Array) -> SubjectList:
    file = tmp_path / "leavers.parquet"
    pq.write_table(pa.table(columns), file)
    return gather_subjects([], str(file), column)


def test_one_subject_a_line_blank_lines_ignored(tmp_path: Path) -> None:
    people = from_text(tmp_path, b"alice\n\n  \nbob\nalice\n")
    assert people.keys == ("alice", "bob", "alice")
    assert people.places == ("line 1", "line 4", "line 5")
    assert people.notices == ()


@pytest.mark.parametrize("data", [b"alice\r\nbob\r\n", b"\xef\xbb\xbfalice\nbob", b"alice\nbob\n\n"])
def test_files_of_other_systems(tmp_path: Path, data: bytes) -> None:
    assert from_text(tmp_path, data).keys == ("alice", "bob")


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    odd = "a\u2028b\x0bc\x85d"
    assert from_text(tmp_path, odd.encode()).keys == (odd,)


def test_spaces_are_kept_and_noticed_without_naming_anybody(tmp_path: Path) -> None:
    people = from_text(tmp_path, b"alice \nbob\n carol\n")
    assert people.keys == ("alice ", "bob", " carol")
    assert len(people.notices) == 1
    assert people.notices[0].endswith("spaces around the subject count as part of it (lines 1, 3)")


@pytest.mark.parametrize("data", [b"", b"\n\n", b"  \n"])
def test_a_file_that_names_nobody(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DataError, match=r"leavers\.txt: names nobody; write one subject a line"):
        from_text(tmp_path, data)


def test_a_file_that_is_not_utf8_is_named_by_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2 is not UTF-8") as caught:
        from_text(tmp_path, b"alice\nb\xf6b\n")
    assert "alice" not in str(caught.value)
    with pytest.raises(DataError, match="line 1 is not UTF-8"):
        from_text(tmp_path, "alice\n".encode("utf-16"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: cannot be read: No such file or directory"):
        gather_subjects([], str(tmp_path / "nowhere"), None)
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        gather_subjects([], str(tmp_path), None)
    with pytest.raises(DataError, match=r"nowhere\.parquet: cannot be read: No such file"):
        gather_subjects([], str(tmp_path / "nowhere.parquet"), None)
    fake = tmp_path / "fake.parquet"
    fake.write_bytes(b"alice\nbob\n")
    with pytest.raises(DataError, match=r"fake\.parquet: is not a Parquet file"):
        gather_subjects([], str(fake), None)


def test_a_text_file_has_no_columns(tmp_path: Path) -> None:
    file = tmp_path / "leavers.csv"
    file.write_text("id\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"only a \.parquet file has columns"):
        gather_subjects([], str(file), "id")


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        (pa.array([17, -3], pa.int64()), ("17", "-3")),
        (pa.array(["alice", "bob"]).dictionary_encode(), ("alice", "bob")),
        (pa.array([b"\x01\xff"], pa.binary()), ("01ff",)),
    ],
)
def test_parquet_values_become_canonical_keys(
    tmp_path: Path, values: pa.Array, keys: tuple[str, ...]
) -> None:
    people = from_parquet(tmp_path, id=values)
    assert people.keys == keys
    assert people.places == tuple(f"row {i}" for i in range(len(keys)))


def test_a_column_is_chosen_by_name(tmp_path: Path) -> None:
    columns = {"id": pa.array([1]), "customer": pa.array(["alice"])}
    assert from_parquet(tmp_path, "customer", **columns).keys == ("alice",)
    with pytest.raises(ConfigError, match=r"--column: is required; its columns are id, customer"):
        from_parquet(tmp_path, None, **columns)
    with pytest.raises(ConfigError, match=r"--column person: is not in .*; its columns are id, customer"):
        from_parquet(tmp_path, "person", **columns)


def test_bad_parquet_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column id is null in row 1"):
        from_parquet(tmp_path, id=pa.array(["alice", None]))
    with pytest.raises(DataError, match="names nobody"):
        from_parquet(tmp_path, id=pa.array([], pa.string()))
    with pytest.raises(DataError, match="a key of type float is not allowed"):
        from_parquet(tmp_path, id=pa.array([1.5]))


@pytest.mark.s3
def test_files_in_a_bucket(s3_server: WeedServer, s3_bucket: str) -> None:
    client = s3_server.client()
    client.put_object(Bucket=s3_bucket, Key="desk/leavers.txt", Body=b"alice\nbob\n")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"person": ["carol"]}), sink)
    client.put_object(Bucket=s3_bucket, Key="leavers.parquet", Body=sink.getvalue().to_pybytes())
    assert gather_subjects([], f"s3://{s3_bucket}/desk/leavers.txt", None).keys == ("alice", "bob")
    assert gather_subjects([], f"s3://{s3_bucket}/leavers.parquet", None).keys == ("carol",)
    with pytest.raises(DataError, match=r"nowhere\.txt: cannot be read: there is no such object"):
        gather_subjects([], f"s3://{s3_bucket}/nowhere.txt", None)
