"""Protection of buckets: as a real server tells it, and answers that it cannot give."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from sisa_ray.core.errors import BucketMissing, StorageDenied, StorageUnavailable
from sisa_ray.core.protection import BucketProtection
from sisa_ray.storage import s3
from sisa_ray.storage.local import LocalStore
from sisa_ray.storage.protection import read_s3
from sisa_ray.storage.s3 import S3Store
from tests.support import weed

PREFIX = "runs/mnist/"
QUESTIONS = {
    "versioning": "get_bucket_versioning",
    "object lock": "get_object_lock_configuration",
    "replication": "get_bucket_replication",
    "lifecycle": "get_bucket_lifecycle_configuration",
}
ABSENT = {
    "get_object_lock_configuration": "ObjectLockConfigurationNotFoundError",
    "get_bucket_replication": "ReplicationConfigurationNotFoundError",
    "get_bucket_lifecycle_configuration": "NoSuchLifecycleConfiguration",
}


class StubCall:
    """Answers as AWS does for a plain bucket, but for those given: a dictionary, an error, or the code of one."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.answers = {QUESTIONS["versioning"]: {}} | ABSENT | dict(answers)
        self.asked: list[str] = []

    def __call__(self, method: str, **arguments: Any) -> dict[str, Any]:
        assert arguments == {"Bucket": "bucket"}
        self.asked.append(method)
        answer = self.answers[method]
        if isinstance(answer, str):
            answer = as_s3fs_raises(answer, method)
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)


