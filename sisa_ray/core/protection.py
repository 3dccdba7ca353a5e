"""What a bucket does with deleted objects, and which of it no run can live with."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from sisa_ray.core.errors import ConfigError


class BucketProtection(BaseModel):
    """What outlasts a deletion in a bucket, or deletes by itself. The default is a place that does neither.

    What is in ``unread`` may be there all the same, whatever the other fields say.

    Attributes:
        versioning: whether the bucket keeps old versions, or has kept some.
        object_lock: whether objects can be locked at all, with a default retention or without.
        object_lock_mode: GOVERNANCE or COMPLIANCE, the mode of the default retention.
        object_lock_days: for how many days every new object is locked.
        replication: destination buckets of the enabled rules that copy objects of the run.
        lifecycle: what the enabled rules do to objects of the run, one plain line an action.
        expires_current: those of ``lifecycle`` that delete objects still in use.
        unread: which of versioning, object lock, replication and lifecycle could not be read, and why.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    versioning: bool = False
    object_lock: bool = False
    object_lock_mode: str | None = None
    object_lock_days: int | None = None
    replication: tuple[str, ...] = ()
    lifecycle: tuple[str, ...] = ()
    expires_current: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def refuse_retention(protection: BucketProtection, *, clock_days: int, where: str) -> None:
    """Refuse a bucket that keeps deleted data beyond the legal clock, or deletes what a run still needs.

    Replication, old versions and a lock without a default retention are no reason to refuse: purge deletes the
    versions, and certificates name the rest.

    Args:
        protection: what the bucket does.
        clock_days: the shortest legal clock of the run, in days.
        where: address of the run.

    Raises:
        ConfigError: one line for each reason.
    """
    reasons = []
    days = protection.object_lock_days
    if days is not None and days > clock_days:
        reasons.append(
            f"storage_path: {where} locks every new object for {days} days (object lock, default retention in "
            f"{protection.object_lock_mode} mode), but what is to be forgotten must be deleted within {clock_days} "
            "days (unlearning.basis); shorten the default retention to that, or use a bucket without one"
        )
    if protection.expires_current:
        reasons.append(
            f"storage_path: {where} loses objects in use to lifecycle rules of the bucket "
            f"({'; '.join(protection.expires_current)}), but the log and the checkpoints of a run must stay until "
            "the run deletes them; take this prefix out of those rules, or use another bucket"
        )
    if reasons:
        raise ConfigError("\n".join(reasons))
