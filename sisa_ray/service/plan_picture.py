"""A picture of a plan: what money buys in time and accuracy."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from sisa_ray.planning.search import Plan

# Okabe-Ito hues with a marker each: apart for every kind of colour vision, and in grey.
_LOOKS = {"equal": ("#0072B2", "o"), "equal_cost": ("#E69F00", "s"), "harmonic": ("#009E73", "^")}
_HOUR_S = 3600.0


def draw_plan(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write the Pareto front as PNG: money a month over the time to erase, and over the accuracy lost."""
    figure = Figure(figsize=(11, 4.8), dpi=130, facecolor="white", layout="constrained")
    by_time, by_loss = figure.subplots(1, 2, sharey=True)
    best = plan.recommended
    for schedule, (colour, marker) in _LOOKS.items():
        group = [d for d in plan.alternatives if d.schedule == schedule]
        money = [d.money_per_month for d in group]
        areas = [18 + 6 * d.num_shards**0.5 for d in group]
        for axes, xs in (
            (by_time, [d.worst_erase_s / _HOUR_S for d in group]),
            (by_loss, [100 * d.accuracy_loss for d in group]),
        ):
            axes.scatter(
                xs, money, s=areas, c=colour, marker=marker, alpha=0.75, label=schedule.replace("_", " ")
            )
    for axes, x in ((by_time, best.worst_erase_s / _HOUR_S), (by_loss, 100 * best.accuracy_loss)):
        axes.scatter(
            [x], [best.money_per_month], s=260, facecolors="none", edgecolors="#1B2A38", linewidths=1.8
        )
        axes.annotate(
            f"{best.num_shards} × {best.num_slices}",
            (x, best.money_per_month),
            (0, 13),
            textcoords="offset points",
            ha="center",
        )
        axes.set_yscale("log")
        axes.grid(alpha=0.25)
    by_time.set_xscale("log")
    by_time.set_xlabel("everybody erased within, hours")
    by_time.set_ylabel("money a month: GPUs and checkpoints")
    by_loss.set_xlabel("accuracy lost, percentage points")
    by_time.legend(frameon=False, title="stages")
    figure.suptitle(
        "Unlearning: what money buys (larger marks: more shards; circle: recommended)", fontsize=11
    )
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png")
