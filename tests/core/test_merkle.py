"""Merkle trees: the roots of RFC 6962, a path for every leaf, and nothing else that a path fits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sisa_ray.core.merkle import path, paths, root, root_from_path

LEAVES = [b"leaf %d" % i for i in range(9)]
lists = st.lists(st.binary(max_size=4), min_size=1, max_size=40)


def recursive_root(leaves: Sequence[bytes]) -> bytes:
    """Section 2.1 of RFC 6962, word for word."""
    n = len(leaves)
    if n == 0:
        return hashlib.sha256(b"").digest()
    if n == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while 2 * k < n:
        k *= 2
    return hashlib.sha256(b"\x01" + recursive_root(leaves[:k]) + recursive_root(leaves[k:])).digest()


def recursive_path(m: int, leaves: Sequence[bytes]) -> list[str]:
    """Section 2.1.1 of RFC 6962, word for word."""
    n = len(leaves)
    if n == 1:
        return []
    k = 1
    while 2 * k < n:
        k *= 2
    if m < k:
        return [*recursive_path(m, leaves[:k]), recursive_root(leaves[k:]).hex()]
    return [*recursive_path(m - k, leaves[k:]), recursive_root(leaves[:k]).hex()]


def test_known_roots() -> None:
    """The tree of eight leaves that implementations of Certificate Transparency are tested with."""
    leaves = [
        bytes.fromhex(text)
        for text in (
            "",
            "00",
            "10",
            "2021",
            "3031",
            "40414243",
            "5051525354555657",
            "606162636465666768696a6b6c6d6e6f",
        )
    ]
    assert root([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert root(leaves[:1]) == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert root(leaves) == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


@given(lists)
def test_roots_and_paths_are_those_of_the_standard(leaves: list[bytes]) -> None:
    assert root(leaves) == recursive_root(leaves).hex()
    for index in range(len(leaves)):
        assert path(leaves, index) == tuple(recursive_path(index, leaves))


@given(lists)
def test_every_path_leads_to_the_root(leaves: list[bytes]) -> None:
    for index, way in enumerate(paths(leaves, range(len(leaves)))):
        assert root_from_path(leaves[index], index, len(leaves), way) == root(leaves)


@given(lists, st.data())
def test_a_path_fits_no_other_leaf_or_position(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    other = data.draw(st.integers(0, len(leaves) - 1))
    assume(leaves[other] != leaves[index])
    for leaf, position in ((leaves[other], index), (leaves[index], other)):
        try:
            found = root_from_path(leaf, position, len(leaves), path(leaves, index))
        except ValueError:
            continue
        assert found != root(leaves)


@given(lists, st.data())
def test_a_changed_path_leads_elsewhere(leaves: list[bytes], data: st.DataObject) -> None:
    assume(len(leaves) > 1)
    index = data.draw(st.integers(0, len(leaves) - 1))
    way = list(path(leaves, index))
    step = data.draw(st.integers(0, len(way) - 1))
    position = data.draw(st.integers(0, 63))
    digit = data.draw(st.sampled_from("0123456789abcdef").filter(lambda d: d != way[step][position]))
    way[step] = way[step][:position] + digit + way[step][position + 1 :]
    assert root_from_path(leaves[index], index, len(leaves), way) != root(leaves)


def test_order_and_number_count() -> None:
    assert len({root(LEAVES[:n]) for n in range(10)}) == 10
    assert root(LEAVES) != root(LEAVES[::-1])
    assert root([b"a", b"b", b"b"]) != root([b"a", b"b", b"b", b"b"])


def test_a_node_is_no_leaf() -> None:
    left, right = (hashlib.sha256(b"\x00" + leaf).digest() for leaf in LEAVES[:2])
    for forged in (left + right, b"\x01" + left + right):
        assert root([forged]) != root(LEAVES[:2])


@pytest.mark.parametrize("index", range(9))
def test_paths_of_another_length_are_refused(index: int) -> None:
    way = path(LEAVES, index)
    for wrong in (way[:-1], (*way, "0" * 64), ()):
        with pytest.raises(ValueError, match="path"):
            root_from_path(LEAVES[index], index, 9, wrong)


@pytest.mark.parametrize(
    "text", ["", "0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n", " " + "0" * 63, "ä" * 64]
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"SHA-256|hex"):
        root_from_path(b"", 0, 2, [text])


@pytest.mark.parametrize(("index", "size"), [(-1, 9), (9, 9), (0, 0)])
def test_positions_outside_are_refused(index: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"no leaf {index}"):
        path(LEAVES[:size], index)
    with pytest.raises(ValueError, match=f"no leaf {index}"):
        root_from_path(b"", index, size, ())


def test_the_tree_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[bytes] = []
    plain = hashlib.sha256

    def counted(data: bytes) -> Any:
        hashed.append(data)
        return plain(data)

    monkeypatch.setattr(hashlib, "sha256", counted)
    paths([b"%d" % i for i in range(1000)], range(1000))
    monkeypatch.undo()
    assert len(hashed) == 1000 + 999
