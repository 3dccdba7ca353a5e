"""A plan as text for people."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sisa_ray.service.tracker import duration

if TYPE_CHECKING:
    from sisa_ray.planning.designs import Design
    from sisa_ray.planning.scenario import Scenario
    from sisa_ray.planning.search import Plan
    from sisa_ray.planning.strata import StrataDesign, StrataPlan

_MAX_ROWS = 12
_DAY_S = 86_400.0


def plan_text(scenario: Scenario, plan: Plan, plot: str | None) -> RenderableType:
    """The recommendation as configuration, its check, the alternatives, the assumptions."""
    best, check = plan.recommended, plan.simulated
    times = plan.retrain_gpu_hours_per_month / best.gpu_hours_per_month if best.gpu_hours_per_month else 1.0
    median, late, slowest = map(span, check.erased_within_s)
    lines = [
        Text("recommended", "bold"),
        *(Text(f"  {line}") for line in configuration_of(scenario, best)),
        Text(""),
        Text(
            f"a month: {best.gpu_hours_per_month:,.4g} GPU-hours, {size(best.storage_bytes)} of checkpoints, "
            f"{best.money_per_month:,.2f} in money; {best.requests_per_batch:,.1f} requests a batch"
        ),
        Text(f"training one model anew for each batch: {times:,.1f} times the GPU-hours"),
        Text(f"accuracy lost: {best.accuracy_loss:.2%}; everybody erased within {span(best.worst_erase_s)}"),
        Text(
            f"simulated: {check.num_requests:,} requests in {check.num_batches:,} batches: "
            f"{check.gpu_hours_per_month:,.4g} GPU-hours a month (expected {check.relative_error:+.1%})"
        ),
        Text(
            f"  erased after {median} (median), {late} (95 %), {slowest} (last); {check.num_missed:,} too late"
        ),
    ]
    return Group(*lines, Text(""), *_alternatives(plan), Text(""), *_assumptions(plan, plot))


def configuration_of(scenario: Scenario, design: Design) -> list[str]:
    """The keys of a run's configuration that the design decides."""
    keep = "all" if len(design.kept) == design.num_slices else f"[{', '.join(map(str, design.kept))}]"
    batching = f"batching: {design.batching}"
    if design.batching == "window":
        batching += f", window_s: {design.window_s:.0f}"
    basis = f"basis: {scenario.basis}"
    if scenario.basis == "custom":
        basis += f", custom_days: {scenario.custom_days}"
    return [
        f"sisa: {{num_shards: {design.num_shards}, num_slices: {design.num_slices}, epochs: {scenario.epochs}, "
        f"schedule: {design.schedule}}}",
        f"keep_checkpoints: {keep}",
        f"unlearning: {{{batching}, {basis}}}",
    ]


def span(seconds: float) -> str:
    """A time from seconds to weeks.

    >>> span(90), span(200_000)
    ('1 min 30 s', '2.3 days')
    """
    return f"{seconds / _DAY_S:.1f} days" if seconds >= 2 * _DAY_S else duration(seconds)


def size(num_bytes: float) -> str:
    """Bytes in decimal units.

    >>> size(1_500_000), size(70_000_000_000)
    ('1.5 MB', '70 GB')
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.4g} TB"


def _alternatives(plan: Plan) -> list[RenderableType]:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("", "shards", "slices", "schedule", "kept", "batching"):
        table.add_column(heading)
    for heading in ("GPU-hours", "storage", "money", "accuracy lost", "erased within"):
        table.add_column(heading, justify="right")
    rows = shown_designs(plan)
    for design in rows:
        batching = design.batching.replace("_", " ")
        table.add_row(
            "→" if design == plan.recommended else "",
            str(design.num_shards),
            str(design.num_slices),
            design.schedule if design.num_slices > 1 else "–",
            f"{len(design.kept)} of {design.num_slices}",
            f"{batching} {span(design.window_s)}" if design.batching == "window" else batching,
            f"{design.gpu_hours_per_month:,.4g}",
            size(design.storage_bytes),
            f"{design.money_per_month:,.2f}",
            f"{design.accuracy_loss:.2%}",
            span(design.worst_erase_s),
        )
    head = (
        f"of {plan.num_evaluated:,} designs {len(plan.alternatives):,} are on the Pareto front "
        f"(money, accuracy, shards, time); a month of some:"
    )
    return [Text(head), table]


def shown_designs(plan: Plan) -> list[Design]:
    """The recommendation among a spread of the front, from the cheapest to the dearest."""
    front = list(plan.alternatives)
    step = max(1, -(-len(front) // (_MAX_ROWS - 1)))
    some = front[::step]
    if plan.recommended not in some:
        some.append(plan.recommended)
    return sorted(some, key=lambda d: d.money_per_month)


def _assumptions(plan: Plan, plot: str | None) -> list[RenderableType]:
    lines = [Text("assumed", "bold"), *(Text(f"  {line}") for line in plan.assumptions)]
    if plot is not None:
        lines.append(Text(f"picture: {plot}"))
    return [*lines]


def strata_text(plan: StrataPlan, num_shards: int, num_slices: int, batch: str) -> RenderableType:
    """The recommended strata as configuration, the alternatives, and what a wrong prior does."""
    best = plan.recommended
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("", "layout"):
        table.add_column(heading)
    for heading in ("record-visits", "saves", "requests of the fullest shard", "strata a model learns from"):
        table.add_column(heading, justify="right")
    for design in plan.alternatives:
        table.add_row(
            "→" if design == best else "",
            design.way.replace("_", " "),
            f"{design.visits:,.0f}",
            f"{design.gain:.2f}×",
            f"{design.requests_per_shard:,.4g}",
            f"{design.strata_per_model:.3g}",
        )
    configuration = ["sisa:", "  strata:"]
    configuration += [f"    - {line}" for line in strata_of(best, num_shards, num_slices)]
    lines = [Text("recommended", "bold"), *(Text(f"  {line}") for line in configuration), Text("")]
    if best.way == "uniform":
        lines = [
            Text("recommended", "bold"),
            Text("  no strata: none of the layouts saves anything"),
            Text(""),
        ]
    wrong = [Text("what it saves if requests really are", "bold")]
    wrong += [Text(f"  {name}: {gain:.2f}×") for name, gain in plan.if_wrong.items()]
    head = f"batches of {batch}, for each epoch of the budget:"
    return Group(*lines, Text(head), table, Text(""), *wrong)


def strata_of(design: StrataDesign, num_shards: int, num_slices: int) -> list[str]:
    """The entries of ``sisa.strata``, in YAML; nothing where there is nothing to declare."""
    entries = []
    for name, region in design.regions.items():
        parts = [f"name: {json.dumps(name, ensure_ascii=False)}"]
        if (region.first_shard, region.end_shard) != (0, num_shards):
            parts.append(f"shards: [{region.first_shard}, {region.end_shard - 1}]")
        if (region.first_slice, region.last_slice) != (1, num_slices):
            parts.append(f"slices: [{region.first_slice}, {region.last_slice}]")
        entries.append(f"{{{', '.join(parts)}}}")
    return [] if design.way == "uniform" else entries
