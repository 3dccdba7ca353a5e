"""The content digest: what a slice says, whatever file says it (contract clause 3).

HMAC-SHA256 over the schema and the rows in the order of their record ids, column by column. Of each column
come the validity of its rows (where any is null), then their values: fixed-width ones as little-endian
bytes with nulls zeroed, strings and lists as all lengths and then all contents. Lengths and the number of
rows come before what they count, so no two tables share an encoding.
"""

from __future__ import annotations

import hashlib
import hmac
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from sisa_ray.core.keys import canonical_json
from sisa_ray.storage.columns import data_of, describe, offsets_of

assert sys.byteorder == "little", "content digests read Arrow's buffers as they are"

_Feed = Callable[[bytes | memoryview], None]


def digest_rows(table: pa.Table, key: bytes) -> str:
    """HMAC-SHA256 (hex) of a table of normalised columns whose rows are in order already."""
    schema = [[field.name, describe(field.type)] for field in table.schema]
    digest = hmac.new(key, digestmod=hashlib.sha256)
    digest.update(canonical_json({"version": 1, "schema": schema, "num_rows": table.num_rows}))
    for column in table.columns:
        _feed_column(column.chunks, column.type, digest.update)
    return digest.hexdigest()


def _feed_column(chunks: Sequence[pa.Array], kind: pa.DataType, feed: _Feed) -> None:
    """Feed one column, given in chunks: contents run through all of them, so that chunks do not show."""
    has_nulls = any(c.null_count for c in chunks)
    feed(b"\x01" if has_nulls else b"\x00")
    if has_nulls:
        valid = np.concatenate([np.asarray(c.is_valid()) for c in chunks])
        feed(np.packbits(valid, bitorder="little").data)
        # What lies below a null is whatever the writer left there.
        if not _is_fixed_width(kind):
            chunks = [c.drop_null() for c in chunks]
    _feed_values(chunks, kind, feed)


def _feed_values(chunks: Sequence[pa.Array], kind: pa.DataType, feed: _Feed) -> None:
    t = pa.types
    if t.is_boolean(kind):
        for c in chunks:
            feed(np.asarray(c.fill_null(False)).astype(np.uint8).data)
    elif _is_fixed_width(kind):
        for c in chunks:
            feed(_fixed_bytes(c))
    elif t.is_string(kind) or t.is_binary(kind):
        offsets = [offsets_of(c) for c in chunks]
        for o in offsets:
            feed(np.diff(o).astype("<u8").data)
        for c, o in zip(chunks, offsets, strict=True):
            feed(memoryview(data_of(c, o)))
    elif t.is_list(kind):
        for c in chunks:
            feed(np.diff(offsets_of(c)).astype("<u8").data)
        _feed_column([c.flatten() for c in chunks], kind.value_type, feed)
    elif t.is_fixed_size_list(kind):
        _feed_column([c.flatten() for c in chunks], kind.value_type, feed)
    else:
        for i in range(kind.num_fields):
            _feed_column([c.field(i) for c in chunks], kind.field(i).type, feed)


def _is_fixed_width(kind: pa.DataType) -> bool:
    t = pa.types
    is_nested = t.is_list(kind) or t.is_fixed_size_list(kind) or t.is_struct(kind)
    return not (is_nested or t.is_string(kind) or t.is_binary(kind))


def _fixed_bytes(array: pa.Array) -> memoryview:
    """The values as bytes, zero where null."""
    width = array.type.bit_width // 8
    if len(array) == 0:
        return memoryview(b"")
    values = array.buffers()[1]
    raw = np.frombuffer(values, dtype=np.uint8, count=len(array) * width, offset=array.offset * width)
    if array.null_count:
        rows = raw.reshape(len(array), width).copy()
        rows[np.asarray(array.is_null())] = 0
        raw = rows.reshape(-1)
    return raw.data
