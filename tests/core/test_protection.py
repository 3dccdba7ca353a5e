from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from sisa_ray.core.errors import ConfigError
from sisa_ray.core.protection import BucketProtection, refuse_retention

RUN = "s3://bucket/runs/mnist"
MODES = ["GOVERNANCE", "COMPLIANCE"]
days = st.integers(1, 40_000)


def refusal(protection: BucketProtection, *, clock_days: int = 28) -> str | None:
    """Why the bucket is refused, None where it is not."""
    try:
        refuse_retention(protection, clock_days=clock_days, where=RUN)
    except ConfigError as error:
        return str(error)
    return None


@given(days, days, st.sampled_from(MODES))
@example(28, 28, "GOVERNANCE")
@example(29, 28, "GOVERNANCE")
@example(29, 28, "COMPLIANCE")
def test_a_lock_is_refused_where_it_outlasts_the_clock(lock_days: int, clock_days: int, mode: str) -> None:
    locked = BucketProtection(
        versioning=True, object_lock=True, object_lock_mode=mode, object_lock_days=lock_days
    )
    message = refusal(locked, clock_days=clock_days)
    assert (message is not None) == (lock_days > clock_days)


@given(days)
def test_the_longest_lock_that_is_fine(clock_days: int) -> None:
    def lock(days: int) -> BucketProtection:
        return BucketProtection(object_lock=True, object_lock_mode="COMPLIANCE", object_lock_days=days)

    assert refusal(lock(clock_days), clock_days=clock_days) is None
    assert refusal(lock(clock_days + 1), clock_days=clock_days) is not None


@pytest.mark.parametrize("mode", MODES)
def test_the_refusal_of_a_lock_says_field_value_rule_and_fix(mode: str) -> None:
    locked = BucketProtection(object_lock=True, object_lock_mode=mode, object_lock_days=365)
    assert refusal(locked) == (
        f"storage_path: {RUN} locks every new object for 365 days (object lock, default retention in {mode} mode), "
        "but what is to be forgotten must be deleted within 28 days (unlearning.basis); shorten the default "
        "retention to that, or use a bucket without one"
    )


def test_a_bucket_that_expires_objects_in_use_is_refused() -> None:
    rule = "expiry of current objects after 30 days"
    expiring = BucketProtection(
        lifecycle=("abort of unfinished uploads after 3 days", rule), expires_current=(rule,)
    )
    assert refusal(expiring, clock_days=40_000) == (
        f"storage_path: {RUN} loses objects in use to lifecycle rules of the bucket ({rule}), but the log and the "
        "checkpoints of a run must stay until the run deletes them; take this prefix out of those rules, or use "
        "another bucket"
    )


def test_all_reasons_are_told_at_once() -> None:
    bad = BucketProtection(
        object_lock=True, object_lock_mode="COMPLIANCE", object_lock_days=29, expires_current=("expiry",)
    )
    message = refusal(bad)
    assert message is not None
    locks, loses = message.splitlines()
    assert "locks every new object for 29 days" in locks
    assert "loses objects in use" in loses


@pytest.mark.parametrize(
    "fine",
    [
        BucketProtection(),
        BucketProtection(versioning=True),
        BucketProtection(versioning=True, object_lock=True),
        BucketProtection(replication=("arn:aws:s3:::copy",)),
        BucketProtection(lifecycle=("transition to GLACIER after 10 days",)),
        BucketProtection(unread=("object lock: this user may not ask (AccessDenied)",)),
    ],
    ids=["nothing", "versions", "a lock without a default", "replication", "lifecycle", "unread"],
)
def test_what_a_run_can_live_with(fine: BucketProtection) -> None:
    assert refusal(fine, clock_days=1) is None


def test_a_record_of_it_reads_back_and_cannot_be_changed() -> None:
    protection = BucketProtection(versioning=True, replication=("b",), unread=("lifecycle: no",))
    assert BucketProtection.model_validate_json(protection.model_dump_json()) == protection
    with pytest.raises(ValidationError, match="frozen"):
        protection.versioning = False
    with pytest.raises(ValidationError, match="Extra inputs"):
        BucketProtection.model_validate({"mfa": True})
