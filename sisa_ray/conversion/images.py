"""Image folders: one sub-folder a class, as most public image sets come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from sisa_ray.conversion.rows import PIECE_BYTES, Findings, Rows
from sisa_ray.core.errors import DataError
from sisa_ray.storage.files import unreadable

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"})
_MOST_IMAGES = 1024


def class_folders(root: Path) -> list[str]:
    """Names of the sub-folders, sorted: the classes of a folder of images."""
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


@dataclass(frozen=True, kw_only=True)
class ImageReader:
    """One folder ``root/class/….jpg``. Images stay the bytes that they are; recipes decode and resize them.

    A record's id is ``root's name/class/file``: it stays as long as the names do.
    """

    path: Path

    def pieces(self, findings: Findings) -> Iterator[Rows]:
        """All images, by class and path in sorted order. Each is decoded once, so that a broken one shows here.

        Raises:
            DataError: for an image that cannot be decoded, or lies outside the class folders.
        """
        paths: list[Path] = []
        num_bytes = 0
        for path in self._images(findings):
            paths.append(path)
            num_bytes += path.stat().st_size
            if num_bytes >= PIECE_BYTES or len(paths) >= _MOST_IMAGES:
                yield self._rows(paths)
                paths, num_bytes = [], 0
        if paths:
            yield self._rows(paths)

    def _images(self, findings: Findings) -> Iterator[Path]:
        outside = [p for p in self.path.iterdir() if p.is_file() and p.suffix.lower() in _SUFFIXES]
        if outside:
            raise DataError(
                f"{self.path}: {min(outside).name} lies in no class folder; put images into one folder a class"
            )
        for name in class_folders(self.path):
            for path in sorted(p for p in (self.path / name).rglob("*") if p.is_file()):
                if path.name.startswith(".") or path.suffix.lower() not in _SUFFIXES:
                    findings.ignored.append(str(path))
                else:
                    yield path

    def _rows(self, paths: list[Path]) -> Rows:
        from sisa_ray.recipes.columns import undecodable  # imports torch

        column = pa.array(list(map(_contents, paths)), pa.binary())
        for row in undecodable(column):
            raise DataError(f"{paths[row]}: is no image that can be decoded; mend or remove it")
        relative = [path.relative_to(self.path) for path in paths]
        root = self.path.absolute().name
        return Rows(
            ids=[f"{root}/{path.as_posix()}" for path in relative],
            features=column,
            labels=np.array([path.parts[0] for path in relative]),
        )


def _contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(str(path), error) from None
