"""What every store promises, on a local directory and on a real S3 server."""

from __future__ import annotations

import io
import pickle
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sisa_ray.core.errors import ConfigError, ObjectExists, ObjectMissing, StorageError
from sisa_ray.storage.objects import ObjectInfo, ObjectStore, open_store


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The root of an empty store."""
    if request.param == "local":
        return str(tmp_path / "runs" / "mnist")
    return f"s3://{request.getfixturevalue('s3_bucket')}/runs/mnist"


@pytest.fixture
def store(url: str) -> ObjectStore:
    return open_store(url)


def paths(store: ObjectStore, prefix: str = "") -> list[str]:
    return sorted(info.path for info in store.list(prefix))


def test_what_is_put_is_got(store: ObjectStore, url: str) -> None:
    for data in (b"", b"x", bytes(range(256)) * 1000):
        store.put("data/a.bin", data)
        assert store.get("data/a.bin") == data
        assert store.exists("data/a.bin")
    store.put("data/view", memoryview(b"0123456789")[2:5])
    assert store.get("data/view") == b"234"
    assert store.url == url


def test_what_is_not_there_is_missing(store: ObjectStore) -> None:
    store.put("data/ab/c", b"x")
    for path in ("data/nothing", "data/ab", "data/a", "data/ab/c/d", "data"):
        assert not store.exists(path)
        with pytest.raises(ObjectMissing, match=path):
            store.get(path)
        with pytest.raises(ObjectMissing, match=path):
            store.open(path)


def test_an_empty_store_lists_nothing(store: ObjectStore) -> None:
    assert paths(store) == []
    assert paths(store, "log/") == []
    assert list(store.list(all_versions=True)) == []


def test_listings_are_recursive_and_by_prefix(store: ObjectStore) -> None:
    for path in ("spec.json", "log/1", "log/2", "data/shard=0/x", "data/shard=1/y", "data/shard=10/z"):
        store.put(path, path.encode())
    assert paths(store) == sorted(
        ["spec.json", "log/1", "log/2", "data/shard=0/x", "data/shard=1/y", "data/shard=10/z"]
    )
    assert paths(store, "log/") == ["log/1", "log/2"]
    assert paths(store, "data/shard=1") == ["data/shard=1/y", "data/shard=10/z"]
    assert paths(store, "data/shard=1/") == ["data/shard=1/y"]
    assert paths(store, "spec") == ["spec.json"]
    assert paths(store, "nothing/") == []
    assert list(store.list("spec")) == [ObjectInfo(path="spec.json", size_bytes=9)]


def test_a_listing_sees_what_another_store_did(url: str) -> None:
    ours, theirs = open_store(url), open_store(url)
    assert paths(ours) == []
    theirs.put("a", b"1")
    assert paths(ours) == ["a"]
    theirs.delete(["a"])
    assert paths(ours) == []


def test_only_the_first_create_wins(store: ObjectStore) -> None:
    store.create("log/0", b"first")
    for data in (b"second", b"first", b""):
        with pytest.raises(ObjectExists, match="log/0"):
            store.create("log/0", data)
    assert store.get("log/0") == b"first"


def test_of_many_at_once_one_create_wins(store: ObjectStore) -> None:
    winners: list[int] = []
    start = threading.Barrier(5)

    def race(number: int) -> None:
        start.wait()
        try:
            store.create("log/0", b"%d" % number)
            winners.append(number)
        except ObjectExists:
            pass

    threads = [threading.Thread(target=race, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert store.get("log/0") == b"%d" % winners[0]


def test_deleted_objects_are_gone_and_may_be_created_again(store: ObjectStore) -> None:
    for path in ("a/1", "a/2", "b/1"):
        store.put(path, b"x")
    store.delete(["a/1", "b/1", "never/there", "a"])
    assert paths(store) == ["a/2"]
    store.delete([])
    store.delete(iter(["a/2"]))
    assert paths(store) == []
    store.create("a/1", b"again")
    assert store.get("a/1") == b"again"


def test_a_child_is_rooted_below(store: ObjectStore, url: str) -> None:
    child = store.child("scratch/attempt/")
    child.put("log/0", b"x")
    child.create("log/1", b"y")
    assert child.url == f"{url}/scratch/attempt"
    assert paths(child) == ["log/0", "log/1"]
    assert paths(store) == ["scratch/attempt/log/0", "scratch/attempt/log/1"]
    store.put("outside", b"x")
    assert not child.exists("outside")
    child.delete(["log/0"])
    store.delete(["scratch/attempt/log/1"])
    assert paths(child) == []
    assert paths(store) == ["outside"]


def test_stores_travel_to_other_processes(store: ObjectStore) -> None:
    store.put("before", b"1")  # with whatever it has open by now
    copies: list[ObjectStore] = [pickle.loads(pickle.dumps(s)) for s in (store, store.child("scratch"))]
    assert copies[0].get("before") == b"1"
    copies[1].put("after", b"2")
    assert store.get("scratch/after") == b"2"


def test_an_opened_object_is_read_in_pieces(store: ObjectStore) -> None:
    data = bytes(range(256)) * 20_000
    store.put("data/part", data)
    with store.open("data/part") as file:
        assert file.seekable()
        assert file.seek(-10, io.SEEK_END) == len(data) - 10
        assert file.read() == data[-10:]
        assert file.read(1) == b""
        file.seek(3_000_001)
        assert file.read(1_500_000) == data[3_000_001:4_500_001]
        assert file.tell() == 4_500_001


def test_an_opened_parquet_file_gives_row_groups(store: ObjectStore) -> None:
    table = pa.table({"x": list(range(1000))})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=100)
    store.put("data/part.parquet", sink.getvalue().to_pybytes())
    with store.open("data/part.parquet") as file:
        assert pq.ParquetFile(file).read_row_group(7)["x"].to_pylist() == list(range(700, 800))


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../other", "a/../../b", "a//b", "./a", "a/."])
def test_a_path_that_leads_elsewhere_is_refused(store: ObjectStore, path: str) -> None:
    actions = (
        lambda: store.get(path),
        lambda: store.put(path, b"x"),
        lambda: store.create(path, b"x"),
        lambda: store.delete([path]),
        lambda: store.exists(path),
        lambda: store.open(path),
    )
    for action in actions:
        with pytest.raises(StorageError, match="no path of an object"):
            action()
    assert paths(store) == []


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match="gs://bucket/run is neither a local path nor an s3:// URL"):
        open_store("gs://bucket/run")
    with pytest.raises(ConfigError, match="names no bucket"):
        open_store("s3:///run")


@pytest.mark.parametrize("value", ["soon", "-1", "nan"])
def test_patience_must_be_a_number_of_seconds(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SISA_RAY_STORAGE_PATIENCE_S", value)
    with pytest.raises(ConfigError, match=f"SISA_RAY_STORAGE_PATIENCE_S: '{value}' is no number of seconds"):
        open_store("/tmp/x")
