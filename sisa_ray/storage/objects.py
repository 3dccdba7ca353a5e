"""Object storage behind one small interface: a local directory or a bucket on S3."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from sisa_ray.core.errors import ConfigError, StorageError
from sisa_ray.core.protection import BucketProtection
from sisa_ray.storage.retry import DEFAULT_PATIENCE_S

PATIENCE_VARIABLE = "SISA_RAY_STORAGE_PATIENCE_S"


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """One object of a listing, its path relative to the store's root."""

    path: str
    size_bytes: int


class ObjectStore(Protocol):
    """Objects under a root. Picklable; paths are relative, joined by ``/``; nothing is cached.

    Failures that may pass are retried with patience, then :class:`StorageUnavailable` is raised; definite ones
    (:class:`BucketMissing`, :class:`StorageDenied`, :class:`StorageFull`) are raised at once.
    """

    @property
    def url(self) -> str:
        """The root: an absolute path, or ``s3://bucket/prefix``."""

    def get(self, path: str) -> bytes:
        """All bytes of an object. Raises ObjectMissing."""

    def open(self, path: str) -> BinaryIO:
        """An object to read in pieces; seekable. Raises ObjectMissing."""

    def put(self, path: str, data: bytes | memoryview) -> None:
        """Write an object whole: it is there with all its bytes, durable, or not at all."""

    def create(self, path: str, data: bytes) -> None:
        """Write an object if there is none. Raises ObjectExists, also where our own lost attempt had won.

        StorageUnavailable means that the outcome is unknown; every other error, that nothing was written.
        """

    def list(self, prefix: str = "", *, all_versions: bool = False, after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose path begins with ``prefix`` and comes ``after`` that one, in no order that counts.

        ``all_versions`` adds what only storage itself can see: noncurrent versions, deletion markers,
        unfinished uploads and temporary files. Deleting their paths removes them.
        """

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects, all their versions and unfinished uploads included. Missing ones are fine."""

    def exists(self, path: str) -> bool:
        """Whether there is an object at ``path``."""

    def child(self, prefix: str) -> ObjectStore:
        """The store rooted at ``prefix`` below this one."""

    def protection(self) -> BucketProtection:
        """What becomes of objects below the root when they are deleted, or deletes them without us."""


def open_store(url: str) -> ObjectStore:
    """The store at ``url``: a local path or ``s3://bucket/prefix``.

    ``SISA_RAY_STORAGE_PATIENCE_S`` sets how many seconds storage may stay away before a command gives up.

    Raises:
        ConfigError: for another scheme, or where that variable is no number of seconds.
    """
    patience_s = _patience_s()
    if url.startswith("s3://"):
        from sisa_ray.storage.s3 import S3Store

        return S3Store(url, patience_s=patience_s)
    if "://" in url:
        raise ConfigError(f"storage: {url} is neither a local path nor an s3:// URL")
    from sisa_ray.storage.local import LocalStore

    return LocalStore(url, patience_s=patience_s)


def checked_path(path: str) -> str:
    """``path``, if it names something below a store's root whatever the backend.

    >>> checked_path("log/00000000000000000017.json")
    'log/00000000000000000017.json'

    Raises:
        StorageError: where it is empty, absolute, or steps through ``.`` or ``..``.
    """
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise StorageError(
            f"{path!r}: is no path of an object; it must be relative, without empty parts, '.' and '..'"
        )
    return path


def _patience_s() -> float:
    value = os.environ.get(PATIENCE_VARIABLE)
    if not value:
        return DEFAULT_PATIENCE_S
    try:
        patience_s = float(value)
    except ValueError:
        patience_s = math.nan
    if not patience_s >= 0:
        raise ConfigError(f"{PATIENCE_VARIABLE}: {value!r} is no number of seconds; write a number like 120")
    return patience_s
