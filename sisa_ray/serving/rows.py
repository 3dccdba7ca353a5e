"""Rows that callers send, as a table of the run's roles: JSON, or an Arrow stream."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from sisa_ray.core.errors import DataError
from sisa_ray.serving.problems import Problem
from sisa_ray.storage.checks import invalid_text_rows, non_finite_rows, null_rows
from sisa_ray.storage.columns import normalise, pack

LABEL: Final = "label"
ARROW_STREAM = "application/vnd.apache.arrow.stream"


class RowReader:
    """Reads rows with the columns of the run's own table: those of every role but the label.

    Args:
        schema: of the role columns.
        columns: the source column, or columns, of each role.
        max_rows: of one request.
    """

    def __init__(
        self, schema: pa.Schema, columns: Mapping[str, str | tuple[str, ...]], *, max_rows: int
    ) -> None:
        self.schema = pa.schema([field for field in schema if field.name != LABEL])
        self._sources = {name: columns[name] for name in self.schema.names}
        self._max_rows = max_rows
        self._fields = list(self.schema)
        # A type without floating-point numbers, text or nested values breaks no rule but that of nulls.
        self._has_rules = {
            field.name: not (pa.types.is_integer(field.type) or pa.types.is_fixed_size_binary(field.type))
            for field in self._fields
        }
        self._known = {n for s in self._sources.values() for n in ((s,) if isinstance(s, str) else s)}

    def from_json(self, rows: object) -> pa.Table:
        """A table from a list of objects, one a row.

        Raises:
            Problem: naming the row and the column that break a rule.
        """
        if not isinstance(rows, list):
            raise _bad("rows: must be a list of objects, one a row")
        self._check_count(len(rows))
        for number, row in enumerate(rows):
            if not isinstance(row, dict) or row.keys() != self._known:
                raise self._bad_row(number, row)
        arrays = []
        for field in self._fields:
            names = self._sources[field.name]
            if isinstance(names, str):
                arrays.append(_array(names, [row[names] for row in rows], field.type))
            else:
                values = [[row[name] for name in names] for row in rows]
                arrays.append(_array(f"{names[0]} … {names[-1]}", values, field.type))
        return self._checked(arrays)

    def from_arrow(self, body: bytes) -> pa.Table:
        """A table from an Arrow IPC stream or file.

        Raises:
            Problem: where it is none, or its columns are not the run's.
        """
        try:
            is_file = body[:6] == b"ARROW1"
            table = (pa.ipc.open_file(body) if is_file else pa.ipc.open_stream(body)).read_all()
            table.validate(full=True)
        except (pa.ArrowException, OSError, ValueError, IndexError):
            raise _bad("body: is no Arrow IPC stream; send what pyarrow.ipc.new_stream writes") from None
        self._check_count(table.num_rows)
        missing = sorted(self._known - set(table.schema.names))
        if missing:
            raise _bad(f"body: has no column {missing[0]!r}; send {', '.join(sorted(self._known))}")
        try:
            table = table.combine_chunks()
            arrays = [self._role(table, field) for field in self.schema]
        except (pa.ArrowException, DataError, ValueError, NotImplementedError):
            raise _bad(f"body: its columns cannot be read as {self._described()}") from None
        return self._checked(arrays)

    def _role(self, table: pa.Table, field: pa.Field) -> pa.Array:
        names = self._sources[field.name]
        if isinstance(names, str):
            return normalise(_one(table, names)).cast(field.type)
        return pack([normalise(_one(table, name)) for name in names], field.type)

    def _checked(self, arrays: Sequence[pa.Array]) -> pa.Table:
        for field, array in zip(self._fields, arrays, strict=True):
            if not (array.null_count or self._has_rules[field.name]):
                continue
            names = self._sources[field.name]
            column = names if isinstance(names, str) else f"{names[0]} … {names[-1]}"
            for rule, rows in (
                ("is null", null_rows(array)),
                ("is not finite (NaN or infinite)", non_finite_rows(array)),
                ("is not valid UTF-8", invalid_text_rows(array)),
            ):
                if len(rows):
                    raise _bad(f"rows[{int(rows[0])}].{column}: {rule}; every row needs a value")
        return pa.Table.from_arrays(list(arrays), schema=self.schema)

    def _check_count(self, count: int) -> None:
        if not count:
            raise _bad("rows: is empty; send at least one row")
        if count > self._max_rows:
            raise Problem(
                413,
                "too-many-rows",
                f"rows: has {count:,} of them, but one request has at most {self._max_rows:,}",
            )

    def _bad_row(self, number: int, row: object) -> Problem:
        if not isinstance(row, dict):
            return _bad(f"rows[{number}]: must be an object with {self._described()}")
        missing = sorted(self._known - row.keys())
        if missing:
            return _bad(f"rows[{number}].{missing[0]}: is required; a row has {self._described()}")
        return _bad(f"rows[{number}]: has columns that the run does not know; a row has {self._described()}")

    def _described(self) -> str:
        kinds = []
        for field in self.schema:
            names = self._sources[field.name]
            if isinstance(names, str):
                kinds.append(f"{names} ({field.type})")
            else:
                kinds.append(f"{names[0]} … {names[-1]} ({field.type.value_type})")
        return ", ".join(kinds)


def parse_json(body: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        Problem: where it is none.
    """
    try:
        data = _DECODER.decode(body.decode())
    except (ValueError, RecursionError):
        raise Problem(400, "not-json", "body: is not JSON in UTF-8 (NaN and Infinity are not JSON)") from None
    if not isinstance(data, dict):
        raise _bad("body: must be a JSON object")
    return data


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _array(column: str, values: list[Any], kind: pa.DataType) -> pa.Array:
    try:
        return _converted(values, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError):
        pass
    for number, value in enumerate(values):
        try:
            _converted([value], kind)
        except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError):
            raise _bad(f"rows[{number}].{column}: must be {_expected(kind)}") from None
    raise _bad(f"rows: {column} must be {_expected(kind)}")


def _converted(values: list[Any], kind: pa.DataType) -> pa.Array:
    t = pa.types
    if t.is_binary(kind) or t.is_fixed_size_binary(kind):
        return pa.array([None if v is None else _bytes(v) for v in values], type=kind)
    if t.is_temporal(kind) or t.is_decimal(kind):
        return pa.array(values, type=pa.string()).cast(kind)
    if t.is_boolean(kind) is False and any(isinstance(v, bool) for v in values):
        raise TypeError
    return pa.array(values, type=kind)


def _bytes(value: object) -> bytes:
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error:
            raise ValueError from None
    if isinstance(value, list):
        return bytes(value)
    raise TypeError


def _expected(kind: pa.DataType) -> str:
    t = pa.types
    if t.is_fixed_size_binary(kind):
        return f"{kind.byte_width} bytes, in base64 or as a list of numbers from 0 to 255"
    if t.is_binary(kind):
        return "bytes in base64"
    if t.is_fixed_size_list(kind):
        return f"a list of {kind.list_size} values of type {kind.value_type}"
    return f"of type {kind}"


def _one(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)  # a ValueError where there are several of that name
    return column.chunk(0) if column.num_chunks else pa.array([], type=column.type)


def _bad(detail: str) -> Problem:
    return Problem(422, "bad-rows", detail)
