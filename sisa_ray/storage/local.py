"""A local directory as object storage: durable writes, put-if-absent by ``link(2)``."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

from sisa_ray.core.errors import ObjectExists, ObjectMissing, StorageDenied, StorageError, StorageFull
from sisa_ray.storage.objects import ObjectInfo, ObjectStore
from sisa_ray.storage.retry import DEFAULT_PATIENCE_S, Transient, with_patience

T = TypeVar("T")

_TEMPORARY = ".tmp"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_PASSING = {errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENODEV}


class LocalStore:
    """See :class:`~sisa_ray.storage.objects.ObjectStore`."""

    def __init__(self, root: str, *, patience_s: float = DEFAULT_PATIENCE_S) -> None:
        self._root = Path(root).absolute()
        self._patience_s = patience_s
        # A root that was there and is gone is storage that vanished, not an empty store.
        self._was_there = self._root.is_dir()

    @property
    def url(self) -> str:
        """The root, absolute."""
        return str(self._root)

    def get(self, path: str) -> bytes:
        """All bytes of an object."""
        return self._patiently(path, (self._root / path).read_bytes)

    def open(self, path: str) -> BinaryIO:
        """An object to read in pieces."""
        return self._patiently(path, lambda: (self._root / path).open("rb"))

    def put(self, path: str, data: bytes | memoryview) -> None:
        """Write an object whole and durably."""
        self._patiently(path, lambda: self._write(path, data, os.replace))

    def create(self, path: str, data: bytes) -> None:
        """Write an object if there is none."""

        def link(temporary: Path, final: Path) -> None:
            try:
                os.link(temporary, final)
            except FileExistsError:
                raise ObjectExists(f"{self._root}/{path}: exists already") from None
            finally:
                temporary.unlink()

        self._patiently(path, lambda: self._write(path, data, link))

    def list(self, prefix: str = "", *, all_versions: bool = False) -> Iterator[ObjectInfo]:
        """Objects whose path begins with ``prefix``; with ``all_versions`` also unfinished temporary files."""
        # Only directories that can hold such paths are entered.
        start = self._root / prefix.rpartition("/")[0]
        return iter(self._patiently(prefix, lambda: self._listed(start, prefix, all_versions)))

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects and directories that this leaves empty."""
        for path in paths:
            self._patiently(path, lambda path=path: self._remove(self._root / path))  # type: ignore[misc]

    def exists(self, path: str) -> bool:
        """Whether there is an object at ``path``."""
        return self._patiently(path, lambda: self._is_file(path))

    def child(self, prefix: str) -> ObjectStore:
        """The store rooted at ``prefix``."""
        return LocalStore(str(self._root / prefix), patience_s=self._patience_s)

    def _listed(self, start: Path, prefix: str, all_versions: bool) -> Sequence[ObjectInfo]:
        self._check_root()
        found = []
        for directory, _, names in os.walk(start, onerror=_raise_unless_missing):
            for name in names:
                file = Path(directory, name)
                path = file.relative_to(self._root).as_posix()
                if path.startswith(prefix) and (all_versions or _TEMPORARY not in path.split("/")):
                    try:
                        found.append(ObjectInfo(path=path, size_bytes=file.stat().st_size))
                    except FileNotFoundError:
                        continue  # deleted meanwhile
        return sorted(found, key=lambda info: info.path)

    def _write(self, path: str, data: bytes | memoryview, finish: Callable[[Path, Path], None]) -> None:
        self._check_root()
        final = self._root / path
        temporary = self._root / _TEMPORARY / uuid.uuid4().hex
        temporary.parent.mkdir(parents=True, exist_ok=True)
        self._was_there = True
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            final.parent.mkdir(parents=True, exist_ok=True)
            finish(temporary, final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(final.parent)

    def _remove(self, file: Path) -> None:
        self._check_root()
        try:
            file.unlink()
        except FileNotFoundError:
            return
        directory = file.parent
        _sync_directory(directory)
        while directory != self._root:
            try:
                directory.rmdir()
            except OSError:
                return  # not empty, or another process was faster
            directory = directory.parent

    def _is_file(self, path: str) -> bool:
        self._check_root()
        return (self._root / path).is_file()

    def _check_root(self) -> None:
        if self._root.is_dir():
            self._was_there = True
        elif self._was_there:
            raise Transient(f"the directory {self._root} is gone; is it unmounted?")

    def _patiently(self, path: str, operation: Callable[[], T]) -> T:
        def attempt() -> T:
            try:
                return operation()
            except OSError as error:
                raise self._mapped(path, error) from None

        return with_patience(attempt, what=f"{self._root}/{path}", patience_s=self._patience_s)

    def _mapped(self, path: str, error: OSError) -> Exception:
        name = f"{self._root}/{path}"
        if isinstance(error, FileNotFoundError):
            # A directory may be pruned between its making and its use: that passes, too.
            if (self._was_there and not self._root.is_dir()) or (
                error.filename2 or _TEMPORARY in str(error.filename)
            ):
                return Transient(str(error))
            return ObjectMissing(f"{name}: there is no such object")
        if error.errno in _FULL:
            return StorageFull(f"{name}: no space is left; free some and run the same command again")
        if error.errno in _DENIED:
            return StorageDenied(
                f"{name}: {error.strerror}; give this user the permission to read and write there"
            )
        if error.errno in _PASSING:
            return Transient(str(error))
        return StorageError(f"{name}: {error}")


def _sync_directory(directory: Path) -> None:
    """Make a new or removed name durable."""
    try:
        fd = os.open(directory, os.O_RDONLY)
    except FileNotFoundError:
        return  # pruned by another process: nothing to keep
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
