"""Slice tables: the records of one slice, in memory and as Parquet.

A slice table has the columns ``record_id`` and ``subject_id`` (left out where it is the record id) as
canonical strings, then one column a role, in normalised Arrow types and without any metadata. Its Parquet
form is sorted by (order bucket, record id): a bucket is what the streaming loader reads at once.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sisa_ray.core.errors import IntegrityError
from sisa_ray.core.order import buckets_of, record_hashes
from sisa_ray.storage.columns import Int64Array
from sisa_ray.storage.digest import digest_rows

RECORD_ID = "record_id"
SUBJECT_ID = "subject_id"

_META = b"sisa_ray.slice"
# Arrow's plain string and list arrays hold at most 2 GiB, so rows are gathered in parts well below that.
_GATHER_BYTES = 2**29


def subjects(table: pa.Table) -> pa.ChunkedArray:
    """Whose record each row is: the subject column, or the record ids where they are the subjects."""
    return table[SUBJECT_ID if SUBJECT_ID in table.schema.names else RECORD_ID]


def role_columns(table: pa.Table) -> pa.Table:
    """The table without its keys: what recipes see."""
    return table.drop_columns([name for name in (RECORD_ID, SUBJECT_ID) if name in table.schema.names])


def count_subject_rows(table: pa.Table, wanted: Collection[str]) -> dict[str, int]:
    """Number of records of each wanted subject that has any."""
    column = subjects(table)
    hits = column.filter(pc.is_in(column, value_set=pa.array(sorted(wanted), pa.string())))
    return {entry["values"]: entry["counts"] for entry in hits.value_counts().to_pylist()}


def erase_subjects(table: pa.Table, erased: Collection[str]) -> pa.Table:
    """The table without all records of some subjects, in memory that never held them."""
    erased_set = pa.array(sorted(erased), pa.string())
    return table.filter(pc.invert(pc.is_in(subjects(table), value_set=erased_set)))


def content_digest(table: pa.Table, key: bytes) -> str:
    """HMAC-SHA256 (hex) of what a slice table says: its schema, and its rows in the order of record ids.

    Independent of order, chunks, offsets, buffers under nulls, and of any Parquet file.
    """
    return digest_rows(sort_by_id(table), key)


def sort_by_id(table: pa.Table) -> pa.Table:
    """Rows in the order of the bytes of their record ids; columns without gaps (one chunk, unless huge)."""
    ids = table[RECORD_ID].combine_chunks() if table.num_rows else pa.array([], pa.string())
    if isinstance(ids, pa.ChunkedArray) or not _is_sorted(ids):
        return gather(table, np.asarray(pc.sort_indices(ids)).astype(np.int64))
    return table.combine_chunks()


def _is_sorted(ids: pa.Array) -> bool:
    return len(ids) < 2 or bool(pc.all(pc.less_equal(ids.slice(0, len(ids) - 1), ids.slice(1))).as_py())


def gather(table: pa.Table, indices: Int64Array) -> pa.Table:
    """The rows ``indices``. :meth:`pyarrow.Table.take` cannot take from columns of more than 2 GiB."""
    if len(indices) == 0:
        return table.schema.empty_table()
    if table.nbytes < _GATHER_BYTES:
        return table.take(pa.array(indices)).combine_chunks()
    batches = table.to_batches()
    starts = np.cumsum([0, *(b.num_rows for b in batches)])
    part_rows = max(1, len(indices) * _GATHER_BYTES // table.nbytes)
    parts = []
    for first in range(0, len(indices), part_rows):
        part = indices[first : first + part_rows]
        order = np.argsort(part, kind="stable")
        ascending = part[order]
        cuts = np.searchsorted(ascending, starts)
        pieces = [
            batch.take(pa.array(ascending[low:high] - start))
            for batch, start, low, high in zip(batches, starts, cuts, cuts[1:], strict=False)
            if low < high
        ]
        inverse = np.empty_like(order)
        inverse[order] = np.arange(len(order))
        parts.append(pa.Table.from_batches(pieces, table.schema).take(pa.array(inverse)))
    return pa.concat_tables(parts).combine_chunks()


def write_slice(table: pa.Table, *, num_buckets: int = 1, seed: int = 0) -> bytes:
    """A slice as Parquet: sorted by (order bucket, record id), each bucket in row groups of its own.

    Nothing but the rows goes into it: no statistics (they would keep single values readable at a glance),
    no dictionaries, no metadata of the table's origin.
    """
    table = sort_by_id(pa.table(table.columns, names=table.schema.names))
    sizes = [table.num_rows]
    if num_buckets > 1:
        buckets = buckets_of(record_hashes(table[RECORD_ID].to_pylist(), seed=seed), num_buckets)
        sizes = np.bincount(buckets, minlength=num_buckets).tolist()
        table = gather(table, np.argsort(buckets, kind="stable"))
    stored = _packed(table)
    logical = table.schema.serialize().to_pybytes().hex()
    meta = json.dumps({"version": 1, "bucket_rows": sizes, "schema": logical}).encode("ascii")
    sink = pa.BufferOutputStream()
    schema = stored.schema.with_metadata({_META: meta})
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        write_statistics=False,
        store_schema=True,
    ) as writer:
        start = 0
        for size in sizes:
            if size:
                writer.write_table(stored.slice(start, size), row_group_size=size)
            start += size
    data: bytes = sink.getvalue().to_pybytes()
    return data


def read_slice(source: bytes | BinaryIO) -> pa.Table:
    """All rows of a slice, in the order of the file.

    Raises:
        IntegrityError: where it is no slice that this version wrote.
    """
    file = SliceFile(pa.BufferReader(source) if isinstance(source, bytes) else source)
    return file.read()


class SliceFile:
    """A slice's Parquet, read bucket by bucket. Not for use by several threads at once.

    Args:
        source: a seekable file, or None for an empty slice, which has no object.
        num_buckets: what the spec says; a file with another number is refused.
    """

    def __init__(self, source: BinaryIO | None, *, num_buckets: int | None = None) -> None:
        self._bucket_rows: list[int] = [0] * (num_buckets or 1)
        if source is None:
            return
        try:
            self._file = pq.ParquetFile(source, pre_buffer=False)
            meta = json.loads(self._file.metadata.metadata[_META])
            self._schema = pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(meta["schema"])))
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"a slice is no Parquet file that sisa_ray wrote: {error}") from None
        self._bucket_rows = meta["bucket_rows"]
        if num_buckets is not None and num_buckets != len(self._bucket_rows):
            raise IntegrityError(
                f"a slice has {len(self._bucket_rows)} order buckets, the run's spec has {num_buckets}"
            )
        self._row_groups = _row_groups_of(self._bucket_rows, self._file.metadata)

    @property
    def num_buckets(self) -> int:
        """Number of order buckets, empty ones included."""
        return len(self._bucket_rows)

    def bucket_num_rows(self, bucket: int) -> int:
        """Number of records in a bucket."""
        return self._bucket_rows[bucket]

    def read_bucket(self, bucket: int) -> pa.Table:
        """The records of a bucket that has any, in the order of their record ids; keys included."""
        # One thread: the caller reads several slices at once, and small ones are slower with more.
        stored = self._file.read_row_groups(self._row_groups[bucket], use_threads=False)
        return _unpacked(stored, self._schema)

    def read(self) -> pa.Table:
        """All buckets, one after the other."""
        return _unpacked(self._file.read(use_threads=False), self._schema)


def _row_groups_of(bucket_rows: Sequence[int], metadata: pq.FileMetaData) -> list[list[int]]:
    """Parquet writers split large row groups, so a bucket may have several; an empty one has none."""
    groups: list[list[int]] = []
    group = 0
    for rows in bucket_rows:
        groups.append([])
        left = rows
        while left > 0 and group < metadata.num_row_groups:
            groups[-1].append(group)
            left -= metadata.row_group(group).num_rows
            group += 1
        if left:
            raise IntegrityError("a slice's row groups are not its order buckets")
    return groups


def _packed(table: pa.Table) -> pa.Table:
    """Fixed-size lists of numbers as fixed-size binary: Parquet reads and writes those many times faster."""
    columns = [_pack_column(c) if _packed_width(c.type) and _is_dense(c) else c for c in table.columns]
    return pa.table(columns, names=table.schema.names)


def _unpacked(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = []
    for column, field in zip(table.columns, schema, strict=True):
        if pa.types.is_fixed_size_binary(column.type) and pa.types.is_fixed_size_list(field.type):
            chunks = [_unpack_array(c, field.type) for c in column.chunks]
            columns.append(pa.chunked_array(chunks, field.type))
        else:
            columns.append(column.cast(field.type))
    return pa.table(columns, schema=schema)


def _packed_width(kind: pa.DataType) -> int:
    """Bytes of a value of (nested) fixed-size lists of whole-byte numbers; 0 for other types."""
    if pa.types.is_fixed_size_list(kind):
        inner = kind.value_type
        number = pa.types.is_integer(inner) or pa.types.is_floating(inner)
        width = inner.bit_width // 8 if number else _packed_width(inner)
        return int(kind.list_size * width)
    return 0


def _is_dense(column: pa.ChunkedArray) -> bool:
    return not column.null_count and all(_has_no_nulls(c.flatten()) for c in column.chunks)


def _has_no_nulls(array: pa.Array) -> bool:
    if array.null_count:
        return False
    return _has_no_nulls(array.flatten()) if pa.types.is_fixed_size_list(array.type) else True


def _pack_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    width = _packed_width(column.type)
    chunks = []
    for chunk in column.chunks:
        leaf = chunk
        while pa.types.is_fixed_size_list(leaf.type):
            leaf = leaf.flatten()
        start = leaf.offset * leaf.type.bit_width // 8
        data = leaf.buffers()[1].slice(start, len(chunk) * width) if len(chunk) else pa.py_buffer(b"")
        chunks.append(pa.Array.from_buffers(pa.binary(width), len(chunk), [None, data]))
    return pa.chunked_array(chunks, pa.binary(width))


def _unpack_array(array: pa.Array, kind: pa.DataType) -> pa.Array:
    width = array.type.byte_width
    values = array.buffers()[1] if len(array) else pa.py_buffer(b"")
    return _from_bytes(kind, len(array), values.slice(array.offset * width, len(array) * width))


def _from_bytes(kind: pa.DataType, length: int, data: pa.Buffer) -> pa.Array:
    if not pa.types.is_fixed_size_list(kind):
        return pa.Array.from_buffers(kind, length, [None, data])
    child = _from_bytes(kind.value_type, length * kind.list_size, data)
    return pa.Array.from_buffers(kind, length, [None], children=[child])
