"""Segments: the slices of one ingest. The first has the spec's R slices; each append adds one behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Slices ``first`` to ``last`` (from 1) of every shard."""

    first: int
    last: int

    @property
    def num_slices(self) -> int:
        """Slices in it."""
        return self.last - self.first + 1


def segments(num_slices: int, appended: Sequence[int]) -> tuple[Segment, ...]:
    """The segments of a run: that of its spec, and one for each append.

    >>> [(s.first, s.last) for s in segments(4, [1, 2])]
    [(1, 4), (5, 5), (6, 7)]
    """
    found = [Segment(first=1, last=num_slices)]
    for count in appended:
        found.append(Segment(first=found[-1].last + 1, last=found[-1].last + count))
    return tuple(found)
