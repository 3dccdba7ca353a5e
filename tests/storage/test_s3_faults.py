"""Commit log and object store on a real S3 server that throttles, loses answers, breaks off and goes down."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import s3fs

from sisa_ray.core.errors import CommitFailed, CommitStateUnknown, ObjectMissing, StorageUnavailable
from sisa_ray.core.records import AttemptOpened
from sisa_ray.storage import layout, local
from sisa_ray.storage.local import LocalStore
from sisa_ray.storage.log import CommitLog, Entry, Head
from sisa_ray.storage.objects import PATIENCE_VARIABLE, ObjectStore, open_store
from sisa_ray.storage.s3 import S3Store
from tests.support import weed
from tests.support.fault_proxy import Choose, Fault, FaultProxy, at_random
from tests.support.scripted_s3 import ScriptedS3

Patch = pytest.MonkeyPatch
MIB = 2**20

ANYTHING = {Fault.THROTTLED: 0.1, Fault.BROKEN: 0.05, Fault.LOST: 0.1, Fault.CUT: 0.1}


@pytest.fixture
def bucket(s3_server: weed.WeedServer) -> str:
    return s3_server.make_bucket()


@pytest.fixture
def proxy(s3_server: weed.WeedServer, monkeypatch: Patch) -> Iterator[FaultProxy]:
    """A proxy that clients take for the server."""
    with FaultProxy(s3_server.endpoint_url).running() as proxy:
        weed.use({**s3_server.environment, "AWS_ENDPOINT_URL": proxy.url}, monkeypatch)
        yield proxy


@pytest.fixture
def store(proxy: FaultProxy, bucket: str) -> S3Store:
    """A store that waits out any fault."""
    return S3Store(f"s3://{bucket}/run", patience_s=60)


def first_of(method: str, fault: Fault, *, part: str = "", times: int = 1) -> Choose:
    """``fault`` for the first requests of a method whose path contains ``part``."""
    left = [fault] * times
    return lambda verb, path: left.pop() if left and verb == method and part in path else None


class Committer:
    """Commits one record after the other, as a process does that knows of others doing the same."""

    def __init__(self, store: ObjectStore) -> None:
        self.acknowledged: list[Entry] = []
        self.failed: set[str] = set()
        """Ids of the commits that were definitely not applied."""
        self.num_unknown = 0
        self._log = CommitLog(store, new_id=self._new_id)
        self._head = Head.START
        self._ids: list[str] = []
        self._deadline = time.monotonic() + 200  # a failure must not keep the others going for ever

    def commit_all(self, names: Sequence[str]) -> Committer:
        for name in names:
            self._commit(name)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def _commit(self, name: str) -> None:
        self._ids = []
        while True:
            assert time.monotonic() < self._deadline
            try:
                entry = self._log.append([AttemptOpened(attempt=name, command="train")], head=self._head)
            except CommitFailed:
                self.failed.add(self._ids[-1])
            except CommitStateUnknown:
                self.num_unknown += 1
            else:
                self.acknowledged.append(entry)
                self._head = entry.head
                return
            # An earlier try of unknown outcome may be there, too.
            news = self._news()
            self._head = news[-1].head if news else self._head
            if any(entry.commit in self._ids for entry in news):
                return

    def _news(self) -> list[Entry]:
        while True:
            try:
                return self._log.read(self._head, is_whole=False)
            except StorageUnavailable:
                assert time.monotonic() < self._deadline

    def _new_id(self) -> str:
        self._ids.append(uuid.uuid4().hex)
        return self._ids[-1]


def names_of(committer: int, count: int) -> list[str]:
    return [f"{committer}-{number}" for number in range(count)]


def race(stores: Sequence[ObjectStore], names: Sequence[Sequence[str]]) -> list[Committer]:
    """Let one committer a store commit its names, all at once."""
    start = threading.Barrier(len(stores))

    def work(store: ObjectStore, mine: Sequence[str]) -> Committer:
        start.wait()
        return Committer(store).commit_all(mine)

    with ThreadPoolExecutor(len(stores)) as pool:
        return list(pool.map(work, stores, names))


def race_with_faults(root: str, seed: int, names: Sequence[Sequence[str]]) -> list[Committer]:
    """In a process of its own: race on a directory that fails before and after an entry is linked."""
    rng = random.Random(seed)
    sync, link = local._sync_directory, os.link  # noqa: SLF001 - where a disk fails

    def failing_sync(directory: Path) -> None:
        if rng.random() < 0.3:
            raise OSError(errno.EIO, "lost answer")
        sync(directory)

    def failing_link(*args: Any) -> None:
        if rng.random() < 0.1:
            raise OSError(errno.EIO, "broken")
        link(*args)

    with (
        mock.patch.object(local, "_sync_directory", failing_sync),
        mock.patch.object(os, "link", failing_link),
    ):
        return race([LocalStore(root, patience_s=0.05) for _ in names], names)


def check(store: ObjectStore, committers: Sequence[Committer], names: Sequence[Sequence[str]]) -> None:
    """Every record is there exactly once, every acknowledged commit where it was said to be."""
    entries = CommitLog(store).read()  # verifies the chain
    found = [one.attempt for entry in entries for one in entry.records if isinstance(one, AttemptOpened)]
    assert sorted(found) == sorted(name for mine in names for name in mine)
    paths = sorted(info.path for info in store.list("", all_versions=True))
    assert paths == [layout.entry_path(seq) for seq in range(len(entries))]
    commits = [entry.commit for entry in entries]
    assert len(set(commits)) == len(commits)
    for committer in committers:
        assert [entries[entry.head.seq] for entry in committer.acknowledged] == committer.acknowledged
        assert committer.failed.isdisjoint(commits)


@pytest.mark.s3
class TestRacingCommitters:
    @pytest.mark.parametrize(
        ("count", "share"), [(1, 0.4), pytest.param(4, 1.0, marks=pytest.mark.slow)], ids=["few", "many"]
    )
    def test_one_entry_a_number_and_nothing_lost_or_twice(
        self, proxy: FaultProxy, bucket: str, monkeypatch: Patch, count: int, share: float
    ) -> None:
        monkeypatch.setattr("sisa_ray.storage.s3._READ_TIMEOUT_S", 2)
        proxy.delay_s = 3
        faults = {**ANYTHING, Fault.DELAYED: 0.005}
        proxy.choose = at_random(0, {fault: share * probability for fault, probability in faults.items()})
        names = [names_of(number, count) for number in range(20)]
        # So little patience that three faults in a row leave a commit unknown.
        committers = race([S3Store(f"s3://{bucket}/run", patience_s=0.1) for _ in names], names)
        # Which of them strike depends on who comes when.
        assert any(proxy.count(fault, "PUT") for fault in ANYTHING)
        proxy.choose = at_random(0, {})
        check(S3Store(f"s3://{bucket}/run"), committers, names)
        assert any(committer.failed for committer in committers)

    def test_on_a_local_directory(self, tmp_path: Path) -> None:
        root = str(tmp_path / "run")
        names = [names_of(number, 5) for number in range(20)]
        groups = [names[:10], names[10:]]
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(len(groups), mp_context=spawn) as pool:
            raced = pool.map(race_with_faults, [root] * len(groups), range(len(groups)), groups)
            committers = [committer for group in raced for committer in group]
        check(LocalStore(root), committers, names)
        assert any(committer.failed for committer in committers)
        assert any(committer.num_unknown for committer in committers)


@pytest.mark.s3
@pytest.mark.slow
def test_a_server_that_is_killed_loses_no_commit(monkeypatch: Patch) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "60")
    server = weed.WeedServer()
    try:
        server.start()
        weed.use(server.environment, monkeypatch)
        url = f"s3://{server.make_bucket()}/run"
        names = [names_of(number, 40) for number in range(3)]
        committers = [Committer(open_store(url)) for _ in names]
        with ThreadPoolExecutor() as pool:
            working = [
                pool.submit(Committer.commit_all, *pair) for pair in zip(committers, names, strict=True)
            ]
            for num_acknowledged in (15, 75):
                wait_for(lambda: sum(len(c.acknowledged) for c in committers) >= num_acknowledged)  # noqa: B023
                server.stop()
                time.sleep(0.5)
                assert not all(future.done() for future in working)
                server.start()
            for future in working:
                future.result(timeout=120)
        check(open_store(url), committers, names)
        assert [len(committer.acknowledged) for committer in committers] == [40] * 3
    finally:
        server.close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.s3
class TestOneCommit:
    @pytest.fixture
    def impatient(self, proxy: FaultProxy, bucket: str, monkeypatch: Patch) -> S3Store:
        """A store that gives up after three tries, and waits for no answer longer than half a second."""
        monkeypatch.setattr("sisa_ray.storage.s3._READ_TIMEOUT_S", 0.5)
        proxy.delay_s = 60
        return S3Store(f"s3://{bucket}/run", patience_s=0)

    @pytest.mark.parametrize(
        ("fault", "is_applied"), [(Fault.DELAYED, True), (Fault.LOST, True), (Fault.BROKEN, False)]
    )
    def test_without_an_answer_its_outcome_is_unknown(
        self, impatient: S3Store, proxy: FaultProxy, fault: Fault, is_applied: bool
    ) -> None:
        proxy.choose = first_of("PUT", fault, times=100)
        log = CommitLog(impatient, new_id=lambda: "mine")
        with pytest.raises(CommitStateUnknown, match="run the same command again"):
            log.append([AttemptOpened(attempt="a", command="train")], head=Head.START)
        assert proxy.count(fault) == 3  # nobody else tries again behind our back
        assert [entry.commit for entry in log.read()] == (["mine"] if is_applied else [])

    @pytest.mark.parametrize("fault", [Fault.DELAYED, Fault.LOST, Fault.BROKEN, Fault.THROTTLED])
    def test_with_patience_it_succeeds(self, impatient: S3Store, proxy: FaultProxy, fault: Fault) -> None:
        proxy.choose = first_of("PUT", fault)
        log = CommitLog(impatient)
        entry = log.append([AttemptOpened(attempt="a", command="train")], head=Head.START)
        assert proxy.count(fault) == 1
        assert log.read() == [entry]

    def test_that_of_another_is_never_taken_for_ones_own(self, impatient: S3Store, proxy: FaultProxy) -> None:
        theirs = CommitLog(impatient).append([AttemptOpened(attempt="a", command="train")], head=Head.START)
        proxy.choose = first_of("PUT", Fault.LOST)
        with pytest.raises(CommitFailed, match="nothing of it was applied"):
            CommitLog(impatient).append([AttemptOpened(attempt="b", command="train")], head=Head.START)
        assert proxy.count(Fault.LOST) == 1
        assert CommitLog(impatient).read() == [theirs]


def test_a_create_whose_answer_was_lost_is_not_reported_as_refused(monkeypatch: Patch) -> None:
    """It has won; a refusal of what is sent again says nothing about that."""
    with ScriptedS3().running() as server:
        weed.use(server.environment, monkeypatch)
        server.faults = ["lost answer", "refused"]
        with pytest.raises(StorageUnavailable, match=r"ExpiredToken.*may have been applied"):
            S3Store("s3://bucket/run", patience_s=20).create("log/0", b"mine")
        assert server.objects == {"/bucket/run/log/0": b"mine"}


@pytest.mark.s3
class TestObjects:
    def test_what_is_written_is_what_is_read(self, store: S3Store, proxy: FaultProxy) -> None:
        rng = random.Random(0)
        proxy.choose = at_random(1, ANYTHING)
        sizes = [0, 1, 1000, 300_000, 2 * MIB] * 2
        objects = {f"data/{number:02d}": rng.randbytes(size) for number, size in enumerate(sizes)}

        def second_half(path: str) -> bytes:
            size = len(objects[path])
            with store.open(path) as file:
                file.seek(size // 2)
                return file.read(size)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(store.put, objects, [b"old"] * len(objects)))
            list(pool.map(store.put, objects, objects.values()))
            assert list(pool.map(store.get, objects)) == list(objects.values())
            assert list(pool.map(second_half, objects)) == [d[len(d) // 2 :] for d in objects.values()]
            assert {i.path: i.size_bytes for i in store.list()} == {p: len(d) for p, d in objects.items()}
            store.delete(list(objects)[::2])
            assert list(pool.map(store.exists, objects)) == [False, True] * 5
        with pytest.raises(ObjectMissing):
            store.get("data/00")
        assert all(proxy.count(fault) for fault in ANYTHING)
        assert proxy.count(Fault.CUT, "GET")

    def test_a_listing_of_many_pages_is_complete(
        self, store: S3Store, proxy: FaultProxy, monkeypatch: Patch
    ) -> None:
        small_pages(monkeypatch)
        names = [f"data/{number:03d}" for number in range(60)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: store.put(name, b"x"), names))
        proxy.choose = at_random(2, {Fault.CUT: 0.2, Fault.THROTTLED: 0.1})
        assert [info.path for info in store.list("data/")] == names
        assert [info.path for info in store.list(all_versions=True)] == names
        assert [info.path for info in store.list("data/", after="data/029")] == names[30:]
        assert proxy.count(Fault.CUT)

    def test_an_upload_in_parts_survives_faults(
        self, store: S3Store, proxy: FaultProxy, s3_server: weed.WeedServer, bucket: str, monkeypatch: Patch
    ) -> None:
        small_parts(monkeypatch)
        data = random.Random(0).randbytes(16 * MIB)
        part = first_of("PUT", Fault.BROKEN, part="partNumber=2")
        completion = first_of("POST", Fault.LOST, part="uploadId=")
        proxy.choose = lambda method, path: part(method, path) or completion(method, path)
        store.put("large", data)
        assert (proxy.count(Fault.BROKEN), proxy.count(Fault.LOST)) == (1, 1)
        assert store.get("large") == data
        assert s3_server.client().list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []

    def test_all_versions_are_purged(
        self, proxy: FaultProxy, s3_server: weed.WeedServer, monkeypatch: Patch
    ) -> None:
        small_pages(monkeypatch)
        bucket, client = s3_server.make_bucket(versioned=True), s3_server.client()
        proxy.choose = at_random(3, {Fault.THROTTLED: 0.2, Fault.LOST: 0.05, Fault.CUT: 0.05})
        store = S3Store(f"s3://{bucket}/run", patience_s=60)
        names = [f"data/{number}" for number in range(12)]
        for _ in range(3):
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(store.put, names, [os.urandom(10)] * len(names)))
        for name in (*names[::2], "never/there"):
            client.delete_object(Bucket=bucket, Key=f"run/{name}")
        store.put(names[0], b"again")
        client.create_multipart_upload(Bucket=bucket, Key=f"run/{names[1]}")
        client.create_multipart_upload(Bucket=bucket, Key="run/unfinished")
        client.put_object(Bucket=bucket, Key="run2/spared", Body=b"x")

        # At least three versions of each (a put whose answer was lost makes another one).
        listed = [info.path for info in store.list(all_versions=True)]
        assert set(listed) == {*names, "never/there", "unfinished"}
        assert all(listed.count(name) >= 3 for name in names)
        store.delete(set(listed))

        assert list(store.list(all_versions=True)) == []
        left = client.list_object_versions(Bucket=bucket)
        assert [entry["Key"] for entry in left.get("Versions", [])] == ["run2/spared"]
        assert left.get("DeleteMarkers", []) == []
        assert client.list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []
        assert proxy.count(Fault.THROTTLED, "POST") + proxy.count(Fault.THROTTLED, "GET")


def small_pages(monkeypatch: Patch) -> None:
    """Have the server answer listings ten at a time."""
    real = S3Store._call  # noqa: SLF001 - where the number would be given
    sizes = {
        "list_objects_v2": "MaxKeys",
        "list_object_versions": "MaxKeys",
        "list_multipart_uploads": "MaxUploads",
    }

    def call(self: S3Store, path: str, method: str, **arguments: Any) -> dict[str, Any]:
        if method in sizes:
            arguments.setdefault(sizes[method], 10)
        return real(self, path, method, **arguments)

    monkeypatch.setattr(S3Store, "_call", call)


def small_parts(monkeypatch: Patch) -> None:
    """Have objects of more than ten mebibytes uploaded in parts (of five, the least that S3 takes)."""
    real = s3fs.S3FileSystem._pipe_file  # noqa: SLF001 - the store leaves the size to s3fs

    async def pipe_file(self: Any, path: str, data: bytes, **options: Any) -> Any:
        return await real(self, path, data, chunksize=5 * MIB, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_pipe_file", pipe_file)
