from __future__ import annotations

import glob
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sisa_ray.core.errors import BucketMissing, ConfigError, DataError, SourceMissing
from sisa_ray.storage.files import _matches, find_files, open_parquet
from sisa_ray.storage.objects import open_store

NAMES = [
    "a.parquet",
    "b.PARQUET",
    "c.pq",
    "sub/d.parq",
    "notes.txt",
    "_SUCCESS",
    "sub/_old/e.parquet",
    ".f.parquet",
]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def found(url: str, root: str) -> list[str]:
    return [file.removeprefix(f"{root}/") for file in find_files(url)]


CASES = {
    "": ["a.parquet", "b.PARQUET", "c.pq", "sub/d.parq"],
    "/sub": ["sub/d.parq"],
    "/a.parquet": ["a.parquet"],
    "/notes.txt": ["notes.txt"],
    "/*.p*": ["a.parquet", "c.pq"],
    "/[bc].*": ["b.PARQUET", "c.pq"],
    "/?.pq": ["c.pq"],
    "/**/*.parq": ["sub/d.parq"],
}


@pytest.mark.parametrize("pattern", CASES)
def test_files_directories_and_globs(directory: Path, pattern: str) -> None:
    assert found(f"{directory}{pattern}", str(directory)) == CASES[pattern]


@pytest.mark.s3
def test_the_same_on_s3(s3_bucket: str) -> None:
    root = f"s3://{s3_bucket}/data"
    for name in NAMES:
        open_store(root).put(name, b"x")
    open_store(f"s3://{s3_bucket}").put("data2/other.parquet", b"x")
    for pattern, files in CASES.items():
        assert found(f"{root}{pattern}", root) == files
    assert found(f"{root}/", root) == CASES[""]
    for nothing in (f"{root}/x.parquet", f"{root}/*.csv", f"s3://{s3_bucket}/dat"):
        with pytest.raises(SourceMissing, match="no Parquet file matches"):
            find_files(nothing)
    with pytest.raises(ConfigError, match="bucket's name"):
        find_files("s3://*/x.parquet")
    with pytest.raises(BucketMissing):
        find_files("s3://sisa-no-such-bucket/x.parquet")


@pytest.mark.parametrize("pattern", ["/none.parquet", "/*.csv", "/sub/_old/**/x"])
def test_nothing_that_matches_is_an_error(directory: Path, pattern: str) -> None:
    with pytest.raises(SourceMissing, match="no Parquet file matches; give a file"):
        find_files(f"{directory}{pattern}")


def test_other_schemes_are_refused() -> None:
    with pytest.raises(ConfigError, match="s3://"):
        find_files("gs://bucket/x.parquet")


PATTERNS = ["*", "**/", "?", "[ab]", "[!a]", "a", "b", ".", ".pq", "a/", "*/"]
TREE = ["a.pq", "b.pq", "ab", ".b", "a/a.pq", "a/b/b.pq", "a/.b/a.pq", "b/ab", ".a/a.pq", "b/a/b/a.pq"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for name in TREE:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@given(st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=5))
def test_patterns_on_s3_mean_what_they_mean_locally(tree: Path, parts: list[str]) -> None:
    pattern = "".join(parts)
    here = [name for name in glob.glob(pattern, root_dir=tree, recursive=True) if (tree / name).is_file()]  # noqa: PTH207
    there = [name for name in TREE if _matches(name.split("/"), pattern.split("/"))]
    assert sorted(set(here)) == sorted(there)


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    file.write_bytes(b"not parquet at all, but long enough to have a footer")
    with pytest.raises(DataError, match=r"x\.parquet: is not a Parquet file: Parquet magic bytes not found"):
        open_parquet(str(file))
    file.write_bytes(b"")
    with pytest.raises(DataError, match=r"x\.parquet: is not a Parquet file"):
        open_parquet(str(file))
    file.unlink()
    with pytest.raises(DataError, match=r"x\.parquet: cannot be read: .*No such file"):
        open_parquet(str(file))


def test_a_parquet_file_is_opened_under_any_name(tmp_path: Path) -> None:
    file = tmp_path / "table.data"
    pq.write_table(pa.table({"a": [1, 2]}), file)
    with open_parquet(str(file)) as parquet:
        assert parquet.metadata.num_rows == 2
