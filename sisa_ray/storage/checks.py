"""What a source table must not hold, found by row. Messages name rows and rules, never what is in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sisa_ray.core.errors import DataError
from sisa_ray.storage.columns import Int64Array

Problems = Callable[[Mapping[str, pa.Array]], Iterable[tuple[int, str]]]
"""A recipe's own rules: (row within the columns, what is wrong with it)."""

_MAX_ROWS = 5
_MAX_RULES = 20


class Findings:
    """Broken rules with the rows that break them: of each rule the number and the first few rows."""

    def __init__(self) -> None:
        self._num_rows: dict[str, int] = {}
        self._first_rows: dict[str, list[int]] = {}

    def __bool__(self) -> bool:
        return bool(self._num_rows)

    def add(self, rule: str, rows: Iterable[int]) -> None:
        """Rows (of the source table, from 0) that break ``rule``."""
        listed = [int(row) for row in rows]
        if listed:
            self._merge(rule, len(listed), sorted(listed)[:_MAX_ROWS])

    def _merge(self, rule: str, num_rows: int, first_rows: Sequence[int]) -> None:
        self._num_rows[rule] = self._num_rows.get(rule, 0) + num_rows
        self._first_rows[rule] = sorted([*self._first_rows.get(rule, []), *first_rows])[:_MAX_ROWS]

    def update(self, other: Findings) -> None:
        """Add what was found elsewhere in the table."""
        for rule, num_rows in other._num_rows.items():
            self._merge(rule, num_rows, other._first_rows[rule])

    def to_json(self) -> str:
        """For the way from a worker to the driver."""
        return json.dumps([[rule, n, self._first_rows[rule]] for rule, n in self._num_rows.items()])

    @classmethod
    def from_json(cls, text: str) -> Findings:
        """What :meth:`to_json` wrote."""
        findings = cls()
        for rule, num_rows, first_rows in json.loads(text):
            findings._merge(rule, num_rows, first_rows)
        return findings

    def raise_if_any(self, table: str, where: Callable[[int], str] = str) -> None:
        """Raise one error that lists the rules in the order of their first rows.

        Args:
            table: the table's name.
            where: how a row of the table is written.

        Raises:
            DataError: if anything was found.
        """
        if not self._num_rows:
            return
        rules = sorted(self._num_rows, key=lambda rule: (self._first_rows[rule][0], rule))
        lines = [f"{table}: breaks rules, nothing was ingested; correct or drop these rows (counted from 0):"]
        for rule in rules[:_MAX_RULES]:
            rows, num_rows = self._first_rows[rule], self._num_rows[rule]
            more = f" and {num_rows - len(rows)} more" if num_rows > len(rows) else ""
            lines.append(f"  {rule}: row{'s' if num_rows > 1 else ''} {', '.join(map(where, rows))}{more}")
        if len(rules) > _MAX_RULES:
            rest = sum(self._num_rows[rule] for rule in rules[_MAX_RULES:])
            lines.append(f"  and {len(rules) - _MAX_RULES} other rules, broken {rest} times")
        raise DataError("\n".join(lines))


def null_rows(array: pa.Array) -> Int64Array:
    """Rows that are null or hold a list with a null element. Fields of structs may be null."""
    rows = _where(array.is_null()) if array.null_count else _none()
    if _is_list(array.type):
        below = null_rows(array.flatten())
        if len(below):
            rows = np.union1d(rows, _parents(array)[below])
    return rows


def non_finite_rows(array: pa.Array) -> Int64Array:
    """Rows that hold a NaN or an infinity, at whatever depth."""
    kind = array.type
    if pa.types.is_floating(kind):
        if array.null_count:
            valid = _where(array.is_valid())
            return valid[non_finite_rows(array.drop_null())]
        return np.flatnonzero(~np.isfinite(array.to_numpy(zero_copy_only=False)))
    if _is_list(kind):
        below = non_finite_rows(array.flatten())
        return np.unique(_parents(array)[below]) if len(below) else below
    if pa.types.is_struct(kind):
        # flatten() hands the struct's nulls on, so that nothing below a null counts.
        found = [non_finite_rows(child) for child in array.flatten()]
        return np.unique(np.concatenate(found)) if any(len(rows) for rows in found) else _none()
    return _none()


def invalid_text_rows(array: pa.Array) -> Int64Array:
    """Rows of a string array that are no UTF-8: readers of Parquet take a file's word for it."""
    kind = array.type
    if pa.types.is_string(kind):
        try:
            array.validate(full=True)
        except pa.ArrowInvalid:
            raw = array.cast(pa.binary())
            return np.array([i for i, value in enumerate(raw) if not _is_text(value.as_py())], dtype=np.int64)
    elif _is_list(kind):
        below = invalid_text_rows(array.flatten())
        return np.unique(_parents(array)[below]) if len(below) else below
    elif pa.types.is_struct(kind):
        found = [invalid_text_rows(child) for child in array.flatten()]
        return np.unique(np.concatenate(found))
    return _none()


def _is_text(value: bytes | None) -> bool:
    try:
        (value or b"").decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind))


def _parents(array: pa.Array) -> Int64Array:
    """The row of each element of ``array.flatten()``."""
    lengths = np.asarray(array.value_lengths().fill_null(0)).astype(np.int64)
    return np.repeat(np.arange(len(array), dtype=np.int64), lengths)


def _where(mask: pa.Array) -> Int64Array:
    return np.flatnonzero(np.asarray(mask))


def _none() -> npt.NDArray[np.int64]:
    return np.zeros(0, dtype=np.int64)
