"""Arrays of npz and mat files: one array of features, and beside it labels, record ids and subjects."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from sisa_ray.conversion.rows import (
    Array,
    Findings,
    Names,
    Rows,
    check_numeric,
    require,
    rows_per_piece,
    to_features,
)
from sisa_ray.core.errors import ConfigError, DataError, RecipeError, SisaError
from sisa_ray.core.keys import canonical_key

Pieces = Callable[[int], Iterator[Array]]
"""Given the rows of a piece, the pieces of an array."""

_BROKEN = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)
"""What zipfile and NumPy say of files that are cut, encrypted or something else."""


@dataclass(frozen=True, kw_only=True)
class ArrayReader:
    """One npz or mat file.

    Args:
        path: of the file.
        prefix: of generated record ids.
        names: of its arrays.
        dtype: that features are converted to; None: as they are.
        sample_axis: the axis of the features that counts records.
    """

    path: Path
    prefix: str
    names: Names
    dtype: np.dtype[Any] | None
    sample_axis: int

    def pieces(self, findings: Findings) -> Iterator[Rows]:
        """All records, in order.

        An npz file is read piece by piece where its features are stored record by record; everything else whole.
        """
        if len(self.names.features) != 1:
            raise ConfigError(
                f"--features: name the one array of {self.path.name} that holds them, not {len(self.names.features)}"
            )
        name = self.names.features[0]
        where = f"{self.path}: {name!r}"
        is_npz = self.path.suffix.lower() == ".npz"
        with _opened_npz(self) if is_npz else _opened_mat(self) as (shape, dtype, pieces, vectors):
            num_rows, row_shape = shape[0], shape[1:]
            if 0 in shape:
                raise DataError(f"{where}: is empty, its shape is {shape}; give records")
            for other, values in vectors.items():
                if len(values) != num_rows:
                    raise DataError(
                        f"{self.path}: {name!r} has {num_rows} records (shape {shape}, sample axis "
                        f"{self.sample_axis}), but {other!r} has {len(values)}; give arrays of one length, or another "
                        "--sample-axis"
                    )
            findings.shape = row_shape
            ids = _keys(vectors, self.names.record_id, self.path)
            subjects = _keys(vectors, self.names.subject_id, self.path)
            first = 0
            for values in pieces(rows_per_piece(prod(row_shape) * dtype.itemsize)):
                part = slice(first, first + len(values))
                yield Rows(
                    ids=ids[part]
                    if ids
                    else [f"{self.prefix}-{row}" for row in range(part.start, part.stop)],
                    subjects=subjects[part] if subjects else None,
                    features=to_features(values, self.dtype, where, first),
                    labels=vectors[self.names.label][part] if self.names.label else None,
                )
                first = part.stop


Opened = tuple[tuple[int, ...], "np.dtype[Any]", Pieces, dict[str, Array]]


@contextmanager
def _opened_npz(reader: ArrayReader) -> Iterator[Opened]:
    """Shape (records first) and type of the features, their pieces, and the other arrays."""
    (name,) = reader.names.features
    try:
        with zipfile.ZipFile(reader.path) as archive:
            have = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
            require([name, *reader.names.others], have, str(reader.path), "array")
            vectors = {}
            for other in reader.names.others:
                with archive.open(f"{other}.npy") as file:
                    vectors[other] = _vector(_whole(file, f"{reader.path}: {other!r}"), reader.path, other)
            with archive.open(f"{name}.npy") as file:
                shape, is_fortran, dtype = _header(file)
                check_numeric(dtype, f"{reader.path}: {name!r}")
                axis = _axis(reader, shape)
                if axis or is_fortran:  # records do not lie one after the other: all of it is needed at once
                    with archive.open(f"{name}.npy") as again:
                        values = np.moveaxis(npy.read_array(again, allow_pickle=False), axis, 0)
                    yield values.shape, dtype, partial(_sliced, values), vectors
                else:
                    yield shape, dtype, partial(_streamed, file, shape, dtype), vectors
    except _BROKEN as error:
        if isinstance(error, SisaError):
            raise
        raise DataError(f"{reader.path}: is not a whole npz file: {_reason(error)}") from None


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"npy format {version} is not for plain numbers")
    shape, is_fortran, dtype = read(file)
    return shape, is_fortran, dtype


def _whole(file: IO[bytes], where: str) -> Array:
    try:
        values: Array = npy.read_array(file, allow_pickle=False)
    except ValueError as error:
        if "allow_pickle" in str(error):
            check_numeric(np.dtype(object), where)
        raise
    return values


def _streamed(
    file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], num_rows: int
) -> Iterator[Array]:
    row_bytes = prod(shape[1:]) * dtype.itemsize
    for first in range(0, shape[0], num_rows):
        rows = min(num_rows, shape[0] - first)
        data = file.read(rows * row_bytes)
        if len(data) != rows * row_bytes:
            raise ValueError(f"it ends within record {first + len(data) // row_bytes} of {shape[0]}")
        yield np.frombuffer(data, dtype).reshape(rows, *shape[1:])


def _sliced(values: Array, num_rows: int) -> Iterator[Array]:
    for first in range(0, len(values), num_rows):
        yield values[first : first + num_rows]


@contextmanager
def _opened_mat(reader: ArrayReader) -> Iterator[Opened]:
    """As :func:`_opened_npz`. MATLAB's formats up to 7 hold at most 2 GB a variable; they are read whole."""
    try:
        from scipy.io import loadmat, matlab, whosmat
    except ImportError:
        raise RecipeError(
            f"{reader.path}: reading mat files needs SciPy; install it: pip install 'sisa-ray[convert]'"
        ) from None
    (name,) = reader.names.features
    wanted = [name, *reader.names.others]
    try:
        have = [found[0] for found in whosmat(reader.path)]
        require(wanted, have, str(reader.path), "variable")
        found = loadmat(reader.path, variable_names=wanted)
    except NotImplementedError:
        raise DataError(
            f"{reader.path}: is a mat file of version 7.3 (HDF5), which is not read; save it with -v7 in MATLAB, or "
            "its arrays with numpy.savez"
        ) from None
    except (OSError, ValueError, TypeError, EOFError, matlab.MatReadError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{reader.path}: is not a whole mat file: {_reason(error)}") from None
    values = found[name]
    if not isinstance(values, np.ndarray):
        raise DataError(f"{reader.path}: {name!r} is sparse; save it as a full array")
    check_numeric(values.dtype, f"{reader.path}: {name!r}")
    values = np.moveaxis(values, _axis(reader, values.shape), 0)
    vectors = {other: _vector(found[other], reader.path, other) for other in reader.names.others}
    yield values.shape, values.dtype, partial(_sliced, values), vectors


def _axis(reader: ArrayReader, shape: tuple[int, ...]) -> int:
    """The sample axis as a number from 0."""
    axis = reader.sample_axis
    if not shape:
        raise DataError(
            f"{reader.path}: {reader.names.features[0]!r} is a single value, not an array of records"
        )
    if not -len(shape) <= axis < len(shape):
        raise DataError(
            f"--sample-axis: {axis} is no axis of {reader.names.features[0]!r} in {reader.path}, whose shape is {shape}"
        )
    return axis % len(shape)


def _vector(values: Array, path: Path, name: str) -> Array:
    """One value a record: of shape (N,), (N, 1) or (1, N), as MATLAB has it."""
    if not isinstance(values, np.ndarray) or values.dtype.hasobject or values.dtype.kind not in "biufSU":
        kind = getattr(values, "dtype", type(values).__name__)
        raise DataError(f"{path}: {name!r} is of type {kind}, but must hold plain numbers or strings")
    if values.size != max(values.shape, default=0):
        raise DataError(
            f"{path}: {name!r} has shape {values.shape}, but must have one value a record; turn one-hot labels into "
            "class numbers"
        )
    return values.reshape(-1)


def _keys(vectors: dict[str, Array], name: str | None, path: Path) -> list[str] | None:
    """Record ids or subjects as canonical strings."""
    if name is None:
        return None
    values = vectors[name]
    if values.dtype.kind == "f" and np.array_equal(values, np.trunc(values)):
        values = values.astype(np.int64)  # MATLAB's numbers are floats
    if values.dtype.kind == "f":
        raise DataError(f"{path}: {name!r} holds fractions, but keys are integers or strings")
    return [canonical_key(key) for key in values.tolist()]


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
