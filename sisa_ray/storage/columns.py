"""Arrow columns in one form each: normalised types, canonical keys, several columns packed into one.

Two tables that say the same in different Arrow types (dictionaries, large offsets, views, extension types)
become equal here, so that nothing below ever sees how a file happened to be written.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sisa_ray.core.errors import DataError

Int64Array = npt.NDArray[np.int64]


class UnsupportedType(DataError):
    """An Arrow type that no slice table holds; the message is completed with the column by the caller."""


def normal_type(kind: pa.DataType) -> pa.DataType:
    """The one type that columns of type ``kind`` are kept in.

    Dictionaries and run-end encodings are decoded, extension types are their storage, large and view types
    their plain kin, and what Parquet has no unit for gets the nearest that it has.

    Raises:
        UnsupportedType: for maps, unions, intervals and types that hold no values.
    """
    t = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return normal_type(kind.storage_type)
    if t.is_dictionary(kind) or t.is_run_end_encoded(kind):
        return normal_type(kind.value_type)
    if _is_text(kind):
        return pa.string()
    if t.is_fixed_size_binary(kind):
        if kind.byte_width == 0:
            raise UnsupportedType("holds values of no bytes")
        return kind
    if _is_bytes(kind):
        return pa.binary()
    if t.is_fixed_size_list(kind):
        if kind.list_size == 0:
            raise UnsupportedType("holds lists of no elements")
        return pa.list_(normal_type(kind.value_type), kind.list_size)
    if _is_list(kind):
        return pa.list_(normal_type(kind.value_type))
    if t.is_struct(kind):
        if kind.num_fields == 0:
            raise UnsupportedType("holds structs of no fields")
        return pa.struct([pa.field(f.name, normal_type(f.type)) for f in kind])
    return _normal_scalar(kind)


def _normal_scalar(kind: pa.DataType) -> pa.DataType:
    t = pa.types
    if t.is_timestamp(kind):
        return pa.timestamp("ms", kind.tz) if kind.unit == "s" else kind
    if t.is_time32(kind):
        return pa.time32("ms")
    if t.is_date(kind):
        return pa.date32()
    if t.is_decimal(kind):
        make = pa.decimal256 if t.is_decimal256(kind) else pa.decimal128
        return make(kind.precision, kind.scale)
    if _is_number(kind) or t.is_time64(kind) or t.is_duration(kind):
        return kind
    if t.is_null(kind):
        raise UnsupportedType("has no values, only nulls")
    raise UnsupportedType("is of no supported type; convert it to numbers, strings, binary, lists or structs")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    t = pa.types
    is_view = t.is_list_view(kind) or t.is_large_list_view(kind)
    return bool(t.is_list(kind) or t.is_large_list(kind) or is_view)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind))


def describe(kind: pa.DataType) -> object:
    """A normalised type as plain JSON data: our own words, so that no version of pyarrow changes a digest."""
    t = pa.types
    if t.is_fixed_size_list(kind):
        return ["fixed_size_list", kind.list_size, describe(kind.value_type)]
    if t.is_list(kind):
        return ["list", describe(kind.value_type)]
    if t.is_struct(kind):
        return ["struct", [[f.name, describe(f.type)] for f in kind]]
    if t.is_fixed_size_binary(kind):
        return ["fixed_size_binary", kind.byte_width]
    if t.is_decimal(kind):
        return [f"decimal{kind.bit_width}", kind.precision, kind.scale]
    if t.is_timestamp(kind):
        return ["timestamp", kind.unit, kind.tz]
    if t.is_time(kind) or t.is_duration(kind):
        return ["duration" if t.is_duration(kind) else "time", kind.unit]
    return _SCALAR_NAMES[kind]


_SCALAR_NAMES: dict[pa.DataType, str] = {
    pa.bool_(): "bool",
    pa.int8(): "int8",
    pa.int16(): "int16",
    pa.int32(): "int32",
    pa.int64(): "int64",
    pa.uint8(): "uint8",
    pa.uint16(): "uint16",
    pa.uint32(): "uint32",
    pa.uint64(): "uint64",
    pa.float16(): "float16",
    pa.float32(): "float32",
    pa.float64(): "float64",
    pa.date32(): "date",
    pa.string(): "string",
    pa.binary(): "binary",
}


def normalise(array: pa.Array) -> pa.Array:
    """The same values in the normal type; copies only what must be.

    Raises:
        UnsupportedType: see :func:`normal_type`.
        pa.ArrowInvalid: where a value has no equal in the normal type.
    """
    kind = array.type
    target = normal_type(kind)
    t = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return normalise(array.storage)
    if t.is_dictionary(kind):
        return normalise(array.dictionary_decode())
    if t.is_run_end_encoded(kind):
        return normalise(pc.run_end_decode(array))
    if t.is_struct(kind):
        children = [normalise(array.field(i)) for i in range(kind.num_fields)]
        mask = array.is_null() if array.null_count else None
        return pa.StructArray.from_arrays(children, fields=list(target), mask=mask)
    if t.is_fixed_size_list(kind) or _is_list(kind):
        if not (t.is_list(kind) or t.is_fixed_size_list(kind)):
            array = _plain_list(array)
        buffers = array.buffers()[: 1 if t.is_fixed_size_list(kind) else 2]
        child = normalise(array.values)  # all of it, whatever the offset: the buffers stay as they are
        return pa.Array.from_buffers(target, len(array), buffers, offset=array.offset, children=[child])
    return array if kind.equals(target) else array.cast(target)


def _plain_list(array: pa.Array) -> pa.Array:
    """A list array with offsets of 32 bits, from one of another layout: Arrow's casts of views are not safe."""
    lengths = np.asarray(pc.list_value_length(array).fill_null(0)).astype(np.int64)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)])).cast(pa.int32())
    mask = array.is_null() if array.null_count else None
    return pa.ListArray.from_arrays(offsets, array.flatten(), mask=mask)


