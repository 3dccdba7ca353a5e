"""What was converted, as text for people: the files, and the configuration that reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from sisa_ray.service.tracker import count

if TYPE_CHECKING:
    from sisa_ray.conversion.convert import Converted
    from sisa_ray.conversion.purchase import PurchaseFiles


def converted_text(result: Converted) -> RenderableType:
    """Files, types, and the section of a configuration."""
    kinds = ", ".join(f"{name} {kind}" for name, kind in result.columns.items())
    lines = [_wrote(result.out, result.num_train, result.num_test), f"columns: {kinds}"]
    if result.shape is not None and len(result.shape) > 1:
        lines.append(f"shape of a record: {' × '.join(map(str, result.shape))}, row by row")
    if result.classes is not None:
        lines.append(f"{len(result.classes)} classes, in classes.json")
    return Group(*map(Text, [*lines, "", *data_section(result.out, result.columns, result.num_test > 0)]))


def generated_text(result: PurchaseFiles) -> RenderableType:
    """Files, and the section of a configuration."""
    columns = {"id": "", "features": "", "label": ""}
    wrote = _wrote(result.out, result.num_train, result.num_test)
    return Group(*map(Text, [wrote, "", *data_section(result.out, columns, True)]))


def data_section(out: str, columns: Mapping[str, str], has_test: bool) -> list[str]:
    """``data`` as it is written in a run's configuration."""
    roles = ", ".join(f"{name}: {name}" for name in ("features", "label") if name in columns)
    lines = ["data:", f"  train: {_quoted(out, 'train.parquet')}"]
    if has_test:
        lines.append(f"  test: {_quoted(out, 'test.parquet')}")
    lines.append("  record_id: id")
    if "subject" in columns:
        lines.append("  subject_id: subject")
    return [*lines, f"  columns: {{{roles}}}"]


def _wrote(out: str, num_train: int, num_test: int) -> str:
    tested = f" and {count(num_test, 'record')} to test on" if num_test else ""
    return f"wrote {count(num_train, 'record')} to train on{tested} into {out}"


def _quoted(directory: str, name: str) -> str:
    """A path in YAML: JSON strings are YAML too, whatever characters a path has."""
    return json.dumps(str(Path(directory) / name), ensure_ascii=False)