def as_s3fs_raises(code: str, method: str, status: int = 400) -> OSError:
    error = OSError(5, "said the server")
    response: Any = {
        "Error": {"Code": code, "Message": "said"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    error.__cause__ = ClientError(response, method)
    return error


def read(**answers: Any) -> BucketProtection:
    return read_s3(
        StubCall({QUESTIONS[name.replace("_", " ")]: a for name, a in answers.items()}), "bucket", PREFIX
    )


def rules(*given: Mapping[str, Any]) -> dict[str, Any]:
    return {"Rules": [{"Status": "Enabled", "Filter": {"Prefix": ""}, **rule} for rule in given]}


def replicating(*given: Mapping[str, Any]) -> dict[str, Any]:
    return {"ReplicationConfiguration": {"Role": "arn:aws:iam::1:role/r", **rules(*given)}}


def to(bucket: str) -> dict[str, Any]:
    return {"Destination": {"Bucket": f"arn:aws:s3:::{bucket}"}}


EXPIRY = {"Expiration": {"Days": 30}}
TAG = {"Key": "copy", "Value": "yes"}
WIDTHS: dict[str, tuple[dict[str, Any], bool]] = {
    "the whole bucket": ({"Filter": {"Prefix": ""}}, True),
    "an empty filter": ({"Filter": {}}, True),
    "the run": ({"Filter": {"Prefix": PREFIX}}, True),
    "above the run": ({"Filter": {"Prefix": "runs/mn"}}, True),
    "a part of the run": ({"Filter": {"Prefix": "runs/mnist/data/"}}, True),
    "the older form": ({"Filter": {}, "Prefix": "runs/"}, True),
    "its neighbour": ({"Filter": {"Prefix": "runs/mnist2/"}}, False),
    "the older form beside it": ({"Filter": {}, "Prefix": "logs/"}, False),
    "beside it, joined": ({"Filter": {"And": {"Prefix": "logs/", "Tags": [TAG]}}}, False),
    "switched off": ({"Status": "Disabled"}, False),
}
every_width = pytest.mark.parametrize(("rule", "covers"), WIDTHS.values(), ids=WIDTHS)


@pytest.mark.s3
class TestServer:
    @pytest.fixture
    def client(self, s3_bucket: str, s3_server: weed.WeedServer) -> Any:
        return s3_server.client()

    @pytest.fixture
    def locking(self, client: Any, s3_bucket: str) -> str:
        """The name of a bucket that can lock objects."""
        bucket = f"{s3_bucket}-lock"
        client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
        return bucket

    def test_a_plain_bucket(self, s3_bucket: str) -> None:
        assert store_in(s3_bucket).protection() == BucketProtection()

    @pytest.mark.parametrize("status", ["Enabled", "Suspended"])
    def test_old_versions(self, client: Any, s3_server: weed.WeedServer, status: str) -> None:
        bucket = s3_server.make_bucket(versioned=True)
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": status})
        assert store_in(bucket).protection() == BucketProtection(versioning=True)

    def test_a_lock_without_a_default_retention(self, locking: str) -> None:
        assert store_in(locking).protection() == BucketProtection(versioning=True, object_lock=True)

    @pytest.mark.parametrize(
        ("mode", "retention", "days"), [("GOVERNANCE", {"Days": 7}, 7), ("COMPLIANCE", {"Years": 2}, 731)]
    )
    def test_a_lock_with_one(
        self, client: Any, locking: str, mode: str, retention: dict[str, int], days: int
    ) -> None:
        rule = {"DefaultRetention": {"Mode": mode, **retention}}
        lock = {"ObjectLockEnabled": "Enabled", "Rule": rule}
        client.put_object_lock_configuration(Bucket=locking, ObjectLockConfiguration=lock)
        assert store_in(locking).protection() == BucketProtection(
            versioning=True, object_lock=True, object_lock_mode=mode, object_lock_days=days
        )

    def test_lifecycle(self, client: Any, s3_server: weed.WeedServer) -> None:
        bucket = s3_server.make_bucket(versioned=True)
        written = rules(
            {"ID": "a", "Filter": {"Prefix": PREFIX}, **EXPIRY},
            {"ID": "b", "NoncurrentVersionExpiration": {"NoncurrentDays": 14}},
            {"ID": "c", "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}},
            {"ID": "d", "Filter": {"Prefix": "runs/other/"}, "Expiration": {"Days": 3}},
            {"ID": "e", "Filter": {"Tag": TAG}, "Expiration": {"Days": 4}},
            {"ID": "f", "Status": "Disabled", "Expiration": {"Days": 5}},
        )
        client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=written)
        assert store_in(bucket).protection() == BucketProtection(
            versioning=True,
            lifecycle=(
                "expiry of current objects after 30 days",
                "expiry of noncurrent versions after 14 days",
                "abort of unfinished uploads after 1 day",
                "expiry of current objects after 4 days, tagged copy=yes",
            ),
            expires_current=("expiry of current objects after 30 days",),
        )
        below = S3Store(f"s3://{bucket}/elsewhere", patience_s=0).protection()
        assert below.expires_current == ()

    def test_who_may_not_ask_does_not_take_silence_for_absence(
        self, client: Any, locking: str, s3_server: weed.WeedServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reader = (weed.READ_ONLY_ACCESS_KEY, weed.READ_ONLY_SECRET_KEY)
        weed.use(weed.s3_environment(s3_server.endpoint_url, *reader), monkeypatch)
        assert store_in(locking).protection() == BucketProtection(
            versioning=True,
            unread=(
                "object lock: this user may not ask (AccessDenied); allow s3:GetBucketObjectLockConfiguration",
            ),
        )

    def test_wrong_credentials_are_an_error(
        self, s3_bucket: str, s3_server: weed.WeedServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        weed.use(weed.s3_environment(s3_server.endpoint_url, "nobody", "wrong"), monkeypatch)
        with pytest.raises(StorageDenied, match="InvalidAccessKeyId"):
            store_in(s3_bucket).protection()

    def test_a_missing_bucket_is_an_error(self, s3_bucket: str) -> None:
        with pytest.raises(BucketMissing, match="correct storage_path"):
            store_in(f"{s3_bucket}-not").protection()


def store_in(bucket: str) -> S3Store:
    return S3Store(f"s3://{bucket}/{PREFIX}", patience_s=0)


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    weed.use(weed.s3_environment("http://127.0.0.1:9", "key", "secret"), monkeypatch)
    with pytest.raises(StorageUnavailable, match="run the same command again"):
        store_in("bucket").protection()


def test_a_passing_failure_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    call = StubCall({})
    failures: list[Exception] = [
        as_s3fs_raises("SlowDown", "get_bucket_replication", 503),
        EndpointConnectionError(endpoint_url="http://127.0.0.1:9"),
    ]

    class Filesystem:
        def call_s3(self, method: str, **arguments: Any) -> dict[str, Any]:
            if method == "get_bucket_replication" and failures:
                raise failures.pop(0)
            return call(method, **arguments)

    monkeypatch.setattr(s3, "_filesystem", Filesystem)
    assert store_in("bucket").protection() == BucketProtection()
    assert failures == []


def test_a_plain_bucket_is_asked_four_times() -> None:
    call = StubCall({})
    assert read_s3(call, "bucket", PREFIX) == BucketProtection()
    assert call.asked == list(QUESTIONS.values())


def test_a_directory(tmp_path: Path) -> None:
    assert LocalStore(str(tmp_path)).protection() == BucketProtection()


def test_it_travels_to_other_processes() -> None:
    protection = read(replication=replicating(to("copy")))
    assert pickle.loads(pickle.dumps(protection)) == protection


class TestReplication:
    @every_width
    def test_rules_that_meet_the_run(self, rule: dict[str, Any], covers: bool) -> None:
        found = read(replication=replicating({**to("copy"), **rule})).replication
        assert found == (("arn:aws:s3:::copy",) if covers else ())

    def test_each_destination_once(self) -> None:
        answer = replicating(to("b"), to("a"), {**to("b"), "Filter": {"Prefix": "runs/"}})
        assert read(replication=answer).replication == ("arn:aws:s3:::a", "arn:aws:s3:::b")

    @pytest.mark.parametrize("tagged", [{"Tag": TAG}, {"And": {"Prefix": "runs/", "Tags": [TAG]}}])
    def test_rules_for_tags_copy_nothing_of_a_run(self, tagged: dict[str, Any]) -> None:
        assert read(replication=replicating({**to("copy"), "Filter": tagged})).replication == ()

    def test_an_unnamed_destination_is_not_passed_over(self) -> None:
        assert read(replication=replicating({"Destination": {}})).replication == ("unnamed",)


class TestLifecycle:
    @every_width
    def test_rules_that_meet_the_run(self, rule: dict[str, Any], covers: bool) -> None:
        protection = read(lifecycle=rules({**EXPIRY, **rule}))
        assert bool(protection.lifecycle) == covers
        assert protection.expires_current == protection.lifecycle

    @pytest.mark.parametrize(
        ("action", "said"),
        [
            (
                {"Transitions": [{"Days": 10, "StorageClass": "GLACIER"}]},
                ["transition to GLACIER after 10 days"],
            ),
            (
                {
                    "NoncurrentVersionTransitions": [
                        {"NoncurrentDays": 1, "StorageClass": "STANDARD_IA"},
                        {"NoncurrentDays": 90, "StorageClass": "GLACIER", "NewerNoncurrentVersions": 2},
                    ]
                },
                [
                    "transition of noncurrent versions to STANDARD_IA after 1 day",
                    "transition of noncurrent versions to GLACIER after 90 days except for the newest 2",
                ],
            ),
            (
                {"NoncurrentVersionExpiration": {"NoncurrentDays": 30, "NewerNoncurrentVersions": 3}},
                ["expiry of noncurrent versions after 30 days except for the newest 3"],
            ),
            (
                {"Expiration": {"ExpiredObjectDeleteMarker": True}},
                ["removal of deletion markers without versions"],
            ),
            ({"ID": "x"}, ["an action unknown here (rule x)"]),
        ],
    )
    def test_what_spares_objects_in_use(self, action: dict[str, Any], said: list[str]) -> None:
        protection = read(lifecycle=rules(action))
        assert list(protection.lifecycle) == said
        assert protection.expires_current == ()

    @pytest.mark.parametrize(
        ("rule", "said"),
        [
            ({"Filter": {"Prefix": PREFIX}}, "after 30 days"),
            ({"Filter": {"Prefix": f"{PREFIX}data/"}}, "after 30 days, below data/"),
            (
                {"Filter": {"And": {"Prefix": "runs/", "ObjectSizeGreaterThan": 0, "ObjectSizeLessThan": 9}}},
                "after 30 days, larger than 0 bytes, smaller than 9 bytes",
            ),
            ({"Expiration": {"Date": datetime(2030, 1, 1, tzinfo=UTC)}}, "on 2030-01-01"),
        ],
    )
    def test_what_deletes_some_of_them(self, rule: dict[str, Any], said: str) -> None:
        found = read(lifecycle=rules({**EXPIRY, **rule}))
        assert found.expires_current == found.lifecycle == (f"expiry of current objects {said}",)

    def test_rules_for_tags_are_named_but_delete_nothing_of_a_run(self) -> None:
        conditions = {"Prefix": "runs/", "Tags": [TAG, {"Key": "old", "Value": "1"}]}
        found = read(lifecycle=rules({**EXPIRY, "Filter": {"And": conditions}}))
        assert found.lifecycle == ("expiry of current objects after 30 days, tagged copy=yes old=1",)
        assert found.expires_current == ()

    def test_an_empty_configuration_is_none(self) -> None:
        assert read(lifecycle={}) == BucketProtection()


class TestUnread:
    @pytest.mark.parametrize("name", QUESTIONS)
    @pytest.mark.parametrize(
        ("code", "said"),
        [
            ("AccessDenied", "this user may not ask (AccessDenied); allow s3:Get"),
            ("403", "this user may not ask (403); allow s3:Get"),
            ("NotImplemented", "the server does not support asking (NotImplemented)"),
            ("MethodNotAllowed", "the server does not support asking (MethodNotAllowed)"),
            ("InvalidArgument", "the server answered InvalidArgument"),
            ("NoSuchKey", "the server answered NoSuchKey"),
        ],
    )
    def test_what_cannot_be_read_is_named(self, name: str, code: str, said: str) -> None:
        protection = read(**{name.replace(" ", "_"): code})
        (line,) = protection.unread
        assert line.startswith(f"{name}: {said}")
        assert protection == BucketProtection(unread=(line,))

    def test_the_rest_is_read_all_the_same(self) -> None:
        lock = {
            "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 90}},
            "ObjectLockEnabled": "Enabled",
        }
        protection = read(
            versioning="AccessDenied",
            object_lock={"ObjectLockConfiguration": lock},
            replication=replicating(to("copy")),
            lifecycle="NotImplemented",
        )
        assert [line.partition(":")[0] for line in protection.unread] == ["versioning", "lifecycle"]
        assert (protection.object_lock_mode, protection.object_lock_days) == ("COMPLIANCE", 90)
        assert protection.replication == ("arn:aws:s3:::copy",)

    @pytest.mark.parametrize("code", ["NoSuchObjectLockConfiguration", "NoSuchReplicationConfiguration"])
    def test_other_words_for_none(self, code: str) -> None:
        assert read(object_lock=code, replication=code) == BucketProtection()

    @pytest.mark.parametrize("name", QUESTIONS)
    @pytest.mark.parametrize(
        "code", ["NoSuchBucket", "ExpiredToken", "SignatureDoesNotMatch", "InternalError"]
    )
    def test_errors_of_the_whole_bucket_pass_through(self, name: str, code: str) -> None:
        error = as_s3fs_raises(code, QUESTIONS[name])
        with pytest.raises(OSError, match="said the server") as caught:
            read(**{name.replace(" ", "_"): error})
        assert caught.value is error

    @pytest.mark.parametrize("error", [KeyError("x"), NoCredentialsError(), OSError("x")], ids=repr)
    def test_what_is_no_answer_passes_through(self, error: Exception) -> None:
        with pytest.raises(type(error)) as caught:
            read(replication=error)
        assert caught.value is error


@pytest.mark.parametrize(
    ("years", "days"), [(1, 366), (2, 731), (4, 1461), (5, 1827), (10, 3653), (100, 36525)]
)
def test_years_are_never_shorter_than_calendar_years(years: int, days: int) -> None:
    retention = {"Mode": "GOVERNANCE", "Years": years}
    found = read(object_lock={"ObjectLockConfiguration": {"Rule": {"DefaultRetention": retention}}})
    assert found.object_lock_days == days
    spans = [datetime(y + years, 1, 1, tzinfo=UTC) - datetime(y, 1, 1, tzinfo=UTC) for y in range(2024, 2032)]
    assert days >= max(span.days for span in spans)
