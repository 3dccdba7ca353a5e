"""The directory that a conversion writes: complete, or not there at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from sisa_ray.core.errors import ConfigError, StorageError

FILES = frozenset({"train.parquet", "test.parquet", "classes.json"})
"""What a conversion writes, and all that it may replace."""


@contextlib.contextmanager
def fresh_directory(out: str, *, overwrite: bool) -> Iterator[Path]:
    """A directory to write into, which takes the name ``out`` when the block ends well, and vanishes otherwise.

    Raises:
        ConfigError: where ``out`` is taken and ``overwrite`` is not given, or holds files of others.
        StorageError: where it cannot be written.
    """
    place = free_place(out, overwrite=overwrite)
    staging = place.with_name(f".{place.name}.{uuid.uuid4().hex}.tmp")
    try:
        staging.mkdir()
        yield staging
        free_place(out, overwrite=overwrite)  # nobody may have come in meanwhile
        _take_name(staging, place)
    except OSError as error:
        name = error.filename or place
        raise StorageError(f"{name}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def free_place(out: str, *, overwrite: bool) -> Path:
    """Where ``out`` is; errors as :func:`fresh_directory`."""
    if "://" in out:
        raise ConfigError(
            f"--out: must be a local directory, not {out!r}; copy the files to the bucket afterwards"
        )
    place = Path(out).expanduser().absolute()
    if not place.parent.is_dir():
        raise ConfigError(f"--out: the directory {place.parent} does not exist; make it first")
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        raise ConfigError(f"--out: {place} is not a directory; name a new one")
    names = {path.name for path in place.iterdir()} if place.exists() else set()
    if names - FILES:
        odd = min(names - FILES)
        raise ConfigError(f"--out: {place} holds other files ({odd}); name a new directory, or an empty one")
    if names and not overwrite:
        raise ConfigError(
            f"--out: {place} already holds {', '.join(sorted(names))}; name another directory, or give --overwrite"
        )
    return place


def _take_name(staging: Path, place: Path) -> None:
    """Rename; what was there before goes last, so that one of the two is always whole on disk."""
    for path in staging.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    before = place.with_name(f"{staging.name}.before")
    if place.exists():
        place.rename(before)
    try:
        staging.rename(place)
    except OSError:
        if before.exists():
            before.rename(place)
        raise
    shutil.rmtree(before, ignore_errors=True)
