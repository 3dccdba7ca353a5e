"""Who is to be forgotten: from arguments, a text file (one a line), standard input, or a Parquet column.

A file is local or an object in a bucket.

People are keys here and nowhere else: every message names a line or a row, never what is in it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sisa_ray.core.errors import ConfigError, DataError, ObjectMissing
from sisa_ray.core.keys import canonical_key


@dataclass(frozen=True, kw_only=True)
class SubjectList:
    """Canonical keys in input order. ``places[i]`` says where the i-th stands ("line 3"), for messages."""

    keys: tuple[str, ...]
    places: tuple[str, ...]
    notices: tuple[str, ...] = ()


def gather_subjects(arguments: Sequence[str], file: str | None, column: str | None) -> SubjectList:
    """Subjects from the command line or from a file, never both.

    Raises:
        ConfigError: where neither, both, or a column without a Parquet file is given.
        DataError: where the file cannot be read or names nobody.
    """
    if file is None:
        if column is not None:
            raise ConfigError("--column: names a column of a Parquet file; give that with --subjects-file")
        if not arguments:
            raise ConfigError("subjects: nobody is named; give SUBJECT… or --subjects-file FILE")
        places = tuple(f"argument {i}" for i in range(1, len(arguments) + 1))
        return SubjectList(keys=tuple(arguments), places=places)
    if arguments:
        raise ConfigError("subjects: give SUBJECT… or --subjects-file FILE, not both")
    if file.lower().endswith((".parquet", ".pq")):
        return _from_parquet(file, column)
    if column is not None:
        raise ConfigError(
            f"--column: {file} is read as text, one subject a line; only a .parquet file has columns"
        )
    return _from_text(file)


def _from_text(file: str) -> SubjectList:
    data, name = _read(file)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{name}: line {line} is not UTF-8; save the file as UTF-8 text") from None
    keys: list[str] = []
    places: list[str] = []
    padded: list[str] = []
    # Not splitlines(): a key may hold characters that only Unicode calls line ends.
    for number, content in enumerate(text.split("\n"), start=1):
        key = content.removesuffix("\r")
        if not key.strip():
            continue
        keys.append(key)
        places.append(f"line {number}")
        if key != key.strip():
            padded.append(str(number))
    if not keys:
        raise DataError(f"{name}: names nobody; write one subject a line")
    return SubjectList(keys=tuple(keys), places=tuple(places), notices=_padding(name, padded))


def _padding(name: str, lines: list[str]) -> tuple[str, ...]:
    if not lines:
        return ()
    shown = ", ".join(lines[:5]) + (", …" if len(lines) > 5 else "")
    return (f"{name}: spaces around the subject count as part of it (lines {shown})",)


def _read(file: str) -> tuple[bytes, str]:
    if file == "-":
        return sys.stdin.buffer.read(), "standard input"
    return _bytes_of(file), file


def _bytes_of(file: str) -> bytes:
    if "://" in file:
        from sisa_ray.storage.objects import open_store

        place, _, name = file.rpartition("/")
        try:
            return open_store(place).get(name)
        except ObjectMissing:
            raise DataError(f"--subjects-file {file}: cannot be read: there is no such object") from None
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise DataError(f"--subjects-file {file}: cannot be read: {error.strerror}") from None


def _from_parquet(file: str, column: str | None) -> SubjectList:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = pa.BufferReader(_bytes_of(file))
    try:
        table = pq.ParquetFile(source)
        names = table.schema_arrow.names
        if column is None and len(names) == 1:
            column = names[0]
        if column not in names:
            wanted = "--column: is required" if column is None else f"--column {column}: is not in {file}"
            raise ConfigError(f"{wanted}; its columns are {', '.join(names)}")
        values = table.read(columns=[column])[column].to_pylist()
    except pa.ArrowInvalid:
        raise DataError(f"--subjects-file {file}: is not a Parquet file") from None
    if not values:
        raise DataError(f"{file}: names nobody; column {column} has no rows")
    keys: list[str] = []
    for row, value in enumerate(values):
        if value is None:
            raise DataError(f"{file}: column {column} is null in row {row}; every row must name a subject")
        keys.append(canonical_key(value))
    return SubjectList(keys=tuple(keys), places=tuple(f"row {row}" for row in range(len(keys))))
