"""What a bucket on S3 does with deleted objects, read from its configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC
from typing import Any

import botocore.exceptions as boto

from sisa_ray.core.errors import ObjectMissing, StorageDenied, StorageError
from sisa_ray.core.protection import BucketProtection
from sisa_ray.storage.s3_errors import OperationUnsupported, mapped

Call = Callable[..., dict[str, Any]]
"""``call(method, Bucket=bucket)``: one request, raising what s3fs or botocore raises."""

_ABSENT = {
    "NoSuchLifecycleConfiguration",
    "NoSuchObjectLockConfiguration",
    "NoSuchReplicationConfiguration",
    "ObjectLockConfigurationNotFoundError",
    "ReplicationConfigurationNotFoundError",
}
_MAY_NOT_ASK = {"403", "AccessDenied"}
"""Unlike wrong or expired credentials, with which nothing works."""


def read_s3(call: Call, bucket: str, prefix: str) -> BucketProtection:
    """What ``bucket`` does with deleted objects whose keys begin with ``prefix``.

    What this user may not ask, or the server does not know, is named in ``unread``. All other errors of ``call`` pass
    through: patience and their wording are the store's.
    """
    unread: list[str] = []

    def read(what: str, method: str, permission: str) -> dict[str, Any]:
        try:
            return call(method, Bucket=bucket)
        except Exception as error:
            if _code(error) in _ABSENT:
                return {}
            reason = _why_unread(bucket, error, permission)
            if reason is None:
                raise
            unread.append(f"{what}: {reason}")
            return {}

    versioning = read("versioning", "get_bucket_versioning", "s3:GetBucketVersioning")
    lock = read("object lock", "get_object_lock_configuration", "s3:GetBucketObjectLockConfiguration")
    replication = read("replication", "get_bucket_replication", "s3:GetReplicationConfiguration")
    lifecycle = read("lifecycle", "get_bucket_lifecycle_configuration", "s3:GetLifecycleConfiguration")

    lock = lock.get("ObjectLockConfiguration", {})
    retention = lock.get("Rule", {}).get("DefaultRetention", {})
    actions = list(_actions(lifecycle.get("Rules", []), prefix))
    return BucketProtection(
        versioning=keeps_versions(versioning),
        object_lock=lock.get("ObjectLockEnabled") == "Enabled",
        object_lock_mode=retention.get("Mode"),
        object_lock_days=_retention_days(retention),
        replication=_destinations(replication.get("ReplicationConfiguration", {}).get("Rules", []), prefix),
        lifecycle=tuple(text for text, _ in actions),
        expires_current=tuple(text for text, is_lost in actions if is_lost),
        unread=tuple(unread),
    )


def keeps_versions(versioning: Mapping[str, Any]) -> bool:
    """Whether a bucket with this answer about versioning has, or may have, old versions."""
    return versioning.get("Status") in ("Enabled", "Suspended")


def _code(error: BaseException) -> str | None:
    """The code that the server answered, which s3fs keeps in the cause of the error that it raises."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, boto.ClientError):
        cause = cause.__cause__
    return None if cause is None else str(cause.response.get("Error", {}).get("Code", ""))


def _why_unread(bucket: str, error: Exception, permission: str) -> str | None:
    """Why a part of the configuration stays unknown, None where the error is one of the whole bucket."""
    code = _code(error)
    if code is None:
        return None
    failure = mapped(f"s3://{bucket}", error)
    if isinstance(failure, StorageDenied):
        return f"this user may not ask ({code}); allow {permission}" if code in _MAY_NOT_ASK else None
    if isinstance(failure, OperationUnsupported):
        return f"the server does not support asking ({code})"
    # An answer that only this question gets, such as InvalidArgument, must not keep a run from a lesser server.
    return f"the server answered {code}" if type(failure) in (StorageError, ObjectMissing) else None


