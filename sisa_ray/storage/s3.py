"""A bucket on S3 (or whatever speaks its protocol) as object storage, through s3fs.

Endpoint and credentials come from the usual environment: ``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, …
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, TypeVar, cast

import s3fs
from aiobotocore.httpsession import AIOHTTPSession

from sisa_ray.core.errors import ConfigError, ObjectExists, ObjectMissing, StorageDenied, StorageError
from sisa_ray.core.protection import BucketProtection
from sisa_ray.storage.objects import ObjectInfo, ObjectStore, checked_path
from sisa_ray.storage.protection import keeps_versions, read_s3
from sisa_ray.storage.ranged import open_ranged
from sisa_ray.storage.retry import DEFAULT_PATIENCE_S, Transient, with_patience
from sisa_ray.storage.s3_errors import OperationUnsupported, mapped, mapped_deletion

T = TypeVar("T")

_CONNECT_TIMEOUT_S = 5
_READ_TIMEOUT_S = 60
_NUM_CONNECTIONS = 32
_DELETE_AT_ONCE = 1000
_LIST_ONE_BY_ONE = 8
"""Up to so many keys, the versions of each are asked for; beyond, those of everything that begins like them."""


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
        self._creates_once = False

    @property
    def url(self) -> str:
        """The root."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def get(self, path: str) -> bytes:
        """All bytes of an object."""
        full = self._full(path)
        # One request: s3fs would otherwise ask for the size first.
        return self._patiently(path, lambda fs: cast(bytes, fs.cat_file(full, max_concurrency=1)))

    def open(self, path: str) -> BinaryIO:
        """An object to read in pieces."""
        info = self._find(path)
        if info is None:
            raise ObjectMissing(f"{self.url}/{path}: there is no such object")
        full = self._full(path)

        def read_range(start: int, stop: int) -> bytes:
            return self._patiently(path, lambda fs: cast(bytes, fs.cat_file(full, start=start, end=stop)))

        return open_ranged(read_range, info.size_bytes)

    def put(self, path: str, data: bytes | memoryview) -> None:
        """Write an object whole; a large one in parts, which appear together."""
        full, body = self._full(path), bytes(data)

        def write(fs: Any) -> None:
            try:
                fs.pipe_file(full, body)
            except FileNotFoundError as error:
                failure = mapped(self._name(path), error)
                if not isinstance(failure, ObjectMissing):
                    raise
                # The upload of the parts is gone: it was finished by a try whose answer was lost, or swept.
                raise Transient(str(error)) from None

        self._patiently(path, write)

    def create(self, path: str, data: bytes) -> None:
        """Write an object if there is none (``If-None-Match: *``)."""
        self._create_once(path, data)
        if self._creates_once:
            return
        # A server that does not know the condition would let two processes commit the same log entry.
        try:
            self._create_once(path, data)
        except ObjectExists:
            self._creates_once = True
        except StorageError:
            return  # nothing learnt; the object is there
        else:
            raise StorageError(
                f"{self._name(path)}: this S3 server ignores the condition If-None-Match, so that one command could "
                "overwrite what another one committed; keep runs on a server that supports conditional writes"
            )

    def list(self, prefix: str = "", *, all_versions: bool = False, after: str = "") -> Iterator[ObjectInfo]:
        """Objects below a prefix, page by page from the server."""
        entries = self._everything(prefix) if all_versions else self._objects(prefix, after)
        return (info for info in map(self._info, entries) if info.path > after)

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects with all their versions, and uploads that were never finished."""
        wanted = sorted({self._prefix + checked_path(path) for path in paths})
        if not wanted:
            return
        keys = self._versions_of(wanted) if self._versioned() else [{"Key": key} for key in wanted]
        for first in range(0, len(keys), _DELETE_AT_ONCE):
            self._delete_batch(keys[first : first + _DELETE_AT_ONCE])
        uploads = self._uploads(_common_prefix(wanted).removeprefix(self._prefix))
        for upload in [upload for upload in uploads if upload["Key"] in set(wanted)]:
            try:
                self._call("", "abort_multipart_upload", Key=upload["Key"], UploadId=upload["UploadId"])
            except ObjectMissing:
                continue

    def exists(self, path: str) -> bool:
        """Whether there is an object at ``path``."""
        return self._find(path) is not None

    def child(self, prefix: str) -> ObjectStore:
        """The store rooted at ``prefix``."""
        return S3Store(f"{self.url}/{checked_path(prefix.rstrip('/'))}", patience_s=self._patience_s)

    def protection(self) -> BucketProtection:
        """What the bucket's configuration says about objects below the root."""
        return self._patiently("", lambda fs: read_s3(fs.call_s3, self._bucket, self._prefix))

    def _create_once(self, path: str, data: bytes) -> None:
        full = self._full(path)
        self._patiently(path, lambda fs: fs.pipe_file(full, data, mode="create"), is_repeatable=False)

    def _find(self, path: str) -> ObjectInfo | None:
        # A listing, since the answer to HEAD has no body: it could not tell a missing bucket from a missing object.
        answer = self._call(path, "list_objects_v2", Prefix=self._prefix + checked_path(path), MaxKeys=1)
        found = [info for info in map(self._info, answer.get("Contents", [])) if info.path == path]
        return found[0] if found else None

    def _delete_batch(self, keys: Sequence[dict[str, str]]) -> None:
        left = list(keys)

        def delete(fs: Any) -> None:
            batch = {"Objects": left, "Quiet": True}
            answer = fs.call_s3("delete_objects", Bucket=self._bucket, Delete=batch)
            errors = answer.get("Errors", [])
            failures = [mapped_deletion(f"s3://{self._bucket}/{e.get('Key')}", e) for e in errors]
            for failure in sorted(filter(None, failures), key=lambda f: isinstance(f, Transient)):
                raise failure  # the first definite one, if any

        self._patiently("", delete)

    def _versions_of(self, wanted: Sequence[str]) -> Sequence[dict[str, str]]:
        prefixes = wanted if len(wanted) <= _LIST_ONE_BY_ONE else [_common_prefix(wanted)]
        keys = set(wanted)
        return [
            {"Key": entry["Key"], "VersionId": entry["VersionId"]}
            for prefix in prefixes
            for entry in self._versions(prefix.removeprefix(self._prefix))
            if entry["Key"] in keys
        ]

    def _everything(self, prefix: str) -> Iterator[dict[str, Any]]:
        yield from self._versions(prefix) if self._versioned() else self._objects(prefix)
        yield from self._uploads(prefix)

    def _objects(self, prefix: str, after: str = "") -> Iterator[dict[str, Any]]:
        start = {"StartAfter": self._prefix + after} if after else {}
        tokens = ("ContinuationToken", "NextContinuationToken")
        for page in self._pages(prefix, "list_objects_v2", tokens, **start):
            yield from page.get("Contents", [])

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
        except OperationUnsupported:
            return

    def _versioned(self) -> bool:
        if self._is_versioned is None:
            try:
                self._is_versioned = keeps_versions(self._call("", "get_bucket_versioning"))
            except OperationUnsupported:
                self._is_versioned = False
            except StorageDenied:
                # Who may not ask must not conclude that there are none: listing the versions will tell.
                self._is_versioned = True
        return self._is_versioned

    def _pages(
        self, prefix: str, method: str, *tokens: tuple[str, str], **more: Any
    ) -> Iterator[dict[str, Any]]:
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
        return f"{self._bucket}/{self._prefix}{checked_path(path)}"

    def _name(self, path: str) -> str:
        return f"{self.url}/{path}" if path else self.url

    def _patiently(self, path: str, operation: Callable[[Any], T], *, is_repeatable: bool = True) -> T:
        name = self._name(path)

        def attempt() -> T:
            try:
                return operation(_filesystem())
            except Transient:
                raise
            except Exception as error:  # every library below has a tree of its own
                failure = mapped(name, error)
                if failure is error:
                    raise
                raise failure from None

        return with_patience(attempt, what=name, patience_s=self._patience_s, is_repeatable=is_repeatable)


