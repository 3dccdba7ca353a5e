"""A file over ranges, against one in memory."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sisa_ray.storage.ranged import open_ranged

CONTENT = bytes(range(256)) * 17

moves = st.one_of(
    st.tuples(st.just("read"), st.integers(-1, 6000), st.just(0)),
    st.tuples(st.just("seek"), st.integers(0, 6000), st.just(io.SEEK_SET)),
    st.tuples(st.just("seek"), st.integers(-4352, 100), st.just(io.SEEK_END)),
)


@given(st.lists(moves, max_size=20))
def test_reads_like_a_file(script: list[tuple[str, int, int]]) -> None:
    ours = open_ranged(lambda start, stop: CONTENT[start:stop], len(CONTENT))
    oracle = io.BytesIO(CONTENT)
    for what, number, whence in script:
        if what == "read":
            assert ours.read(number) == oracle.read(number)
        else:
            assert ours.seek(number, whence) == oracle.seek(number, whence)
        assert ours.tell() == oracle.tell()


def test_only_what_is_used_is_fetched() -> None:
    size_bytes = 10 * 2**30
    fetched: list[int] = []

    def read_range(start: int, stop: int) -> bytes:
        fetched.append(stop - start)
        return bytes(stop - start)

    file = open_ranged(read_range, size_bytes)
    file.seek(-8, io.SEEK_END)
    assert file.read(8) == bytes(8)
    file.seek(5 * 2**30)
    assert len(file.read(3 * 2**20)) == 3 * 2**20
    assert sum(fetched) < 5 * 2**20


def test_what_storage_raises_reaches_the_reader() -> None:
    def read_range(start: int, stop: int) -> bytes:
        raise ConnectionError(f"{start}-{stop}")

    with pytest.raises(ConnectionError):
        open_ranged(read_range, 100).read(10)


def test_there_is_nothing_before_the_beginning() -> None:
    with pytest.raises(ValueError, match="before the beginning"):
        open_ranged(lambda start, stop: b"", 10).seek(-11, io.SEEK_END)


def test_reading_to_the_end_is_one_request() -> None:
    asked: list[tuple[int, int]] = []

    def read_range(start: int, stop: int) -> bytes:
        asked.append((start, stop))
        return bytes(stop - start)

    file = open_ranged(read_range, 3 * 2**20)
    assert len(file.read()) == 3 * 2**20
    assert file.read() == b""
    assert len(asked) == 1
