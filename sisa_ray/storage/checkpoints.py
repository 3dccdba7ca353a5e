"""Checkpoints and mid-stage checkpoints in object storage: written under an attempt, checked when read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from sisa_ray.core.errors import IntegrityError, ObjectMissing
from sisa_ray.core.keys import canonical_json, file_digest
from sisa_ray.core.records import PartRef, SliceRef, StageRef
from sisa_ray.storage import layout
from sisa_ray.storage.objects import ObjectStore


def read_checked(store: ObjectStore, ref: StageRef | SliceRef | PartRef) -> bytes:
    """The bytes that ``ref`` names; of a checkpoint in parts, its index.

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


def check_stored(store: ObjectStore, ref: StageRef) -> None:
    """Read everything that is stored for a stage, one object after the other.

    Raises:
        IntegrityError: naming the first object that is gone or has another digest.
    """
    index = read_checked(store, ref)
    for part in ref.parts:
        read_checked(store, part)
    if ref.parts and index != index_of(ref.parts):
        raise IntegrityError(f"{store.url}/{ref.path}: is no index of the parts that were committed")


def index_of(parts: tuple[PartRef, ...]) -> bytes:
    """The index of a checkpoint in parts: names beside it, digests and sizes, in order. The same for the same state."""
    listed = [
        {"name": p.path.rpartition("/")[2], "sha256": p.file_digest, "size_bytes": p.size_bytes}
        for p in parts
    ]
    return canonical_json({"parts": listed})


@dataclass(frozen=True, kw_only=True)
class StoredPartial:
    """The state of a stage after ``step`` of its steps."""

    step: int
    data: bytes


@dataclass(frozen=True, kw_only=True)
class FoundPartial:
    """A mid-stage checkpoint of which every part is there: path and digest of each."""

    step: int
    parts: tuple[tuple[str, str], ...]


class PartialStore:
    """Mid-stage checkpoints of one stage: the furthest whole one counts, those before it are deleted.

    ``part`` is (which, of how many): where workers share a model out, each stores its own part.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        shard: int,
        stage: int,
        key: str,
        attempt: str,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self._store = store
        self._place = (shard, stage)
        self._key = key
        self._attempt = attempt
        self._part = part
        self._known: list[str] = []

    def latest(self) -> StoredPartial | None:
        """The furthest state that is whole, from whichever attempt wrote it."""
        for found in self.found():
            data = self.read(found)
            if data is not None:
                return StoredPartial(step=found.step, data=data)
        return None

    def found(self) -> list[FoundPartial]:
        """What is there, from whichever attempt, the furthest first. From now on they are this one's to delete."""
        seen: defaultdict[tuple[int, str], dict[int, tuple[str, str]]] = defaultdict(dict)
        self._known = []
        for info in self._store.list(layout.partial_prefix(*self._place)):
            name = layout.parse_partial(info.path)
            if name is None or name.key != self._key:
                continue
            self._known.append(info.path)
            if name.part[1] == self._part[1]:
                directory = info.path.rpartition("/")[0]
                # The writer is part of the key: a set is whole by what one of them wrote.
                seen[name.step, directory if name.part[1] > 1 else info.path][name.part[0]] = (
                    info.path,
                    name.digest,
                )
        whole = [(place, parts) for place, parts in seen.items() if len(parts) == self._part[1]]
        return [
            FoundPartial(step=place[0], parts=tuple(parts[i] for i in range(self._part[1])))
            for place, parts in sorted(whole, key=lambda item: item[0], reverse=True)
        ]

    def read(self, found: FoundPartial) -> bytes | None:
        """This one's part, or None where its bytes are gone or not what its name says."""
        path, digest = found.parts[self._part[0]]
        try:
            data = self._store.get(path)
        except ObjectMissing:
            return None
        return data if file_digest(data) == digest else None

    def save(self, step: int, data: bytes, *, together: Callable[[], object] = lambda: None) -> None:
        """Store the state after ``step`` and drop those before it.

        ``together`` returns when the others have stored their parts.
        """
        path = layout.partial_path(
            *self._place, self._attempt, key=self._key, step=step, digest=file_digest(data), part=self._part
        )
        self._store.put(path, data)
        together()
        older = [known for known in self._known if known != path]
        self._known = [path]
        self._store.delete(older)

    def clear(self) -> None:
        """Delete all of them: the stage is built."""
        if self._known:
            self._store.delete(self._known)
            self._known = []
