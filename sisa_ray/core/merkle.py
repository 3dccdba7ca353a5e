"""Merkle trees (as RFC 6962 has them): one hash stands for a list, a short path for the place of one item in it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

_LEAF, _NODE = b"\x00", b"\x01"


def root(leaves: Sequence[bytes]) -> str:
    """The root (hex) of a list of leaves; that of an empty list is the hash of nothing."""
    levels = _levels(leaves)
    return levels[-1][0].hex() if levels else hashlib.sha256(b"").hexdigest()


def path(leaves: Sequence[bytes], index: int) -> tuple[str, ...]:
    """The hashes (hex) beside the way from leaf ``index`` up to the root."""
    return paths(leaves, [index])[0]


def paths(leaves: Sequence[bytes], indices: Sequence[int]) -> list[tuple[str, ...]]:
    """:func:`path` of several leaves, at the cost of one tree."""
    levels = _levels(leaves)
    return [_path(levels, len(leaves), index) for index in indices]


def root_from_path(leaf: bytes, index: int, num_leaves: int, beside: Sequence[str]) -> str:
    """The root to which ``leaf`` at ``index`` of ``num_leaves`` leads along ``beside``.

    Raises:
        ValueError: where the path is not as long as it must be, or its hashes are none.
    """
    if not 0 <= index < num_leaves:
        raise ValueError(f"there is no leaf {index} of {num_leaves}")
    node, rest = _hash(_LEAF, leaf), [_checked(h) for h in beside]
    width = num_leaves
    while width > 1:
        if index % 2 or index + 1 < width:
            if not rest:
                raise ValueError("the path is too short")
            other = rest.pop(0)
            node = _hash(_NODE, other, node) if index % 2 else _hash(_NODE, node, other)
        index, width = index // 2, (width + 1) // 2
    if rest:
        raise ValueError("the path is too long")
    return node.hex()


def _levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """All nodes, from the leaves' hashes up; the last one of an odd level goes up as it is."""
    levels = [[_hash(_LEAF, leaf) for leaf in leaves]] if leaves else []
    while levels and len(levels[-1]) > 1:
        below = levels[-1]
        pairs = [_hash(_NODE, below[i], below[i + 1]) for i in range(0, len(below) - 1, 2)]
        levels.append(pairs + below[len(below) - len(below) % 2 :])
    return levels


def _path(levels: list[list[bytes]], num_leaves: int, index: int) -> tuple[str, ...]:
    if not 0 <= index < num_leaves:
        raise ValueError(f"there is no leaf {index} of {num_leaves}")
    beside = []
    for level in levels[:-1]:
        neighbour = index ^ 1
        if neighbour < len(level):
            beside.append(level[neighbour].hex())
        index //= 2
    return tuple(beside)


def _hash(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def _checked(text: str) -> bytes:
    value = bytes.fromhex(text)
    if len(value) != hashlib.sha256().digest_size or value.hex() != text:
        raise ValueError(f"{text[:16]!r} is no SHA-256 in hex")
    return value
