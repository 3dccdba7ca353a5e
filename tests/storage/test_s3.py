"""S3: versions, uploads, refusals and outages of a real server, and faults that only a scripted one shows."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from sisa_ray.core.errors import (
    BucketMissing,
    ConfigError,
    ObjectExists,
    StorageDenied,
    StorageError,
    StorageUnavailable,
)
from sisa_ray.storage.objects import ObjectStore
from sisa_ray.storage.s3 import S3Store
from tests.support import weed
from tests.support.scripted_s3 import Fault, ScriptedS3

Patch = pytest.MonkeyPatch
MIB = 2**20

ACTIONS: dict[str, Callable[[ObjectStore], object]] = {
    "get": lambda store: store.get("a"),
    "open": lambda store: store.open("a"),
    "put": lambda store: store.put("a", b"x"),
    "create": lambda store: store.create("a", b"x"),
    "list": lambda store: list(store.list()),
    "list all": lambda store: list(store.list(all_versions=True)),
    "delete": lambda store: store.delete(["a"]),
    "exists": lambda store: store.exists("a"),
}
every_action = pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)


@pytest.fixture
def store(s3_bucket: str) -> S3Store:
    return S3Store(f"s3://{s3_bucket}/run", patience_s=0.2)


@pytest.fixture
def versioned(s3_bucket: str, s3_server: weed.WeedServer) -> S3Store:
    """A store in a bucket that keeps versions."""
    return S3Store(f"s3://{s3_server.make_bucket(versioned=True)}/run", patience_s=0.2)


@pytest.fixture
def scripted(monkeypatch: Patch) -> Iterator[ScriptedS3]:
    with ScriptedS3().running() as server:
        weed.use(server.environment, monkeypatch)
        yield server


def bucket_of(store: S3Store) -> str:
    return store.url.removeprefix("s3://").partition("/")[0]


def listed(store: S3Store, prefix: str = "") -> list[str]:
    return [info.path for info in store.list(prefix, all_versions=True)]


@pytest.mark.s3
class TestLargeObjects:
    @pytest.mark.parametrize("num_bytes", [99 * MIB, 100 * MIB, 151 * MIB + 3])
    def test_bodies_in_one_piece_and_in_parts(self, store: S3Store, num_bytes: int) -> None:
        data = random.Random(0).randbytes(num_bytes)
        store.put("a", memoryview(data))
        assert store.get("a") == data
        with store.open("a") as file:
            file.seek(num_bytes - 5)
            assert file.read() == data[-5:]
        assert listed(store) == ["a"]

    def test_an_interrupted_upload_leaves_the_old_object(
        self, store: S3Store, s3_server: weed.WeedServer
    ) -> None:
        store.put("a", b"old")
        unfinished_upload(s3_server.client(), bucket_of(store), "run/a")
        assert store.get("a") == b"old"
        assert [info.path for info in store.list()] == ["a"]


def unfinished_upload(client: Any, bucket: str, key: str) -> None:
    """What a writer leaves that was killed in the middle of a large object."""
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=bytes(5 * MIB))


@pytest.mark.s3
class TestPurge:
    def test_unfinished_uploads_are_listed_and_deleted(
        self, store: S3Store, s3_server: weed.WeedServer
    ) -> None:
        client, bucket = s3_server.client(), bucket_of(store)
        for key in ("run/data/a", "run/data/b", "other/c"):
            unfinished_upload(client, bucket, key)
        assert sorted(listed(store, "data/")) == ["data/a", "data/b"]
        assert list(store.list()) == []
        store.delete(["data/a"])
        assert listed(store) == ["data/b"]
        store.delete(["data/b"])
        left = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
        assert [upload["Key"] for upload in left] == ["other/c"]

    def test_all_versions_are_deleted(self, versioned: S3Store, s3_server: weed.WeedServer) -> None:
        client, bucket = s3_server.client(), bucket_of(versioned)
        for number in range(3):
            versioned.put("data/a", b"%d" % number)
        versioned.put("data/ab", b"stays")
        client.delete_object(Bucket=bucket, Key="run/data/a")
        assert [info.path for info in versioned.list()] == ["data/ab"]
        assert sorted(listed(versioned)) == ["data/a"] * 4 + [
            "data/ab"
        ]  # three versions and a deletion marker
        versioned.delete(["data/a"])
        assert listed(versioned) == ["data/ab"]
        answer = client.list_object_versions(Bucket=bucket)
        assert [entry["Key"] for entry in answer.get("Versions", [])] == ["run/data/ab"]
        assert answer.get("DeleteMarkers", []) == []

    def test_versions_from_before_versioning_was_suspended(
        self, versioned: S3Store, s3_server: weed.WeedServer
    ) -> None:
        versioned.put("a", b"1")
        s3_server.client().put_bucket_versioning(
            Bucket=bucket_of(versioned), VersioningConfiguration={"Status": "Suspended"}
        )
        versioned.put("a", b"2")
        versioned.delete(["a"])
        assert listed(versioned) == []

    def test_many_versions_of_many_objects(self, versioned: S3Store) -> None:
        names = [f"data/shard={number:05d}/part" for number in range(30)]
        for name in [*names, *names, "data/spared", "log/0"]:
            versioned.put(name, b"x")
        versioned.delete(names)
        assert sorted(listed(versioned)) == ["data/spared", "log/0"]

    def test_who_may_not_ask_for_versioning_does_not_conclude_that_there_are_none(
        self, versioned: S3Store, monkeypatch: Patch
    ) -> None:
        versioned.put("a", b"1")
        versioned.put("a", b"2")
        fresh = S3Store(versioned.url, patience_s=0)
        real = S3Store._call  # noqa: SLF001 - no server refuses this alone without a policy of its own

        def refuse(self: S3Store, path: str, method: str, **arguments: Any) -> dict[str, Any]:
            if method == "get_bucket_versioning":
                raise StorageDenied("no")
            return real(self, path, method, **arguments)

        monkeypatch.setattr(S3Store, "_call", refuse)
        assert listed(fresh) == ["a", "a"]
        fresh.delete(["a"])
        assert listed(fresh) == []

    def test_a_deletion_that_is_refused_is_an_error(
        self, store: S3Store, s3_server: weed.WeedServer, monkeypatch: Patch
    ) -> None:
        store.put("a", b"x")
        readers = weed.s3_environment(
            s3_server.endpoint_url, weed.READ_ONLY_ACCESS_KEY, weed.READ_ONLY_SECRET_KEY
        )
        with monkeypatch.context() as patch:
            weed.use(readers, patch)
            with pytest.raises(StorageDenied, match=r"run/a: could not be deleted.*allow s3:DeleteObject"):
                store.delete(["a"])
        assert store.exists("a")


@pytest.mark.s3
def test_more_objects_than_a_page_of_a_listing(store: S3Store) -> None:
    names = [f"log/{number:05d}" for number in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.put(name, b"x"), names))
    assert [info.path for info in store.list("log/")] == names
    assert listed(store) == names
    store.delete(names)
    assert listed(store) == []


@pytest.mark.s3
class TestRefusals:
    @every_action
    def test_a_missing_bucket(self, s3_bucket: str, action: Callable[[ObjectStore], object]) -> None:
        missing = S3Store(f"s3://{s3_bucket}-not/run", patience_s=60)
        with pytest.raises(BucketMissing) as caught:
            action(missing)
        message = str(caught.value)
        assert message.startswith(f"s3://{s3_bucket}-not/run")
        assert "the bucket does not exist at http://127.0.0.1:" in message
        assert "correct storage_path" in message

    @every_action
    @pytest.mark.parametrize(
        ("access_key", "secret_key", "said"),
        [
            ("nobody", "wrong", "InvalidAccessKeyId"),
            (weed.ACCESS_KEY, "wrong", "SignatureDoesNotMatch"),
        ],
    )
    def test_wrong_credentials(
        self,
        store: S3Store,
        s3_server: weed.WeedServer,
        monkeypatch: Patch,
        action: Callable[[ObjectStore], object],
        access_key: str,
        secret_key: str,
        said: str,
    ) -> None:
        weed.use(weed.s3_environment(s3_server.endpoint_url, access_key, secret_key), monkeypatch)
        with pytest.raises(StorageDenied) as caught:
            action(store)
        message = str(caught.value)
        assert store.url in message
        assert f"{s3_server.endpoint_url} refused ({said}" in message
        assert "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" in message
        assert "wrong" not in message

    @pytest.mark.parametrize("name", ["put", "create"])
    def test_credentials_that_may_only_read(
        self, store: S3Store, s3_server: weed.WeedServer, monkeypatch: Patch, name: str
    ) -> None:
        weed.use(
            weed.s3_environment(s3_server.endpoint_url, weed.READ_ONLY_ACCESS_KEY, weed.READ_ONLY_SECRET_KEY),
            monkeypatch,
        )
        with pytest.raises(StorageDenied, match="AccessDenied"):
            ACTIONS[name](store)
        assert list(store.list()) == []

    def test_no_credentials_at_all(
        self, store: S3Store, s3_server: weed.WeedServer, monkeypatch: Patch
    ) -> None:
        names = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_EC2_METADATA_DISABLED")
        weed.use({name: s3_server.environment[name] for name in names}, monkeypatch)
        with pytest.raises(StorageDenied, match=r"there are no credentials for S3.*check AWS_ACCESS_KEY_ID"):
            store.get("a")


class TestEndpoint:
    def test_nobody_listens(self, monkeypatch: Patch) -> None:
        weed.use(weed.s3_environment("http://127.0.0.1:9", "key", "secret"), monkeypatch)
        with pytest.raises(StorageUnavailable) as caught:
            S3Store("s3://bucket/run", patience_s=0.2).get("spec.json")
        message = str(caught.value)
        assert message.startswith("s3://bucket/run/spec.json: storage did not answer for")
        assert "http://127.0.0.1:9" in message
        assert "run the same command again" in message

    def test_an_address_without_a_scheme(self, monkeypatch: Patch) -> None:
        weed.use(weed.s3_environment("localhost:9000", "key", "secret"), monkeypatch)
        with pytest.raises(ConfigError, match=r"AWS_ENDPOINT_URL: .*localhost:9000.*write it like https://"):
            S3Store("s3://bucket/run", patience_s=60).get("spec.json")

    def test_a_name_that_no_bucket_can_have(self, scripted: ScriptedS3) -> None:
        with pytest.raises(StorageError, match="Bad Bucket"):
            S3Store("s3://Bad Bucket/run", patience_s=60).get("spec.json")

    @pytest.mark.s3
    def test_each_call_follows_the_environment(
        self, store: S3Store, s3_server: weed.WeedServer, monkeypatch: Patch
    ) -> None:
        """A process may change its credentials; a store made before is not stuck with the old ones."""
        store.put("a", b"x")
        with monkeypatch.context() as patch:
            weed.use(weed.s3_environment(s3_server.endpoint_url, "nobody", "wrong"), patch)
            with pytest.raises(StorageDenied):
                store.get("a")
        assert store.get("a") == b"x"


@pytest.mark.s3
class TestOutage:
    @pytest.fixture
    def server(self) -> Iterator[weed.WeedServer]:
        """A server of its own, since it goes down."""
        server = weed.WeedServer()
        try:
            server.start()
            yield server
        finally:
            server.close()

    def test_work_resumes_when_the_server_is_back(
        self, server: weed.WeedServer, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
    ) -> None:
        weed.use(server.environment, monkeypatch)
        store = S3Store(f"s3://{server.make_bucket()}/run", patience_s=120)
        large = random.Random(0).randbytes(120 * MIB)
        for path in ("a", "b"):
            store.put(path, path.encode())
        with store.open("a") as opened:
            server.stop()

            impatient = S3Store(store.url, patience_s=0.5)
            for action in ACTIONS.values():
                with pytest.raises(
                    StorageUnavailable, match=r"run.*did not answer.*run the same command again"
                ):
                    action(impatient)

            with ThreadPoolExecutor() as pool, caplog.at_level(logging.WARNING, "sisa_ray.storage"):
                waiting: dict[str, Future[Any]] = {
                    "get": pool.submit(store.get, "a"),
                    "read": pool.submit(opened.read),
                    "put": pool.submit(store.put, "large", large),
                    "create": pool.submit(store.create, "log/0", b"x"),
                    "delete": pool.submit(store.delete, ["b"]),
                }
                threading.Event().wait(3.5)
                assert not any(future.done() for future in waiting.values())
                server.start()
                answers = {name: future.result(timeout=120) for name, future in waiting.items()}
        assert (answers["get"], answers["read"]) == (b"a", b"a")
        assert store.get("large") == large
        assert [info.path for info in store.list()] == ["a", "large", "log/0"]
        assert any("waiting for storage" in message and store.url in message for message in caplog.messages)
        assert any("storage is back" in message for message in caplog.messages)


class TestFaults:
    @pytest.fixture
    def flaky(self, scripted: ScriptedS3) -> S3Store:
        return S3Store("s3://bucket/run", patience_s=20)

    @pytest.mark.parametrize("fault", ["throttled", "server error", "cut body"])
    def test_reading_is_tried_again(self, flaky: S3Store, scripted: ScriptedS3, fault: Fault) -> None:
        flaky.put("a", b"0123456789")
        scripted.faults = [fault] * 3
        assert flaky.get("a") == b"0123456789"
        assert scripted.requests == ["PUT /bucket/run/a"] + ["GET /bucket/run/a"] * 4

    @pytest.mark.parametrize("fault", ["throttled", "server error", "lost answer"])
    def test_writing_is_tried_again(self, flaky: S3Store, scripted: ScriptedS3, fault: Fault) -> None:
        scripted.faults = [fault] * 3
        flaky.put("a", b"x")
        assert flaky.get("a") == b"x"
        assert scripted.requests.count("PUT /bucket/run/a") == 4

    def test_a_create_that_won_and_was_not_told_finds_its_object(
        self, flaky: S3Store, scripted: ScriptedS3
    ) -> None:
        scripted.faults = ["lost answer"]
        with pytest.raises(ObjectExists):
            flaky.create("log/0", b"mine")
        assert flaky.get("log/0") == b"mine"

    def test_a_create_that_may_have_won_is_not_reported_as_refused(
        self, flaky: S3Store, scripted: ScriptedS3
    ) -> None:
        scripted.faults = ["server error", "refused"]
        with pytest.raises(StorageUnavailable, match=r"ExpiredToken.*may have been applied"):
            flaky.create("log/0", b"mine")
        scripted.faults = ["refused"]
        with pytest.raises(StorageDenied, match="ExpiredToken"):
            flaky.create("log/1", b"mine")

    def test_patience_with_a_server_that_throttles_ends(self, scripted: ScriptedS3) -> None:
        scripted.faults = ["throttled"] * 100
        with pytest.raises(StorageUnavailable, match="SlowDown: Please reduce your request rate"):
            S3Store("s3://bucket/run", patience_s=0.5).get("a")
        assert len(scripted.requests) < 10  # nobody else tries again behind our back

    def test_a_server_that_ignores_conditions_is_refused(self, flaky: S3Store, scripted: ScriptedS3) -> None:
        """With it, two processes could both win a log entry."""
        scripted.knows_conditions = False
        with pytest.raises(StorageError, match="ignores the condition If-None-Match"):
            flaky.create("spec.json", b"{}")

    def test_conditions_are_checked_once(self, flaky: S3Store, scripted: ScriptedS3) -> None:
        for number in range(3):
            flaky.create(f"log/{number}", b"x")
        assert len(scripted.requests) == 4

    def test_random_numbers_of_recipes_are_left_alone(self, flaky: S3Store, scripted: ScriptedS3) -> None:
        """Checkpoints are written while the next stage draws from the global generator."""
        scripted.faults = ["throttled"] * 3
        before = random.getstate()
        flaky.put("a", b"x")
        assert random.getstate() == before