def _common_prefix(keys: Sequence[str]) -> str:
    """The longest string that all of the sorted ``keys`` begin with.

    >>> _common_prefix(["data/shard=1", "data/shard=17", "data/shard=2"])
    'data/shard='
    """
    first, last = keys[0], keys[-1]
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:length]


class _HttpSession(AIOHTTPSession):  # type: ignore[misc]
    """Sends every request once. aiohttp would repeat a PUT whose connection broke without a word: a create that had
    won would then pass for one that was refused."""

    async def _get_session(self, proxy_url: str | None) -> Any:
        session = await super()._get_session(proxy_url)
        session._retry_connection = False  # noqa: SLF001 - there is no other switch
        return session


def _filesystem() -> Any:
    # Not part of the store: that is pickled, and another process has another environment.
    return _connected(os.getpid(), tuple(sorted(i for i in os.environ.items() if i[0].startswith("AWS_"))))


@functools.lru_cache(maxsize=4)
def _connected(pid: int, environment: tuple[tuple[str, str], ...]) -> Any:  # noqa: ARG001 - the key of the cache
    fs = s3fs.S3FileSystem(
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "read_timeout": _READ_TIMEOUT_S,
            "max_pool_connections": _NUM_CONNECTIONS,
            "http_session_cls": _HttpSession,
            # Retries of others would hide our patience (and draw from the random generator that recipes see).
            "retries": {"total_max_attempts": 1},
        },
    )
    fs.retries = 1
    return fs
