"""Finding and opening the files of a source table: one file, a directory or a glob, local or on S3."""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from sisa_ray.core.errors import ConfigError, DataError, SourceMissing
from sisa_ray.storage.objects import open_store

_SUFFIXES = (".parquet", ".parq", ".pq")
_WILDCARDS = re.compile(r"[*?\[]")


def find_files(url: str) -> list[str]:
    """The files that ``url`` names, sorted. Of a directory, all Parquet files in and below it.

    Names that begin with ``.`` or ``_`` are other programs' notes and are passed over in directories.

    Raises:
        SourceMissing: where nothing matches.
        ConfigError: for a scheme other than ``s3://``.
    """
    if "://" not in url:
        files = _local_files(url)
    elif url.startswith("s3://"):
        files = _s3_files(url)
    else:
        raise ConfigError(f"{url}: give a local path or an s3:// URL")
    if not files:
        raise SourceMissing(
            f"{url}: no Parquet file matches; give a file, a directory that holds *.parquet, or a glob such "
            "as data/*.parquet"
        )
    return sorted(files)


def _local_files(path: str) -> list[str]:
    root = Path(path).expanduser()
    if root.is_dir():
        below = (p for p in root.rglob("*") if p.is_file())
        return [str(p) for p in below if _is_data(p.relative_to(root).as_posix())]
    if root.exists():
        return [str(root)]
    return [p for p in glob.glob(str(root), recursive=True) if Path(p).is_file()]  # noqa: PTH207 - absolute patterns


def _s3_files(url: str) -> list[str]:
    url = url.rstrip("/")
    if not _WILDCARDS.search(url):
        parent, _, name = url.rpartition("/")
        if parent != "s3:/" and open_store(parent).exists(name):
            return [url]
        return [f"{url}/{info.path}" for info in open_store(url).list("") if _is_data(info.path)]
    parts = url.split("/")
    fixed = next(i for i, part in enumerate(parts) if _WILDCARDS.search(part))
    root = "/".join(parts[:fixed])
    if fixed < 3:
        raise ConfigError(f"{url}: the bucket's name cannot be a pattern")
    found = open_store(root).list(_WILDCARDS.split(parts[fixed], maxsplit=1)[0])
    return [f"{root}/{info.path}" for info in found if _matches(info.path.split("/"), parts[fixed:])]


def _is_data(relative: str) -> bool:
    hidden = any(part.startswith((".", "_")) for part in relative.split("/"))
    return not hidden and relative.lower().endswith(_SUFFIXES)


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a shell pattern, as :func:`glob.glob` has it.

    ``*`` stays within a part, ``**`` stands for any number of them, neither finds what begins with a dot.

    >>> [_matches(p.split("/"), ["a*", "**", "[0-9].pq"]) for p in ("ab/1.pq", "ab/c/d/2.pq", "a/b.pq")]
    [True, True, False]
    """
    if not patterns or not parts:
        return not patterns and not parts
    is_hidden = parts[0].startswith(".")
    if patterns[0] == "**":
        if len(patterns) == 1:
            return not any(part.startswith(".") for part in parts)
        return _matches(parts, patterns[1:]) or (not is_hidden and _matches(parts[1:], patterns))
    if is_hidden and not patterns[0].startswith("."):
        return False
    return fnmatch.fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])


def open_parquet(url: str, *, buffer_bytes: int = 0) -> pq.ParquetFile:
    """Open one file.

    Args:
        url: a local path or an s3:// URL.
        buffer_bytes: read columns through buffers of that size rather than whole.

    Raises:
        DataError: where it cannot be read or is not Parquet.
    """
    source: str | BinaryIO = url
    if "://" in url:
        parent, _, name = url.rpartition("/")
        source = open_store(parent).open(name)
    try:
        return pq.ParquetFile(source, buffer_size=buffer_bytes, pre_buffer=False)
    except pa.ArrowException as error:
        raise DataError(f"{url}: is not a Parquet file: {_first_line(error)}") from None
    except OSError as error:
        raise unreadable(url, error) from None


def unreadable(url: str, error: Exception) -> DataError:
    """The error for a file that cannot be read to its end."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else _first_line(error)
    return DataError(f"{url}: cannot be read: {reason}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
