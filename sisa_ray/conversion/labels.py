"""Labels as recipes take them: class numbers from 0, or plain numbers for regression."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from sisa_ray.conversion.rows import Array
from sisa_ray.core.errors import ConfigError, DataError

LabelType = Literal["int", "float"]


def read_classes(text: str) -> tuple[str, ...]:
    """A list of classes from ``cat,dog``, or from a file: JSON (as ``classes.json``) or one name a line.

    >>> read_classes("cat, dog")
    ('cat', 'dog')

    Raises:
        ConfigError: where it cannot be read, has fewer than two names, or one twice.
    """
    path = Path(text).expanduser()
    names = (
        _from_file(path) if path.suffix in (".json", ".txt") else [part.strip() for part in text.split(",")]
    )
    if len(names) < 2 or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"--classes: must list at least two names, such as cat,dog or a file, not {text!r}")
    double = [name for name in names if names.count(name) > 1]
    if double:
        raise ConfigError(f"--classes: lists {double[0]!r} more than once; name each class once")
    return tuple(names)


def _from_file(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".txt":
            return [line.strip() for line in text.splitlines() if line.strip()]
        loaded = json.loads(text)
    except OSError as error:
        raise ConfigError(f"--classes: {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"--classes: {path} is not JSON, or not text in UTF-8") from None
    listed = loaded.get("classes") if isinstance(loaded, dict) else loaded
    return listed if isinstance(listed, list) else []


@dataclass(frozen=True, kw_only=True)
class Labels:
    """How labels are written.

    Args:
        classes: the class of each number, from 0; None: labels are numbers already.
        kind: ``int`` for classes, ``float`` for regression.
    """

    classes: tuple[str, ...] | None
    kind: LabelType

    @property
    def type(self) -> pa.DataType:
        """The column's type."""
        return pa.int64() if self.kind == "int" else pa.float32()

    def encode(self, values: Array, where: str, first: int) -> pa.Array:
        """Labels as that column.

        Raises:
            DataError: for a label that is in no class, or no whole number; by its row.
        """
        if self.classes is not None:
            return self._numbered(_names(values), self.classes, where, first)
        if values.dtype.kind not in "biuf":
            raise DataError(f"{where}: labels are words; list the classes in their order with --classes")
        if self.kind == "float":
            return pa.array(values.astype(np.float32))
        with np.errstate(invalid="ignore"):
            whole = values.astype(np.int64)
        bad = np.flatnonzero(whole != values)
        if len(bad):
            raise DataError(
                f"{where}: the label of row {first + bad[0]} is no whole number; for regression give --label-type float"
            )
        return pa.array(whole)

    def _numbered(self, names: Sequence[str], classes: tuple[str, ...], where: str, first: int) -> pa.Array:
        numbers = {name: number for number, name in enumerate(classes)}
        found = [numbers.get(name, -1) for name in names]
        if -1 in found:
            raise DataError(
                f"{where}: the label of row {first + found.index(-1)} is none of the {len(classes)} classes; "
                "complete --classes"
            )
        return pa.array(found, pa.int64())


def _names(values: Array) -> list[str]:
    """Labels as they are written in a list of classes: 10.0 is 10."""
    if values.dtype.kind == "f" and np.array_equal(values, np.trunc(values)):
        values = values.astype(np.int64)
    if values.dtype.kind == "S":
        return [value.decode("utf-8", "replace") for value in values.tolist()]
    return [str(value) for value in values.tolist()]
