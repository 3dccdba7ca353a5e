"""Tables that commands write for their users: complete under their name, or not there at all."""

from __future__ import annotations

import uuid
from types import TracebackType
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from sisa_ray.core.errors import ConfigError


class TableWriter:
    """Writes a Parquet table piece by piece, local or on S3; it appears when the ``with`` block ends well."""

    def __init__(self, path: str) -> None:
        self._fs, self._path = fsspec.core.url_to_fs(path)
        self._temporary = f"{self._path}.{uuid.uuid4().hex}.tmp"
        self._writer: Any = None

    def __enter__(self) -> TableWriter:
        parent = self._path.rpartition("/")[0]
        if parent and not self._fs.exists(parent):
            raise ConfigError(f"out: the directory of {self._path} does not exist; make it first")
        return self

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        if self._writer is None:
            self._file = self._fs.open(self._temporary, "wb")
            self._writer = pq.ParquetWriter(self._file, table.schema)
        self._writer.write_table(table)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._file.close()
        if kind is None:
            self._fs.mv(self._temporary, self._path)
        else:
            self._fs.rm(self._temporary)
