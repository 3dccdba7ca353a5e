"""A bucket on S3 (or whatever speaks its protocol) as object storage, through s3fs.

Endpoint and credentials come from the usual environment: ``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, …
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, TypeVar, cast

import aiohttp
import botocore.exceptions as boto
import s3fs

from sisa_ray.core.errors import (
    BucketMissing,
    ConfigError,
    ObjectExists,
    ObjectMissing,
    StorageDenied,
    StorageError,
    StorageFull,
)
from sisa_ray.storage.objects import ObjectInfo, ObjectStore
from sisa_ray.storage.retry import DEFAULT_PATIENCE_S, Transient, with_patience

T = TypeVar("T")

_CONNECT_TIMEOUT_S = 5
_READ_TIMEOUT_S = 60
_DELETE_AT_ONCE = 1000
_BLOCK_BYTES = 8 * 2**20

_DENIED = {
    "403",
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "RequestTimeTooSkewed",
}
_PASSING = {
    "500",
    "502",
    "503",
    "504",
    "409",
    "ConditionalRequestConflict",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
}
_MISSING = {"404", "NoSuchKey", "NoSuchUpload", "NoSuchVersion"}
_EXISTS = {"412", "PreconditionFailed"}
_FULL = {"507", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"}
_UNSUPPORTED = {"501", "405", "NotImplemented", "MethodNotAllowed"}
_PASSING_ERRORS = (
    aiohttp.ClientError,
    asyncio.TimeoutError,
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    boto.ResponseStreamingError,
    ConnectionError,
    TimeoutError,
)


class S3Store:
    """See :class:`~sisa_ray.storage.objects.ObjectStore`."""

    def __init__(self, url: str, *, patience_s: float = DEFAULT_PATIENCE_S) -> None:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not bucket:
            raise ConfigError(f"storage: {url} names no bucket; write s3://bucket or s3://bucket/prefix")
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._patience_s = patience_s
        self._is_versioned: bool | None = None

    @property
    def url(self) -> str:
        """The root."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def get(self, path: str) -> bytes:
        """All bytes of an object."""
        return self._patiently(path, lambda fs: cast(bytes, fs.cat_file(self._full(path))))

    def open(self, path: str) -> BinaryIO:
        """An object to read in pieces."""

        def open_now(fs: Any) -> BinaryIO:
            return cast(BinaryIO, fs.open(self._full(path), "rb", block_size=_BLOCK_BYTES))

        return self._patiently(path, open_now)

    def put(self, path: str, data: bytes | memoryview) -> None:
        """Write an object whole."""
        body = bytes(data)
        self._patiently(path, lambda fs: fs.pipe_file(self._full(path), body))

    def create(self, path: str, data: bytes) -> None:
        """Write an object if there is none (``If-None-Match: *``)."""
        self._patiently(path, lambda fs: fs.pipe_file(self._full(path), data, mode="create"))

    def list(self, prefix: str = "", *, all_versions: bool = False) -> Iterator[ObjectInfo]:
        """Objects below a prefix, page by page from the server."""
        if not all_versions:
            pages = self._pages(prefix, "list_objects_v2", ("ContinuationToken", "NextContinuationToken"))
            return (self._info(entry) for page in pages for entry in page.get("Contents", []))
        return self._list_everything(prefix)

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects with all their versions, and uploads that were never finished."""
        wanted = {self._prefix + path for path in paths}
        if not wanted:
            return
        keys: list[dict[str, str]] = [{"Key": key} for key in sorted(wanted)]
        if self._versioned():
            keys = [
                {"Key": entry["Key"], "VersionId": entry["VersionId"]}
                for key in sorted(wanted)
                for entry in self._versions(key.removeprefix(self._prefix))
                if entry["Key"] == key
            ]
        for first in range(0, len(keys), _DELETE_AT_ONCE):
            batch = {"Objects": keys[first : first + _DELETE_AT_ONCE], "Quiet": True}
            answer = self._call("", "delete_objects", Delete=batch)
            for error in answer.get("Errors", []):
                if error.get("Code") not in _MISSING:
                    raise StorageDenied(
                        f"s3://{self._bucket}/{error.get('Key')}: could not be deleted: {error.get('Code')} "
                        f"{error.get('Message', '')}; allow s3:DeleteObject and s3:DeleteObjectVersion"
                    )
        for upload in self._uploads(""):
            if upload["Key"] in wanted:
                try:
                    self._call("", "abort_multipart_upload", Key=upload["Key"], UploadId=upload["UploadId"])
                except ObjectMissing:
                    continue

    def exists(self, path: str) -> bool:
        """Whether there is an object at ``path``."""
        try:
            self._call(path, "head_object", Key=self._prefix + path)
        except ObjectMissing:
            return False
        return True

    def child(self, prefix: str) -> ObjectStore:
        """The store rooted at ``prefix``."""
        return S3Store(f"{self.url}/{prefix}", patience_s=self._patience_s)

    def _list_everything(self, prefix: str) -> Iterator[ObjectInfo]:
        entries: Iterable[dict[str, Any]]
        if self._versioned():
            entries = self._versions(prefix)
        else:
            pages = self._pages(prefix, "list_objects_v2", ("ContinuationToken", "NextContinuationToken"))
            entries = (entry for page in pages for entry in page.get("Contents", []))
        for entry in entries:
            yield self._info(entry)
        for upload in self._uploads(prefix):
            yield self._info(upload)

    def _versions(self, prefix: str) -> Iterator[dict[str, Any]]:
        tokens = ("KeyMarker", "NextKeyMarker"), ("VersionIdMarker", "NextVersionIdMarker")
        for page in self._pages(prefix, "list_object_versions", *tokens):
            yield from page.get("Versions", [])
            yield from page.get("DeleteMarkers", [])

    def _uploads(self, prefix: str) -> Iterator[dict[str, Any]]:
        tokens = ("KeyMarker", "NextKeyMarker"), ("UploadIdMarker", "NextUploadIdMarker")
        try:
            for page in self._pages(prefix, "list_multipart_uploads", *tokens):
                yield from page.get("Uploads", [])
        except _NotSupportedError:
            return

    def _versioned(self) -> bool:
        if self._is_versioned is None:
            try:
                answer = self._call("", "get_bucket_versioning")
                self._is_versioned = answer.get("Status") in ("Enabled", "Suspended")
            except (_NotSupportedError, StorageDenied):
                self._is_versioned = False
        return self._is_versioned

    def _pages(self, prefix: str, method: str, *tokens: tuple[str, str]) -> Iterator[dict[str, Any]]:
        more: dict[str, Any] = {}
        while True:
            page = self._call(prefix, method, Prefix=self._prefix + prefix, **more)
            yield page
            more = {ask: page[answer] for ask, answer in tokens if page.get(answer)}
            if not page.get("IsTruncated") or not more:
                return

    def _info(self, entry: dict[str, Any]) -> ObjectInfo:
        return ObjectInfo(path=entry["Key"].removeprefix(self._prefix), size_bytes=int(entry.get("Size", 0)))

    def _call(self, path: str, method: str, **arguments: Any) -> dict[str, Any]:
        return self._patiently(
            path, lambda fs: cast(dict[str, Any], fs.call_s3(method, Bucket=self._bucket, **arguments))
        )

    def _full(self, path: str) -> str:
        return f"{self._bucket}/{self._prefix}{path}"

    def _patiently(self, path: str, operation: Callable[[Any], T]) -> T:
        name = f"{self.url}/{path}" if path else self.url

        def attempt() -> T:
            try:
                return operation(_filesystem())
            except Exception as error:  # every library below has a tree of its own
                raise _mapped(name, error) from None

        return with_patience(attempt, what=name, patience_s=self._patience_s)


class _NotSupportedError(StorageError):
    """The server does not know this operation."""


def _filesystem() -> Any:
    # s3fs keeps one instance for equal arguments (and process); its own retries would hide our patience.
    fs = s3fs.S3FileSystem(
        use_listings_cache=False,
        config_kwargs={
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "read_timeout": _READ_TIMEOUT_S,
            "retries": {"total_max_attempts": 1},
        },
    )
    fs.retries = 1
    return fs


def _mapped(name: str, error: Exception) -> Exception:
    """Our error for one of s3fs, botocore or aiohttp."""
    code = ""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, boto.ClientError):
            code = str(cause.response.get("Error", {}).get("Code", ""))
            break
        cause = cause.__cause__
    if code == "NoSuchBucket":
        return BucketMissing(f"{name}: the bucket does not exist; create it, or correct storage_path")
    if code in _DENIED or isinstance(
        error, (PermissionError, boto.NoCredentialsError, boto.PartialCredentialsError)
    ):
        return StorageDenied(
            f"{name}: S3 refused the credentials ({code or error}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY "
            "and what they may do"
        )
    if code in _EXISTS:
        return ObjectExists(f"{name}: exists already")
    if code in _FULL:
        return StorageFull(f"{name}: no space is left ({code}); free some and run the same command again")
    if code in _MISSING or (not code and isinstance(error, FileNotFoundError)):
        return ObjectMissing(f"{name}: there is no such object")
    if code in _UNSUPPORTED:
        return _NotSupportedError(f"{name}: this S3 server does not support the operation ({code})")
    if code in _PASSING or isinstance(error, _PASSING_ERRORS) or isinstance(error.__cause__, _PASSING_ERRORS):
        return Transient(f"{type(error).__name__}: {error}"[:200])
    return StorageError(f"{name}: {code or type(error).__name__}: {error}")
