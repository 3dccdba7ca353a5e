"""Tables by (shard, slice) or (shard, stage) that know their shards apart.

A batch touches a few shards of thousands. What follows from a shard's rows is kept beside them until one of them
changes, so that what is asked again and again costs what has changed since, and not the whole table.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Place = tuple[int, int]
"""(shard, slice) or (shard, stage)."""


class Places(dict[Place, T], Generic[T]):
    """A dictionary by place. It is changed by setting and deleting single rows, and by :meth:`update`, alone."""

    def __init__(self, rows: Mapping[Place, T] | Iterable[tuple[Place, T]] = ()) -> None:
        super().__init__()
        self._shards: dict[int, dict[int, T]] = {}
        self._derived: dict[int, dict[Hashable, Any]] = {}
        self.update(rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (dict(self),))  # what is derived can be derived again

    def __setitem__(self, place: Place, row: T) -> None:
        super().__setitem__(place, row)
        self._shards.setdefault(place[0], {})[place[1]] = row
        self._derived.pop(place[0], None)

    def __delitem__(self, place: Place) -> None:
        super().__delitem__(place)
        del self._shards[place[0]][place[1]]
        self._derived.pop(place[0], None)

    def update(self, rows: Mapping[Place, T] | Iterable[tuple[Place, T]] = ()) -> None:  # type: ignore[override]
        """Set many rows."""
        for place, row in rows.items() if isinstance(rows, Mapping) else rows:
            self[place] = row

    def of(self, shard: int) -> Mapping[int, T]:
        """The rows of one shard, by slice or stage."""
        return self._shards.get(shard, {})

    @property
    def shards(self) -> Iterable[int]:
        """Shards that have rows, or had some."""
        return self._shards.keys()

    def derived(self, shard: int) -> dict[Hashable, Any]:
        """Where to keep what follows from the rows of a shard: it is forgotten when one of them changes."""
        return self._derived.setdefault(shard, {})
