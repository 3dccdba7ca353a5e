"""A bucket on S3 (or whatever speaks its protocol) as object storage, through s3fs.

Endpoint and credentials come from the usual environment: ``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, …,
which is looked at again at every operation.
"""

from __future__ import annotations

import asyncio
import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
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

        def open_now(fs: Any) -> Any:
            return fs.open(self._full(path), "rb", block_size=_BLOCK_BYTES)

        file = self._patiently(path, open_now)

        def read_at(position: int, size: int) -> bytes:
            def read(_: Any) -> bytes:
                file.seek(position)
                return cast(bytes, file.read(size))

            return self._patiently(path, read)

        return cast(BinaryIO, io.BufferedReader(_PatientFile(read_at, file.size)))

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
            self._delete_batch(keys[first : first + _DELETE_AT_ONCE])
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
            self._check_bucket()
            return False
        return True

    def child(self, prefix: str) -> ObjectStore:
        """The store rooted at ``prefix``."""
        return S3Store(f"{self.url}/{prefix}", patience_s=self._patience_s)

    def _delete_batch(self, keys: Sequence[dict[str, str]]) -> None:
        def delete(fs: Any) -> None:
            answer = fs.call_s3("delete_objects", Bucket=self._bucket, Delete={"Objects": keys, "Quiet": True})
            for error in answer.get("Errors", []):
                code = error.get("Code")
                what = f"s3://{self._bucket}/{error.get('Key')}: could not be deleted: {code} {error.get('Message')}"
                if code in _PASSING:
                    raise Transient(what)
                if code not in _MISSING:
                    raise StorageDenied(f"{what}; allow s3:DeleteObject and s3:DeleteObjectVersion")

        self._patiently("", delete)

    def _check_bucket(self) -> None:
        """The answer to HEAD has no body to say whether the object or the whole bucket is missing."""
        try:
            self._call("", "head_bucket")
        except ObjectMissing:
            raise _bucket_missing(self.url) from None

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
            except _NotSupportedError:
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
            except (Transient, StorageError):
                raise
            except Exception as error:  # every library below has a tree of its own
                raise _mapped(name, error) from None

        return with_patience(attempt, what=name, patience_s=self._patience_s)


class _NotSupportedError(StorageError):
    """The server does not know this operation."""


class _PatientFile(io.RawIOBase):
    """An object's bytes through a function that reads some of them, however often it takes."""

    def __init__(self, read_at: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._read_at = read_at
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read at the position."""
        size = min(len(buffer), self._size - self._position)
        if size <= 0:
            return 0
        data = self._read_at(self._position, size)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


_current: tuple[object, Any] = (None, None)
_current_lock = threading.Lock()


def _filesystem() -> Any:
    """The client for this process and environment. s3fs itself would keep one that was made for another."""
    global _current  # noqa: PLW0603 - one client a process is meant
    now = os.getpid(), sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_"))
    with _current_lock:
        if _current[0] != now:
            _current = now, _new_filesystem()
        return _current[1]


def _new_filesystem() -> Any:
    # Retries of its own would hide our patience.
    fs = s3fs.S3FileSystem(
        skip_instance_cache=True,
        use_listings_cache=False,
        config_kwargs={
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "read_timeout": _READ_TIMEOUT_S,
            "retries": {"total_max_attempts": 1},
        },
    )
    fs.retries = 1
    return fs


def _bucket_missing(name: str) -> BucketMissing:
    return BucketMissing(f"{name}: the bucket does not exist; create it, or correct storage_path")


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
        return _bucket_missing(name)
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
