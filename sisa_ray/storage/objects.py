"""Interim local store."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sisa_ray.core.errors import ObjectExists, ObjectMissing


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    path: str
    size_bytes: int


class ObjectStore:
    def __init__(self, url: str) -> None:
        self.url = url

    def _p(self, path: str) -> Path:
        return Path(self.url) / path

    def get(self, path: str) -> bytes:
        try:
            return self._p(path).read_bytes()
        except FileNotFoundError:
            raise ObjectMissing(f"{self.url}/{path}: missing") from None

    def open(self, path: str) -> BinaryIO:
        return self._p(path).open("rb")

    def put(self, path: str, data: bytes | memoryview) -> None:
        p = self._p(path)
        p.parent.mkdir(parents=True, exist_ok=True)
        t = p.parent / f".tmp-{uuid.uuid4().hex}"
        t.write_bytes(data)
        os.replace(t, p)

    def create(self, path: str, data: bytes) -> None:
        p = self._p(path)
        p.parent.mkdir(parents=True, exist_ok=True)
        t = p.parent / f".tmp-{uuid.uuid4().hex}"
        t.write_bytes(data)
        try:
            os.link(t, p)
        except FileExistsError:
            raise ObjectExists(path) from None
        finally:
            t.unlink()

    def list(self, prefix: str = "", *, all_versions: bool = False) -> Iterator[ObjectInfo]:
        root = Path(self.url)
        for d, _, files in os.walk(root):
            for f in files:
                if f.startswith(".tmp-"):
                    continue
                p = Path(d) / f
                rel = p.relative_to(root).as_posix()
                if rel.startswith(prefix):
                    yield ObjectInfo(path=rel, size_bytes=p.stat().st_size)

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            self._p(path).unlink(missing_ok=True)

    def exists(self, path: str) -> bool:
        return self._p(path).exists()

    def child(self, prefix: str) -> ObjectStore:
        return ObjectStore(f"{self.url}/{prefix.rstrip('/')}")


def open_store(url: str) -> ObjectStore:
    return ObjectStore(url)
