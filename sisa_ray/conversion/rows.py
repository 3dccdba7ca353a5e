"""What every reader yields, piece by piece, and how raw values become columns that recipes decode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sisa_ray.core.errors import DataError
from sisa_ray.core.fields import suggestion

Array = npt.NDArray[Any]

PIECE_BYTES = 16 * 2**20
_MOST_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class Names:
    """What the arrays, or the columns of a table, are called in the files.

    ``features`` of a CSV file may be several columns; none: all that are nothing else.
    """

    features: tuple[str, ...] = ()
    label: str | None = None
    record_id: str | None = None
    subject_id: str | None = None

    @property
    def others(self) -> tuple[str, ...]:
        """All but the features."""
        return tuple(n for n in (self.label, self.record_id, self.subject_id) if n is not None)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A piece of a file: all of one length. ``labels`` are as the file has them."""

    ids: Sequence[str]
    features: pa.Array
    subjects: Sequence[str] | None = None
    labels: Array | None = None


@dataclass
class Findings:
    """What a reader noticed on its way: the shape of a row's features, and what it passed over."""

    shape: tuple[int, ...] | None = None
    ignored: list[str] = field(default_factory=list)


class Reader(Protocol):
    """One input file or folder."""

    def pieces(self, findings: Findings) -> Iterator[Rows]:
        """All rows, in the order of the file."""


def rows_per_piece(row_bytes: int) -> int:
    """How many rows are taken at a time."""
    return max(1, min(_MOST_ROWS, PIECE_BYTES // max(1, row_bytes)))


def to_features(values: Array, dtype: np.dtype[Any] | None, where: str, first: int) -> pa.Array:
    """Rows of numbers, shape ``(rows, …)``, as one column: bytes where they are bytes, else fixed-size lists.

    Args:
        values: truth values, integers or floats.
        dtype: what to convert to; None: as they are.
        where: file and array, for messages.
        first: number of the first row, for messages.

    Raises:
        DataError: where a value does not fit ``dtype``.
    """
    values = cast(values, dtype, where, first)
    if values.dtype == np.bool_:
        values = values.view(np.uint8)
    width = prod(values.shape[1:])
    flat = np.ascontiguousarray(values).reshape(-1)
    if values.dtype == np.uint8:
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(values), [None, pa.py_buffer(flat)])
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), width)


def cast(values: Array, dtype: np.dtype[Any] | None, where: str, first: int) -> Array:
    """``values`` in the type ``dtype``; integers must come out as they went in, floats may be rounded."""
    plain = values.dtype.newbyteorder("=")
    if dtype is None or dtype == plain:
        return values.astype(plain, copy=False)
    with np.errstate(invalid="ignore", over="ignore"):
        converted = values.astype(dtype)
        good = np.isfinite(converted) | ~np.isfinite(values) if dtype.kind == "f" else converted == values
    bad = np.flatnonzero(~good.reshape(len(values), -1).all(axis=1))
    if len(bad):
        raise DataError(
            f"{where}: row {first + bad[0]} holds a value that {dtype} cannot; give another --dtype, or none"
        )
    return converted


def check_numeric(dtype: np.dtype[Any], where: str) -> None:
    """Refuse what is no truth value, integer or float: objects above all, which only unpickling would read."""
    if dtype.hasobject:
        raise DataError(
            f"{where}: holds Python objects, which would have to be unpickled and are never read; save plain numbers"
        )
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise DataError(f"{where}: is of type {dtype}, but features are truth values, integers or floats")


def require(names: Sequence[str], have: Sequence[str], where: str, what: str) -> None:
    """Refuse names that a file lacks."""
    for name in names:
        if name not in have:
            known = ", ".join(map(repr, have[:20])) or "none"
            raise DataError(
                f"{where}: has no {what} {name!r}{suggestion(name, have)}; it has {known}"
                + (" and more" if len(have) > 20 else "")
            )
