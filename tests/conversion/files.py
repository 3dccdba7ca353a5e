"""Small files of every format that users have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from sisa_ray.conversion.convert import Conversion, Converted, convert
from sisa_ray.conversion.rows import Names

Rows = list[dict[str, Any]]


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def image_folder(root: Path, images: dict[str, int], *, side: int = 6, suffix: str = "png") -> Path:
    """So many images of each class, of one colour a class."""
    for number, (name, count) in enumerate(sorted(images.items())):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.full((side, side, 3), 80 * number + index, dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index:03d}.{suffix}")
    return root


def run(out: Path, *inputs: Path, **options: Any) -> Converted:
    """Convert; ``features``, ``label``, ``record_id`` and ``subject_id`` name arrays or columns."""
    named = {key: options.pop(key) for key in ("label", "record_id", "subject_id") if key in options}
    features = options.pop("features", ())
    names = Names(features=(features,) if isinstance(features, str) else tuple(features), **named)
    if "test" in options:
        options["test"] = tuple(map(str, options["test"]))
    return convert(Conversion(inputs=tuple(map(str, inputs)), out=str(out), names=names, **options))


def rows(out: Path, table: str = "train") -> Rows:
    read: Rows = pq.read_table(out / f"{table}.parquet").to_pylist()
    return read


def names(directory: Path) -> list[str]:
    """What lies in a directory."""
    return sorted(path.name for path in directory.iterdir())