def is_key_type(kind: pa.DataType) -> bool:
    """Whether columns of this type can be record ids or subjects: integers, strings, binary."""
    try:
        kind = normal_type(kind)
    except UnsupportedType:
        return False
    t = pa.types
    return bool(t.is_integer(kind) or t.is_string(kind) or t.is_binary(kind) or t.is_fixed_size_binary(kind))


def canonical_keys(array: pa.Array) -> pa.Array:
    """Canonical strings of a key column, as :func:`~sisa_ray.core.keys.canonical_key`; nulls stay null."""
    array = normalise(array)
    if pa.types.is_string(array.type):
        return array
    if pa.types.is_integer(array.type):
        return array.cast(pa.string())
    if pa.types.is_fixed_size_binary(array.type):
        array = array.cast(pa.binary())
    return _hex(array)


def _hex(array: pa.Array) -> pa.Array:
    """Lower-case hex of binary values: two characters a byte, so the offsets double."""
    offsets = offsets_of(array)
    if offsets[-1] - offsets[0] > 2**30:
        half = len(array) // 2
        return pa.concat_arrays([_hex(array.slice(0, half)), _hex(array.slice(half))])
    text = data_of(array, offsets).to_pybytes().hex().encode("ascii")
    doubled = ((offsets - offsets[0]) * 2).astype(np.int32)
    keys = pa.StringArray.from_buffers(len(array), pa.py_buffer(doubled), pa.py_buffer(text))
    return pc.if_else(array.is_null(), pa.scalar(None, pa.string()), keys) if array.null_count else keys


def offsets_of(array: pa.Array) -> Int64Array:
    """Offsets of a string, binary or list array, ``len(array) + 1`` of them, into its data or child."""
    if len(array) == 0:
        return np.zeros(1, dtype=np.int64)
    raw = np.frombuffer(array.buffers()[1], dtype=np.int32, count=len(array) + 1, offset=array.offset * 4)
    return raw.astype(np.int64)


def data_of(array: pa.Array, offsets: Int64Array) -> pa.Buffer:
    """The bytes of a string or binary array from its first to its last offset."""
    data = array.buffers()[2]
    return pa.py_buffer(b"") if data is None else data.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))


def packed_type(kinds: Sequence[pa.DataType]) -> pa.DataType:
    """The type of several source columns packed into one role: fixed-size lists of their common numeric type.

    Raises:
        UnsupportedType: where a column is no number, or no type holds the numbers of all.
    """
    for position, kind in enumerate(kinds):
        if not _is_number(kind):
            raise UnsupportedType(f"column {position + 1} of the list is of type {kind}, not a number")
    common = np.result_type(*[np.dtype(k.to_pandas_dtype()) for k in kinds])
    if common.kind == "f" and all(pa.types.is_integer(k) for k in kinds):
        raise UnsupportedType("they mix uint64 with signed integers, which no integer type holds")
    return pa.list_(pa.from_numpy_dtype(common), len(kinds))


def pack(arrays: Sequence[pa.Array], target: pa.DataType) -> pa.Array:
    """One fixed-size list a row from one array a position; a row with any null is null.

    Raises:
        pa.ArrowInvalid: where a value cannot be represented in the common type.
    """
    parts = [a.cast(target.value_type) for a in arrays]
    mask = None
    if any(p.null_count for p in parts):
        mask = pa.array(np.logical_or.reduce([np.asarray(p.is_null()) for p in parts]))
        zero = pa.scalar(0).cast(target.value_type)
        parts = [pc.if_else(p.is_null(), zero, p) for p in parts]
    rows = np.stack([p.to_numpy(zero_copy_only=False) for p in parts], axis=1)
    values = pa.array(np.ascontiguousarray(rows).reshape(-1), type=target.value_type)
    return pa.FixedSizeListArray.from_arrays(values, type=target, mask=mask)
