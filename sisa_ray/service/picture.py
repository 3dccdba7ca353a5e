"""A picture of one unlearning: shards by slices, what was kept, what was retrained, what was deleted."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sisa_ray.execution.results import StatusResult, UnlearnResult

# Okabe-Ito hues, apart in lightness too: they differ for every kind of colour vision, and in grey.
_KEPT = "#CFE3F1"
_KEPT_EDGE = "#8DB4CF"
_REBUILT = "#E69F00"
_REBUILT_EDGE = "#A66F00"
_FORGOTTEN = "#1B2A38"
_INK = "#22303C"
_FAINT = "#6B7A86"

_MARGIN_IN = 0.55
_LABEL_IN = 0.75
_MIN_WIDTH_IN = 9.6
_MAX_LABELLED_CELLS = 120
"""Grids with more cells than this show colours only: words would be too small to read."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One slice of one shard, and the stage that ends with it."""

    shard: int
    slice: int
    num_records: int
    num_forgotten: int
    rebuilt: bool


def cells(before: StatusResult, after: StatusResult, unlearned: UnlearnResult) -> list[list[Cell]]:
    """What became of every slice and stage: one row a shard, one cell a slice.

    A shard is retrained from the last checkpoint before its first slice that changed.
    """
    kept = {(s.shard, s.stage) for s in before.stages if s.status == "built" and s.kept}
    rows: list[list[Cell]] = []
    for old, new in zip(before.shards, after.shards, strict=True):
        forgotten = [n - m for n, m in zip(old.slices, new.slices, strict=True)]
        hit = [r for r, n in enumerate(forgotten, start=1) if n]
        first = len(forgotten) + 1
        if hit and new.shard in unlearned.shards_rebuilt:
            first = 1 + max((r for r in range(1, hit[0]) if (new.shard, r) in kept), default=0)
        rows.append(
            [
                Cell(
                    shard=new.shard,
                    slice=r,
                    num_records=new.slices[r - 1],
                    num_forgotten=forgotten[r - 1],
                    rebuilt=r >= first,
                )
                for r in range(1, len(forgotten) + 1)
            ]
        )
    return rows


def draw(
    before: StatusResult,
    after: StatusResult,
    unlearned: UnlearnResult,
    path: str | os.PathLike[str],
    *,
    bit_identical: bool | None = None,
) -> None:
    """Write the picture as PNG.

    Args:
        before: the run's status before the unlearning.
        after: and after it.
        unlearned: what the unlearning did.
        path: file to write.
        bit_identical: what a verification said afterwards, if there was one.
    """
    rows = cells(before, after, unlearned)
    num_rows, num_columns = len(rows), len(rows[0])
    labelled = num_rows * num_columns <= _MAX_LABELLED_CELLS and num_columns <= 12
    cell_h = 0.86 if labelled else min(0.4, 12.0 / num_rows)
    width = max(_MIN_WIDTH_IN, 2 * _MARGIN_IN + _LABEL_IN + num_columns * (1.55 if labelled else 0.18))
    height = num_rows * cell_h + 3.5
    left, top = _MARGIN_IN + _LABEL_IN, 1.55
    cell_w = (width - left - _MARGIN_IN) / num_columns
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    _title(axes, unlearned, sum(map(len, rows)), bit_identical)
    _headings(axes, rows, left, top, cell_w, cell_h)
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            _cell(axes, cell, left + x * cell_w, top + y * cell_h, cell_w, cell_h, labelled=labelled)
    bottom = top + num_rows * cell_h + 0.32
    _legend(axes, bottom)
    _bars(axes, unlearned, bottom + 0.6, width - 2 * _MARGIN_IN)
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png")


def _title(axes: Axes, unlearned: UnlearnResult, num_stages: int, bit_identical: bool | None) -> None:
    people = "1 person" if unlearned.num_forgotten == 1 else f"{unlearned.num_forgotten} people"
    title = f"{people} forgotten"
    if bit_identical:
        title += ", bit for bit as if they had never been there"
    axes.text(_MARGIN_IN, 0.56, title, fontsize=17, fontweight="bold", color=_INK, va="center")
    what = f"{unlearned.stages_rebuilt} of {num_stages} stages rebuilt, "
    what += f"{unlearned.objects_purged} old files purged and checked to be gone"
    axes.text(_MARGIN_IN, 0.94, what, fontsize=11, color=_FAINT, va="center")


