"""A remote object as a file: every read asks for a range, so that only what is used is fetched."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, BinaryIO, cast

_BUFFER_BYTES = 2**20


class _RangedReader(io.RawIOBase):
    def __init__(self, read_range: Callable[[int, int], bytes], size_bytes: int) -> None:
        self._read_range = read_range
        self._size_bytes = size_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}, before the beginning")
        self._position = base + offset
        return self._position

    def readall(self) -> bytes:
        """The rest in one request: the base class would ask for 8 KiB at a time."""
        if self._position >= self._size_bytes:
            return b""
        data = self._read_range(self._position, self._size_bytes)
        self._position += len(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        stop = min(self._position + len(view), self._size_bytes)
        if stop <= self._position:
            return 0
        data = self._read_range(self._position, stop)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


def open_ranged(read_range: Callable[[int, int], bytes], size_bytes: int) -> BinaryIO:
    """A seekable file of ``size_bytes`` over ``read_range(start, stop)``. Large reads pass the buffer by."""
    return cast(BinaryIO, io.BufferedReader(_RangedReader(read_range, size_bytes), _BUFFER_BYTES))
