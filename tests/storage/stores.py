"""Stores that misbehave on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from sisa_ray.core.protection import BucketProtection
from sisa_ray.storage.objects import ObjectInfo, ObjectStore


class Wrapped:
    """A store that passes everything on; tests override what shall go wrong."""

    def __init__(self, store: ObjectStore) -> None:
        self.inner = store

    @property
    def url(self) -> str:
        return self.inner.url

    def get(self, path: str) -> bytes:
        return self.inner.get(path)

    def open(self, path: str) -> BinaryIO:
        return self.inner.open(path)

    def put(self, path: str, data: bytes | memoryview) -> None:
        self.inner.put(path, data)

    def create(self, path: str, data: bytes) -> None:
        self.inner.create(path, data)

    def list(self, prefix: str = "", *, all_versions: bool = False, after: str = "") -> Iterator[ObjectInfo]:
        return self.inner.list(prefix, all_versions=all_versions, after=after)

    def delete(self, paths: Iterable[str]) -> None:
        self.inner.delete(paths)

    def exists(self, path: str) -> bool:
        return self.inner.exists(path)

    def child(self, prefix: str) -> ObjectStore:
        return self.inner.child(prefix)

    def protection(self) -> BucketProtection:
        return self.inner.protection()


class CreateThenRaise(Wrapped):
    """Creates objects, and then says something else."""

    def __init__(self, store: ObjectStore, error: Callable[[], Exception], *, applies: bool = True) -> None:
        super().__init__(store)
        self._error = error
        self._applies = applies

    def create(self, path: str, data: bytes) -> None:
        if self._applies:
            super().create(path, data)
        raise self._error()
