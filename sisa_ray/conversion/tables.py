"""CSV files: numbers in columns, read block by block."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc

from sisa_ray.conversion.rows import Array, Findings, Names, Rows, cast, require, to_features
from sisa_ray.core.errors import DataError

_BLOCK_BYTES = 4 * 2**20
_FAULT = re.compile(r"In CSV column #(\d+): (?:Row #(\d+): )?")
_RAGGED = re.compile(r"(?:Row #(\d+): )?Expected (\d+) columns, got (\d+)")


@dataclass(frozen=True, kw_only=True)
class TableReader:
    """One CSV file whose first line names its columns.

    Args:
        path: of the file: .csv, .tsv (tabs), or one of these with .gz.
        names: of its columns; no features: all columns that are nothing else, in the file's order.
        dtype: of the features; None: float32. Never guessed from the values, for what is guessed from the table
            depends on every record in it.
        labels_are_text: whether labels are looked up in a list of classes.
    """

    path: Path
    names: Names
    dtype: np.dtype[Any] | None
    labels_are_text: bool

    def pieces(self, findings: Findings) -> Iterator[Rows]:
        """All records, in order."""
        dtype = self.dtype or np.dtype(np.float32)
        have = self._columns()
        require([*self.names.features, *self.names.others], have, str(self.path), "column")
        features = self.names.features or tuple(name for name in have if name not in self.names.others)
        if not features:
            raise DataError(f"{self.path}: has no column left for features; name them with --features")
        findings.shape = (len(features),)
        # Whole numbers beyond 2**53 are no float64: read as what they become.
        number = pa.from_numpy_dtype(dtype) if dtype.kind in "iu" else pa.float64()
        kinds = dict.fromkeys(features, number)
        if self.names.label is not None:
            kinds[self.names.label] = pa.string() if self.labels_are_text else pa.float64()
        kinds |= {
            name: pa.string() for name in (self.names.record_id, self.names.subject_id) if name is not None
        }
        first = 0
        for batch in self._batches(kinds, have):
            columns = {name: batch.column(name) for name in kinds}
            for name, column in columns.items():
                if column.null_count:
                    row = first + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
                    raise DataError(
                        f"{self.path}: row {row} has no value in column {name!r}; fill it or drop the row"
                    )
            values = np.stack([columns[name].to_numpy(zero_copy_only=False) for name in features], axis=1)
            yield Rows(
                ids=_texts(columns, self.names.record_id)
                or [f"{_stem(self.path)}-{row}" for row in range(first, first + batch.num_rows)],
                subjects=_texts(columns, self.names.subject_id),
                features=to_features(cast(values, dtype, str(self.path), first), None, str(self.path), first),
                labels=self._labels(columns),
            )
            first += batch.num_rows

    def _labels(self, columns: dict[str, pa.Array]) -> Array | None:
        if self.names.label is None:
            return None
        values: Array = columns[self.names.label].to_numpy(zero_copy_only=False)
        return values.astype(np.str_) if self.labels_are_text else values

    def _columns(self) -> list[str]:
        """Names in the first line."""
        with self._reading([]), self._open(pc.ConvertOptions()) as reader:
            names: list[str] = reader.schema.names
        double = {name for name in names if names.count(name) > 1}
        if double:
            raise DataError(f"{self.path}: has more than one column {min(double)!r}; rename them")
        return names

    def _batches(self, kinds: dict[str, pa.DataType], have: list[str]) -> Iterator[pa.RecordBatch]:
        options = pc.ConvertOptions(
            column_types=kinds, include_columns=list(kinds), strings_can_be_null=True, null_values=[""]
        )
        with self._reading(have), self._open(options) as reader:
            yield from reader

    def _open(self, convert: pc.ConvertOptions) -> pc.CSVStreamingReader:
        suffixes = [s.lower() for s in self.path.suffixes]
        return pc.open_csv(
            str(self.path),
            # One thread, or errors would not say in which row they are.
            read_options=pc.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
            parse_options=pc.ParseOptions(delimiter="\t" if ".tsv" in suffixes else ","),
            convert_options=convert,
        )

    def _reading(self, have: list[str]) -> _Reading:
        return _Reading(self.path, have)


@dataclass(frozen=True)
class _Reading:
    """Errors of pyarrow in our words: they name the row, never the value in it."""

    path: Path
    have: list[str]

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, (pa.ArrowException, OSError)):
            return
        text = str(error)
        if fault := _FAULT.search(text):
            column = int(fault[1])
            name = repr(self.have[column]) if column < len(self.have) else f"number {column}"
            row = (
                f"row {int(fault[2]) - 2}" if fault[2] else "a row"
            )  # its rows count from 1, the header included
            raise DataError(
                f"{self.path}: {row} has a value in column {name} that is no number of the wanted type; choose the "
                "columns with --features, another --dtype, or --classes for labels that are words"
            ) from None
        if ragged := _RAGGED.search(text):
            row = f"row {int(ragged[1]) - 2}" if ragged[1] else "a row"
            raise DataError(
                f"{self.path}: {row} has {ragged[3]} values, but there are {ragged[2]} columns"
            ) from None
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from None
        what = (
            "is empty"
            if "Empty CSV" in text
            else "is not a CSV file in UTF-8 whose first line names the columns"
        )
        raise DataError(f"{self.path}: {what}") from None


def _texts(columns: dict[str, pa.Array], name: str | None) -> list[str] | None:
    return None if name is None else columns[name].to_pylist()


def _stem(path: Path) -> str:
    """The name without .csv or .csv.gz."""
    return path.name.removesuffix(".gz").rpartition(".")[0]