def _retention_days(retention: Mapping[str, Any]) -> int | None:
    if "Years" in retention:
        years = int(retention["Years"])
        return 365 * years + -(-years // 4)  # with as many leap days as can be in them
    return retention.get("Days")


def _destinations(rules: list[dict[str, Any]], prefix: str) -> tuple[str, ...]:
    covering = [rule for rule in rules if _covers(rule, prefix)]
    # Only what carries its tags is copied by a rule for tags, and a run tags nothing.
    found = {rule.get("Destination", {}).get("Bucket", "unnamed") for rule in covering if not _tags(rule)}
    return tuple(sorted(found))


def _actions(rules: list[dict[str, Any]], prefix: str) -> Iterator[tuple[str, bool]]:
    """What lifecycle rules do to objects below ``prefix``, and whether the run loses objects in use by it."""
    for rule in rules:
        if not _covers(rule, prefix):
            continue
        limits = _limits(rule, prefix)
        expiry = rule.get("Expiration", {})
        lost = [f"expiry of current objects {_when(expiry)}"] if expiry.keys() & {"Days", "Date"} else []
        others = list(_other_actions(rule))
        for text in lost:
            yield text + limits, not _tags(rule)  # a run tags nothing
        for text in others:
            yield text + limits, False
        if not lost and not others:
            yield f"an action unknown here (rule {rule.get('ID', 'without a name')})" + limits, False


def _other_actions(rule: Mapping[str, Any]) -> Iterator[str]:
    if rule.get("Expiration", {}).get("ExpiredObjectDeleteMarker"):
        yield "removal of deletion markers without versions"
    for move in rule.get("Transitions", []):
        yield f"transition to {move.get('StorageClass')} {_when(move)}"
    for move in rule.get("NoncurrentVersionTransitions", []):
        yield f"transition of noncurrent versions to {move.get('StorageClass')} {_when(move)}"
    if "NoncurrentVersionExpiration" in rule:
        yield f"expiry of noncurrent versions {_when(rule['NoncurrentVersionExpiration'])}"
    if "AbortIncompleteMultipartUpload" in rule:
        yield f"abort of unfinished uploads {_when(rule['AbortIncompleteMultipartUpload'])}"


def _when(action: Mapping[str, Any]) -> str:
    if "Date" in action:
        return f"on {action['Date'].astimezone(UTC).date().isoformat()}"
    names = ("Days", "NoncurrentDays", "DaysAfterInitiation")
    days = next((action[name] for name in names if name in action), 0)
    kept = action.get("NewerNoncurrentVersions")
    return f"after {days} day{'' if days == 1 else 's'}" + (f" except for the newest {kept}" if kept else "")


def _covers(rule: Mapping[str, Any], prefix: str) -> bool:
    """Whether an enabled rule can meet an object below ``prefix``: it is for them all, or for some."""
    own = _prefix(rule)
    return rule.get("Status") == "Enabled" and (own.startswith(prefix) or prefix.startswith(own))


def _filter(rule: Mapping[str, Any]) -> dict[str, Any]:
    conditions = rule.get("Filter", {})
    return {**conditions, **conditions.get("And", {})}


def _prefix(rule: Mapping[str, Any]) -> str:
    # Rules of the older form have it beside the filter.
    return str(_filter(rule).get("Prefix") or rule.get("Prefix") or "")


def _tags(rule: Mapping[str, Any]) -> list[str]:
    conditions = _filter(rule)
    tags = [*conditions.get("Tags", []), *([conditions["Tag"]] if "Tag" in conditions else [])]
    return [f"{tag.get('Key')}={tag.get('Value')}" for tag in tags]


def _limits(rule: Mapping[str, Any], prefix: str) -> str:
    """To which of the objects below ``prefix`` a rule is limited; empty where it is for them all."""
    conditions = _filter(rule)
    limits = {
        "below": _prefix(rule).removeprefix(prefix) if len(_prefix(rule)) > len(prefix) else "",
        "tagged": " ".join(_tags(rule)),
        "larger than": _bytes(conditions.get("ObjectSizeGreaterThan")),
        "smaller than": _bytes(conditions.get("ObjectSizeLessThan")),
    }
    return "".join(f", {name} {value}" for name, value in limits.items() if value)


def _bytes(number: int | None) -> str:
    return "" if number is None else f"{number} bytes"
