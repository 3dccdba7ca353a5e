"""Checkpoints and mid-stage checkpoints in object storage: written under an attempt, checked when read."""

from __future__ import annotations

from dataclasses import dataclass

from sisa_ray.core.errors import IntegrityError, ObjectMissing
from sisa_ray.core.keys import file_digest
from sisa_ray.core.records import SliceRef, StageRef
from sisa_ray.storage import layout
from sisa_ray.storage.objects import ObjectStore


def read_checked(store: ObjectStore, ref: StageRef | SliceRef) -> bytes:
    """The bytes that ``ref`` names.

    Raises:
        IntegrityError: naming the object, where it is gone or its digest is another one.
    """
    assert ref.path is not None
    try:
        data = store.get(ref.path)
    except ObjectMissing:
        raise IntegrityError(f"{store.url}/{ref.path}: is missing") from None
    if file_digest(data) != ref.file_digest:
        raise IntegrityError(
            f"{store.url}/{ref.path}: does not have the digest that was committed "
            f"({len(data)} bytes, {ref.size_bytes} expected)"
        )
    return data


@dataclass(frozen=True, kw_only=True)
class StoredPartial:
    """The state of a stage after ``step`` of its steps."""

    step: int
    data: bytes


class PartialStore:
    """Mid-stage checkpoints of one stage: the furthest whole one counts, those before it are deleted."""

    def __init__(self, store: ObjectStore, *, shard: int, stage: int, key: str, attempt: str) -> None:
        self._store = store
        self._place = (shard, stage)
        self._key = key
        self._attempt = attempt
        self._known: list[str] = []

    def latest(self) -> StoredPartial | None:
        """The furthest state that is whole, from whichever attempt wrote it."""
        found = []
        for info in self._store.list(layout.partial_prefix(*self._place)):
            parsed = layout.parse_partial(info.path)
            if parsed is not None and parsed[0] == self._key:
                found.append((parsed[1], info.path, parsed[2]))
        self._known = [path for _, path, _ in found]
        for step, path, digest in sorted(found, reverse=True):
            try:
                data = self._store.get(path)
            except ObjectMissing:
                continue
            if file_digest(data) == digest:
                return StoredPartial(step=step, data=data)
        return None

    def save(self, step: int, data: bytes) -> None:
        """Store the state after ``step`` and drop those before it."""
        path = layout.partial_path(
            *self._place, self._attempt, key=self._key, step=step, digest=file_digest(data)
        )
        self._store.put(path, data)
        older = [known for known in self._known if known != path]
        self._known = [path]
        self._store.delete(older)

    def clear(self) -> None:
        """Delete all of them: the stage is built."""
        if self._known:
            self._store.delete(self._known)
            self._known = []