def _headings(
    axes: Axes, rows: list[list[Cell]], left: float, top: float, cell_w: float, cell_h: float
) -> None:
    every_row, every_column = max(1, len(rows) // 20), max(1, len(rows[0]) // 20)
    for cell in rows[0][:: max(1, every_column)]:
        x = left + (cell.slice - 0.5) * cell_w
        text = f"slice {cell.slice}" if cell_w > 1 else str(cell.slice)
        axes.text(
            x, top - 0.13, text, fontsize=9.5 if cell_w > 1 else 7, color=_FAINT, ha="center", va="center"
        )
    for row in rows[::every_row]:
        y = top + (row[0].shard + 0.5) * cell_h
        text = f"shard {row[0].shard}" if cell_h > 0.3 else str(row[0].shard)
        axes.text(
            left - 0.12, y, text, fontsize=9.5 if cell_h > 0.3 else 7, color=_INK, ha="right", va="center"
        )


def _cell(axes: Axes, cell: Cell, x: float, y: float, width: float, height: float, *, labelled: bool) -> None:
    gap = 0.09 if labelled else 0.12 * min(width, height)
    face, edge = (_REBUILT, _REBUILT_EDGE) if cell.rebuilt else (_KEPT, _KEPT_EDGE)
    box = FancyBboxPatch(
        (x + gap, y + gap),
        width - 2 * gap,
        height - 2 * gap,
        boxstyle=f"round,pad=0,rounding_size={0.07 if labelled else 0.02}",
        facecolor=face,
        edgecolor=edge,
        linewidth=1.0 if labelled else 0.4,
    )
    axes.add_patch(box)
    middle = y + height / 2
    if labelled:
        if cell.slice > 1:
            arrow = FancyArrowPatch(
                (x - gap, middle),
                (x + gap, middle),
                arrowstyle="-|>",
                mutation_scale=6,
                color=_FAINT,
                linewidth=0.8,
            )
            axes.add_patch(arrow)
        axes.text(
            x + gap + 0.13,
            middle - 0.11,
            f"{cell.num_records:,} records",
            fontsize=9,
            color=_INK,
            va="center",
        )
        state = "rebuilt" if cell.rebuilt else "kept"
        axes.text(x + gap + 0.13, middle + 0.13, state, fontsize=8, color=_INK, va="center", alpha=0.75)
    if cell.num_forgotten:
        radius = 0.155 if labelled else 0.3 * min(width, height)
        _badge(
            axes,
            x + width - gap - (0.24 if labelled else width / 2 - gap),
            middle,
            radius,
            cell.num_forgotten,
        )


def _badge(axes: Axes, x: float, y: float, radius: float, num_forgotten: int) -> None:
    axes.add_patch(Circle((x, y), radius, facecolor=_FORGOTTEN, edgecolor="white", linewidth=1.2, zorder=3))
    if radius > 0.1:
        text = f"−{num_forgotten}"
        axes.text(
            x,
            y,
            text,
            fontsize=8.5,
            fontweight="bold",
            color="white",
            ha="center",
            va="center_baseline",
            zorder=4,
        )


def _legend(axes: Axes, y: float) -> None:
    entries = [
        (_KEPT, _KEPT_EDGE, "kept: never saw them", 2.15),
        (_REBUILT, _REBUILT_EDGE, "rebuilt without them, old checkpoint purged", 3.62),
    ]
    x = _MARGIN_IN
    for face, edge, text, advance in entries:
        axes.add_patch(
            FancyBboxPatch(
                (x, y - 0.09),
                0.26,
                0.18,
                boxstyle="round,pad=0,rounding_size=0.04",
                facecolor=face,
                edgecolor=edge,
                linewidth=0.8,
            )
        )
        axes.text(x + 0.36, y, text, fontsize=9.5, color=_INK, va="center")
        x += advance
    axes.add_patch(Circle((x + 0.1, y), 0.1, facecolor=_FORGOTTEN))
    axes.text(x + 0.3, y, "records erased, old slice purged", fontsize=9.5, color=_INK, va="center")


def _bars(axes: Axes, unlearned: UnlearnResult, top: float, width: float) -> None:
    full, spent = unlearned.full_retrain_record_visits, unlearned.record_visits
    if not full:
        return
    left, label_w = _MARGIN_IN, 1.75
    scale = (width - label_w - 0.8) / max(full, spent)
    for y, name, value, color in (
        (top + 0.12, "train all again", full, "#B8C2CA"),
        (top + 0.46, "forget, as done here", spent, _REBUILT),
    ):
        axes.text(left, y, name, fontsize=9.5, color=_INK, va="center")
        length = max(0.02, value * scale)
        axes.add_patch(
            FancyBboxPatch(
                (left + label_w, y - 0.11),
                length,
                0.22,
                boxstyle="round,pad=0,rounding_size=0.03",
                facecolor=color,
                edgecolor="none",
            )
        )
        axes.text(left + label_w + length + 0.1, y, f"{value:,}", fontsize=9.5, color=_INK, va="center")
    axes.text(
        left + label_w,
        top + 0.75,
        f"record-visits: one record trained on once is one visit; forgetting took {spent / full:.0%} of all",
        fontsize=8.5,
        color=_FAINT,
        va="center",
    )
