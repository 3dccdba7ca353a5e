"""Cached features in object storage: written under an attempt, checked when read, computed again where they are lost.

They are made of people's records, so they go when the records go: see :mod:`sisa_ray.storage.purge`.
"""

from __future__ import annotations

from collections import defaultdict

from sisa_ray.core.errors import ObjectMissing
from sisa_ray.core.keys import file_digest, json_digest
from sisa_ray.storage import layout
from sisa_ray.storage.layout import FeatureName
from sisa_ray.storage.objects import ObjectStore

_IN_MEMORY_BYTES = 256 * 2**20


class FeatureStore:
    """The cached features of one shard, as one platform computes them.

    Args:
        store: of the run.
        shard: whose slices they are of.
        attempt: under which new ones are written.
        platform: on which they are computed, and read: another one rounds in its own way.
    """

    def __init__(self, store: ObjectStore, *, shard: int, attempt: str, platform: dict[str, str]) -> None:
        self._store = store
        self._shard = shard
        self._attempt = attempt
        self._platform = json_digest(platform)[:16]
        self._held: dict[str, bytes] = {}
        self._held_bytes = 0
        self._found: dict[tuple[str, int], list[str]] = defaultdict(list)
        for info in store.list(layout.features_prefix(shard)):
            name = layout.parse_features(info.path)
            if name is not None and name.platform == self._platform:
                self._found[name.key, name.bucket].append(info.path)

    def find(self, key: str, bucket: int) -> str | None:
        """The object of one order bucket of a slice, whole and read once; None where there is none.

        What has not the digest that its name says is deleted: it can be computed again.
        """
        for path in list(self._found[key, bucket]):
            if self._checked(path) is not None:
                return path
            self._store.delete([path])
            self._found[key, bucket].remove(path)
        return None

    def save(self, key: str, bucket: int, slice_: int, data: bytes) -> str:
        """Store what was computed; its path."""
        name = FeatureName(key=key, platform=self._platform, bucket=bucket, digest=file_digest(data))
        path = layout.features_path(self._shard, slice_, self._attempt, name)
        self._store.put(path, data)
        self._found[key, bucket].append(path)
        self._hold(path, data)
        return path

    def read(self, path: str) -> bytes:
        """The bytes of an object that was found or saved.

        Raises:
            ObjectMissing: where it is gone, or has become another one.
        """
        data = self._held.get(path) or self._checked(path)
        if data is None:
            raise ObjectMissing(
                f"{self._store.url}/{path}: is gone or has changed; run the same command again"
            )
        return data

    def _checked(self, path: str) -> bytes | None:
        data = _whole(self._store, path)
        if data is not None:
            self._hold(path, data)
        return data

    def _hold(self, path: str, data: bytes) -> None:
        """Keep small ones in memory: whoever looks for them is about to read them."""
        if path not in self._held and self._held_bytes + len(data) <= _IN_MEMORY_BYTES:
            self._held[path] = data
            self._held_bytes += len(data)


def differing_features(store: ObjectStore, other: ObjectStore, shard: int) -> str | None:
    """The first object of a shard's cached features that ``other`` computed differently, or that is broken."""
    there = {
        (name.key, name.platform, name.bucket): name.digest
        for info in other.list(layout.features_prefix(shard))
        if (name := layout.parse_features(info.path)) is not None
    }
    for info in store.list(layout.features_prefix(shard)):
        name = layout.parse_features(info.path)
        if name is None:
            continue
        again = there.get((name.key, name.platform, name.bucket))
        if again is not None and (again != name.digest or _whole(store, info.path) is None):
            return info.path
    return None


def _whole(store: ObjectStore, path: str) -> bytes | None:
    """The bytes of an object, if they have the digest that its name says."""
    name = layout.parse_features(path)
    try:
        data = store.get(path)
    except ObjectMissing:
        return None
    return data if name is not None and file_digest(data) == name.digest else None
