"""A local directory as object storage: durable writes, put-if-absent by ``link(2)``."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

from sisa_ray.core.errors import ObjectExists, ObjectMissing, StorageDenied, StorageError, StorageFull
from sisa_ray.core.protection import BucketProtection
from sisa_ray.storage.objects import ObjectInfo, ObjectStore, checked_path
from sisa_ray.storage.retry import DEFAULT_PATIENCE_S, Transient, with_patience

T = TypeVar("T")

_TEMPORARY = ".tmp"
"""Directory of files not yet in place. It lies below the root, so that renaming crosses no file system."""

_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NOT_A_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_PASSING = {
    errno.EIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.ENODEV,
    errno.EBUSY,
    errno.EAGAIN,
    errno.EMFILE,
    errno.ENFILE,
}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_NO_DIRECTORY_SYNC = {errno.EINVAL, errno.EOPNOTSUPP}


class _Anchor:
    """The topmost store's directory. Those below it come and go; if this one was there and is gone, storage vanished,
    and must be neither taken for empty nor made anew on the disk beneath the mount point."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.was_there = directory.is_dir()

    def check(self) -> None:
        if self.directory.is_dir():
            self.was_there = True
        elif self.was_there:
            raise Transient(f"the directory {self.directory} is gone; is it unmounted?")


class LocalStore:
    """See :class:`~sisa_ray.storage.objects.ObjectStore`."""

    def __init__(
        self, root: str, *, patience_s: float = DEFAULT_PATIENCE_S, anchor: _Anchor | None = None
    ) -> None:
        self._root = Path(root).absolute()
        self._patience_s = patience_s
        self._anchor = anchor or _Anchor(self._root)

    @property
    def url(self) -> str:
        """The root, absolute."""
        return str(self._root)

    def get(self, path: str) -> bytes:
        """All bytes of an object."""
        return self._read(path, Path.read_bytes)

    def open(self, path: str) -> BinaryIO:
        """An object to read in pieces."""
        return self._read(path, lambda file: file.open("rb"))

    def put(self, path: str, data: bytes | memoryview) -> None:
        """Write an object whole and durably."""
        self._patiently(path, lambda: self._write(path, data, os.replace))

    def create(self, path: str, data: bytes) -> None:
        """Write an object if there is none."""

        def link(temporary: Path, final: Path) -> None:
            try:
                os.link(temporary, final)
            except FileExistsError:
                # It may be our own, linked by a try that failed afterwards: it must be durable, too.
                _sync_directory(final.parent)
                raise ObjectExists(f"{self._root}/{path}: exists already") from None
            except OSError as error:
                if error.errno in _NO_LINKS:
                    raise StorageError(
                        f"{self._root}/{path}: this file system cannot make hard links ({error.strerror}), which the "
                        "commit log needs; keep runs on a file system that can, or on S3"
                    ) from None
                raise

        self._patiently(path, lambda: self._write(path, data, link), is_repeatable=False)

    def list(self, prefix: str = "", *, all_versions: bool = False, after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose path begins with ``prefix``; with ``all_versions`` also unfinished temporary files."""
        # Only directories that can hold such paths are entered.
        start = self._root / prefix.rpartition("/")[0]
        return iter(self._patiently(prefix, lambda: self._listed(start, prefix, all_versions, after)))

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects and directories that this leaves empty."""
        for path in paths:
            self._patiently(path, lambda path=path: self._remove(self._at(path)))  # type: ignore[misc]

    def exists(self, path: str) -> bool:
        """Whether there is an object at ``path``."""
        return self._patiently(path, lambda: self._is_file(path))

    def child(self, prefix: str) -> ObjectStore:
        """The store rooted at ``prefix``."""
        return LocalStore(str(self._at(prefix.rstrip("/"))), patience_s=self._patience_s, anchor=self._anchor)

    def protection(self) -> BucketProtection:
        """Nothing that a directory could tell: snapshots and backups below it do not show."""
        return BucketProtection()

    def _read(self, path: str, read: Callable[[Path], T]) -> T:
        def attempt() -> T:
            try:
                return read(self._at(path))
            except _NOT_A_FILE:
                self._anchor.check()
                raise ObjectMissing(f"{self._root}/{path}: there is no such object") from None

        return self._patiently(path, attempt)

    def _at(self, path: str) -> Path:
        return self._root / checked_path(path)

    def _listed(self, start: Path, prefix: str, all_versions: bool, after: str) -> Sequence[ObjectInfo]:
        self._anchor.check()
        found = []
        for directory, _, names in os.walk(start, onerror=_raise_unless_missing):
            inside = Path(directory).relative_to(self._root).as_posix()
            if not all_versions and _TEMPORARY in inside.split("/"):
                continue
            for name in names:
                path = name if inside == "." else f"{inside}/{name}"
                if path.startswith(prefix) and path > after:
                    try:
                        found.append(ObjectInfo(path=path, size_bytes=Path(directory, name).stat().st_size))
                    except FileNotFoundError:
                        continue  # deleted meanwhile
        self._anchor.check()  # it may have gone under way, and its absence must not look like empty directories
        return sorted(found, key=lambda info: info.path)

    def _write(self, path: str, data: bytes | memoryview, finish: Callable[[Path, Path], None]) -> None:
        self._anchor.check()
        final = self._at(path)
        temporary = self._root / _TEMPORARY / uuid.uuid4().hex
        try:
            _make_directory(temporary.parent)
            self._anchor.check()
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _make_directory(final.parent)
            finish(temporary, final)
            _sync_directory(final.parent)
        except FileNotFoundError as error:
            # A purge elsewhere removed an empty directory, or this file, between two of these steps.
            raise Transient(str(error)) from None
        finally:
            temporary.unlink(missing_ok=True)

    def _remove(self, file: Path) -> None:
        self._anchor.check()
        try:
            file.unlink()
        except _NOT_A_FILE:
            self._anchor.check()
            return
        directory = file.parent
        with contextlib.suppress(FileNotFoundError):  # pruned by another process
            _sync_directory(directory)
        while directory != self._root:
            try:
                directory.rmdir()
            except OSError:
                return  # not empty, or another process was faster
            directory = directory.parent

    def _is_file(self, path: str) -> bool:
        is_file = self._at(path).is_file()
        if not is_file:
            self._anchor.check()
        return is_file

    def _patiently(self, path: str, operation: Callable[[], T], *, is_repeatable: bool = True) -> T:
        def attempt() -> T:
            try:
                return operation()
            except OSError as error:
                raise self._mapped(path, error) from None

        return with_patience(
            attempt, what=f"{self._root}/{path}", patience_s=self._patience_s, is_repeatable=is_repeatable
        )

    def _mapped(self, path: str, error: OSError) -> Exception:
        name = f"{self._root}/{path}"
        if isinstance(error, FileExistsError):  # a directory that another process made and pruned meanwhile
            return Transient(str(error))
        if error.errno in _FULL:
            return StorageFull(f"{name}: no space is left; free some and run the same command again")
        if error.errno in _DENIED:
            return StorageDenied(
                f"{name}: {error.strerror}; give this user the permission to read and write there"
            )
        if error.errno in _PASSING:
            return Transient(str(error))
        return StorageError(f"{name}: {error}")


def _make_directory(directory: Path) -> None:
    """Make a directory and those above it, their names durable."""
    new = [d for d in (directory, *directory.parents) if not d.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for made in reversed(new):
        _sync_directory(made.parent)


def _sync_directory(directory: Path) -> None:
    """Make a new or removed name durable."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise
    finally:
        os.close(fd)


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error
