"""Arrow tables of every type, drawn by Hypothesis, and what they say in plain Python: the oracle."""

from __future__ import annotations

import math
import struct
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

SIGNED = {pa.int8(): 8, pa.int16(): 16, pa.int32(): 32, pa.int64(): 64}
UNSIGNED = {pa.uint8(): 8, pa.uint16(): 16, pa.uint32(): 32, pa.uint64(): 64}
TEMPORAL = {
    pa.date32(): 10_000,
    pa.time32("ms"): 86_399_999,
    pa.time64("us"): 86_399_999_999,
    pa.time64("ns"): 86_399_999_999_999,
    pa.timestamp("ms"): 2**40,
    pa.timestamp("us", "UTC"): 2**50,
    pa.timestamp("ns"): 2**60,
    pa.duration("s"): 2**40,
    pa.duration("ns"): 2**60,
}
SCALARS = [
    pa.bool_(),
    pa.float16(),
    pa.float32(),
    pa.float64(),
    pa.string(),
    pa.binary(),
    pa.binary(3),
    pa.decimal128(9, 2),
    pa.decimal256(50, 3),
    *SIGNED,
    *UNSIGNED,
    *TEMPORAL,
]


def types() -> st.SearchStrategy[pa.DataType]:
    """Normalised types, nested up to three deep."""
    return st.recursive(
        st.sampled_from(SCALARS),
        lambda inner: st.one_of(
            inner.map(pa.list_),
            st.tuples(inner, st.integers(1, 3)).map(lambda t: pa.list_(*t)),
            st.lists(inner, min_size=1, max_size=3).map(
                lambda kinds: pa.struct([(f"f{i}", kind) for i, kind in enumerate(kinds)])
            ),
        ),
        max_leaves=4,
    )


def values(kind: pa.DataType, *, nulls: bool, finite: bool = False) -> st.SearchStrategy[Any]:
    """Python values of a type. With ``nulls``, anything at any depth may be None."""
    plain = _values(kind, nulls=nulls, finite=finite)
    return st.none() | plain if nulls else plain


def _values(kind: pa.DataType, *, nulls: bool, finite: bool) -> st.SearchStrategy[Any]:
    t = pa.types
    if t.is_boolean(kind):
        return st.booleans()
    if t.is_floating(kind):
        floats = st.floats(width=kind.bit_width, allow_nan=not finite, allow_infinity=not finite)
        return floats.map(np.float16) if t.is_float16(kind) else floats
    if t.is_string(kind):
        return st.text(max_size=4)
    if t.is_fixed_size_binary(kind):
        return st.binary(min_size=kind.byte_width, max_size=kind.byte_width)
    if t.is_binary(kind):
        return st.binary(max_size=4)
    if t.is_decimal(kind):
        digits = st.integers(0, 10**kind.precision - 1).map(lambda n: tuple(map(int, str(n))))
        return st.builds(lambda sign, n: Decimal((sign, n, -kind.scale)), st.sampled_from([0, 1]), digits)
    if kind in SIGNED:
        bits = SIGNED[kind]
        return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if kind in UNSIGNED:
        return st.integers(0, 2 ** UNSIGNED[kind] - 1)
    if kind in TEMPORAL:
        return st.integers(0, TEMPORAL[kind])
    if t.is_fixed_size_list(kind):
        inner = values(kind.value_type, nulls=nulls, finite=finite)
        return st.lists(inner, min_size=kind.list_size, max_size=kind.list_size)
    if t.is_list(kind):
        return st.lists(values(kind.value_type, nulls=nulls, finite=finite), max_size=3)
    return st.fixed_dictionaries({f.name: values(f.type, nulls=nulls, finite=finite) for f in kind})


@st.composite
def slice_tables(
    draw: st.DrawFn, *, min_rows: int = 0, max_rows: int = 6, nulls: bool = True, num_roles: int | None = None
) -> pa.Table:
    """Slice tables: unique record ids, perhaps subjects, one to three roles."""
    ids = draw(st.lists(st.text(max_size=4), min_size=min_rows, max_size=max_rows, unique=True))
    columns = {"record_id": pa.array(ids, pa.string())}
    if draw(st.booleans()):
        people = st.lists(st.sampled_from(["ada", "bob", ""]), min_size=len(ids), max_size=len(ids))
        columns["subject_id"] = pa.array(draw(people), pa.string())
    for number in range(num_roles or draw(st.integers(1, 3))):
        kind = draw(types())
        column = st.lists(values(kind, nulls=nulls), min_size=len(ids), max_size=len(ids))
        columns[f"role{number}"] = pa.array(draw(column), kind)
    return pa.table(columns)


def said(table: pa.Table) -> object:
    """What a table says, row by row in the order of ids: equal for two tables if and only if they say the same."""
    ids = table["record_id"].to_pylist()
    order = sorted(range(len(ids)), key=lambda row: ids[row].encode())
    columns = [[_said(scalar) for scalar in column] for column in table.columns]
    return (
        [(field.name, str(field.type)) for field in table.schema],
        [tuple(column[row] for column in columns) for row in order],
    )


def _said(scalar: pa.Scalar) -> object:
    kind = scalar.type
    if not scalar.is_valid:
        return None
    if pa.types.is_floating(kind):
        value = float(scalar.as_py())
        # All NaN that Python makes are one, which is all that the strategies draw.
        return "nan" if math.isnan(value) else struct.pack("<d", value)
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return ("list", [_said(scalar.values[i]) for i in range(len(scalar.values))])
    if pa.types.is_struct(kind):
        return ("struct", [_said(scalar[i]) for i in range(kind.num_fields)])
    if kind in TEMPORAL:
        return scalar.value
    return scalar.as_py()
