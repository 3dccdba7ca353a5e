"""Slices of a run in object storage: written under an attempt, checked whenever they are read."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection

import pyarrow as pa

from sisa_ray.core.errors import IntegrityError
from sisa_ray.core.keys import file_digest
from sisa_ray.core.records import SliceRef
from sisa_ray.storage import layout
from sisa_ray.storage.checkpoints import read_checked
from sisa_ray.storage.objects import ObjectStore
from sisa_ray.storage.tables import (
    SliceFile,
    content_digest,
    count_subject_rows,
    read_slice,
    subjects,
    write_slice,
)

_IN_MEMORY_BYTES = 256 * 2**20
_CHUNK_BYTES = 8 * 2**20


def store_slice(
    store: ObjectStore,
    table: pa.Table,
    *,
    shard: int,
    slice_: int,
    attempt: str,
    content_key: bytes,
    num_buckets: int,
    seed: int,
) -> SliceRef:
    """Write a slice under ``attempt``; an empty one has no object, only a content digest."""
    digest = content_digest(table, content_key)
    path = None
    data = b""
    if table.num_rows:
        data = write_slice(table, num_buckets=num_buckets, seed=seed)
        path = layout.slice_path(shard, slice_, attempt, digest)
        store.put(path, data)
    return SliceRef(
        shard=shard,
        slice=slice_,
        path=path,
        num_records=table.num_rows,
        num_subjects=len(set(subjects(table).to_pylist())),
        content_digest=digest,
        file_digest=file_digest(data) if path else None,
        size_bytes=len(data),
    )


def load_slice(store: ObjectStore, ref: SliceRef) -> pa.Table:
    """The records of a slice that has any.

    Raises:
        IntegrityError: where the object is not what was committed.
    """
    return read_slice(read_checked(store, ref))


def count_records(store: ObjectStore, ref: SliceRef, wanted: Collection[str]) -> dict[str, int]:
    """Records in a slice of each of the ``wanted`` subjects that has any there."""
    return count_subject_rows(load_slice(store, ref), wanted) if ref.path else {}


def open_slice(store: ObjectStore, ref: SliceRef, *, num_buckets: int) -> SliceFile:
    """A slice to read bucket by bucket. A large one stays in storage and is streamed through for its digest."""
    if ref.path is None or ref.size_bytes <= _IN_MEMORY_BYTES:
        data = read_checked(store, ref) if ref.path else None
        return SliceFile(io.BytesIO(data) if data is not None else None, num_buckets=num_buckets)
    digest = hashlib.sha256()
    with store.open(ref.path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != ref.file_digest:
        raise IntegrityError(f"{store.url}/{ref.path}: does not have the digest that was committed")
    return SliceFile(store.open(ref.path), num_buckets=num_buckets)
