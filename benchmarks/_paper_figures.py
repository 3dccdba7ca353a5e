"""The figures of docs/results.md, from what the sections of benchmarks/paper.py kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Result = dict[str, Any]

COLOURS = {"equal": "#4e79a7", "equal_cost": "#59a14f", "harmonic": "#f28e2b", "sweep": "#b07aa1"}
OTHER_COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#b07aa1")


def draw(sections: dict[str, Result], directory: Path) -> None:
    """One picture a section that has one, ``<directory>/<section>.png``."""
    for name, kept in sections.items():
        if name not in DRAWINGS:
            continue
        figure = Figure(figsize=(7.2, 4.0), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        DRAWINGS[name](axes, kept["result"])
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        # No version of the drawing program in the file: the same figures give the same bytes.
        figure.savefig(directory / f"{name}.png", dpi=110, metadata={"Software": None})


def forgetting_figures(row: Result) -> dict[str, float]:
    """Speed-ups of a batch over full retraining: sums over draws, and the smallest and largest draw."""
    draws, full = row["draws"], row["full"]
    visits = [draw["full_visits"] / draw["visits"] for draw in draws]
    return {
        "visits": sum(d["full_visits"] for d in draws) / sum(d["visits"] for d in draws),
        "least": min(visits),
        "most": max(visits),
        "train": len(draws) * full["train_s"] / sum(d["train_s"] for d in draws),
        "job": len(draws) * full["job_s"] / sum(d["job_s"] for d in draws),
    }


def _draw_forgetting(axes: Axes, result: Result) -> None:
    single = mean(row["full"]["accuracy"] for row in result["rows"].values())
    for name, row in result["rows"].items():
        found = forgetting_figures(row)
        axes.errorbar(
            found["visits"],
            100 * row["train"]["accuracy"],
            xerr=[[found["visits"] - found["least"]], [found["most"] - found["visits"]]],
            fmt="o",
            capsize=3,
            color=COLOURS[name],
            label=name,
        )
    axes.axhline(100 * single, color="#555", lw=1, ls="--", label="single model")
    axes.axhline(100 * (single - 0.02), color="#bbb", lw=1, ls=":", label="2 pp below it")
    axes.axvline(12, color="#bbb", lw=1, ls=":")
    axes.set(xlabel="speed-up of a batch of 8 over full retraining (record-visits)", ylabel="accuracy, %")
    axes.legend(frameon=False, fontsize=8)


def _draw_requests(axes: Axes, result: Result) -> None:
    for name, found in result["schedules"].items():
        sizes = [int(size) for size in found["simulated"]]
        by_size = found["simulated"].values()
        axes.plot(sizes, [s["theory"] for s in by_size], color=COLOURS[name], lw=1.2, label=f"{name}: theory")
        axes.plot(sizes, [s["simulated"] for s in by_size], "x", color=COLOURS[name], ms=6)
        for size, draws in found["measured"].items():
            ratios = [d["full_visits"] / d["visits"] for d in draws]
            axes.plot([int(size)] * len(ratios), ratios, "o", color=COLOURS[name], ms=3, alpha=0.5)
    axes.plot([], [], "kx", label="simulation (mean)")
    axes.plot([], [], "ko", ms=3, alpha=0.5, label="measured (each batch)")
    axes.axhline(1, color="#555", lw=1, ls="--")
    axes.set(xscale="log", yscale="log", xlabel="requests K in one batch", ylabel="speed-up (record-visits)")
    axes.set_xticks([1, 2, 4, 8, 18, 39], ["1", "2", "4", "8", "18", "39"], minor=False)
    axes.set_xticks([], minor=True)
    axes.legend(frameon=False, fontsize=8)


def _draw_frontier(axes: Axes, result: Result) -> None:
    groups = {"named schedules": [], "sweeps": [], "fewer epochs, no slices": []}  # type: dict[str, list[Result]]
    for row in result["rows"]:
        kind = "fewer epochs, no slices" if "epochs" in row["name"] else "named schedules"
        groups["sweeps" if row["name"].startswith("sweep ") else kind].append(row)
    for colour, (label, rows) in zip(OTHER_COLOURS, groups.items(), strict=False):
        rows.sort(key=lambda row: row["speed_up"])
        axes.plot(
            [row["speed_up"] for row in rows],
            [100 * row["train"]["accuracy"] for row in rows],
            "o-" if "fewer" in label else "o",
            color=colour,
            lw=0.8,
            label=label,
        )
        for row in rows:
            axes.annotate(
                row["name"].replace(", no slices", ""),
                (row["speed_up"], 100 * row["train"]["accuracy"]),
                textcoords="offset points",
                xytext=(4, 4),
                fontsize=6,
            )
    axes.set(xscale="log", xlabel="speed-up of a batch of 8 (record-visits)", ylabel="accuracy, %")
    axes.legend(frameon=False, fontsize=8)


def _draw_slices(axes: Axes, result: Result) -> None:
    for name, rows in result["schedules"].items():
        axes.plot(
            [row["num_slices"] for row in rows],
            [100 * row["train"]["accuracy"] for row in rows],
            "o-",
            color=COLOURS[name],
            label=name,
        )
    axes.set(xlabel="slices R", ylabel="accuracy, %")
    axes.legend(frameon=False, fontsize=8)


def _draw_shards(axes: Axes, result: Result) -> None:
    for colour, (task, rows) in zip(OTHER_COLOURS, result["tasks"].items(), strict=False):
        counts = [row["num_shards"] for row in rows]
        axes.plot(
            counts,
            [100 * r["train"]["accuracy"] for r in rows],
            "o-",
            color=colour,
            label=f"{task}: ensemble",
        )
        axes.plot(
            counts,
            [100 * r["one_shard"]["accuracy"] for r in rows],
            "x--",
            color=colour,
            label=f"{task}: 1/S of the data",
        )
    axes.set(xscale="log", xlabel="shards S", ylabel="accuracy, %")
    axes.set_xticks(counts, [str(count) for count in counts], minor=False)
    axes.set_xticks([], minor=True)
    axes.legend(frameon=False, fontsize=8)


DRAWINGS: dict[str, Callable[[Axes, Result], None]] = {
    "headline": _draw_forgetting,
    "requests": _draw_requests,
    "frontier": _draw_frontier,
    "slices": _draw_slices,
    "shards": _draw_shards,
    "mnist": _draw_forgetting,
}
