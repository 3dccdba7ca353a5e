"""From a scenario to a recommendation: every candidate evaluated, the Pareto front, and a check by simulation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sisa_ray.core.errors import ConfigError
from sisa_ray.core.schedule import ScheduleName, stage_epochs
from sisa_ray.planning import cost
from sisa_ray.planning.checkpoints import best_kept_of_every_number
from sisa_ray.planning.designs import (
    MONTH_S,
    Design,
    Policy,
    cheaper_first,
    evaluate,
    layout_of,
    load_of,
    machine_of,
    open_s,
)
from sisa_ray.planning.layouts import Layout, by_records
from sisa_ray.planning.requests import arrival_times, uniform_stream
from sisa_ray.planning.scenario import DAY_S, DEFAULT_MAX_SHARDS, Scenario
from sisa_ray.planning.simulator import predicted_s, simulate

_NEAR_SHARE, _NEAR_MONEY = 0.05, 1.0
"""Designs within 5 %, or 1 a month, of the cheapest count as equally cheap: then accuracy and time decide."""

_MAX_SIMULATED = 200_000
_SIMULATED_SHARE = 25
"""One record in so many is erased in a simulation, so that shards stay about as large as they were."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """The recommendation in simulation."""

    num_requests: int
    num_batches: int
    gpu_hours_per_month: float
    relative_error: float
    """Of the expected GPU-hours, against the simulated ones."""
    erased_within_s: tuple[float, float, float]
    """Median, 95 % and the slowest."""
    num_missed: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is recommended, what else there is, and what was assumed."""

    recommended: Design
    alternatives: tuple[Design, ...]
    """The Pareto front, the cheapest first: nothing here is beaten in money, accuracy and time at once."""
    num_evaluated: int
    retrain_gpu_hours_per_month: float
    """One model trained from scratch as often as the recommended design runs a batch."""
    simulated: Check
    assumptions: tuple[str, ...]


def make_plan(scenario: Scenario, *, seed: int = 0) -> Plan:
    """Recommend a design: the cheapest that keeps the law, the accuracy and the storage budget.

    Raises:
        ConfigError: where none does, naming what stands in the way.
    """
    designs = list(_designs(scenario))
    if not designs:
        raise ConfigError(_why_none(scenario))
    allowed = [d for d in designs if d.accuracy_loss <= scenario.max_accuracy_loss]
    if not allowed:
        least = min(d.accuracy_loss for d in designs)
        raise ConfigError(
            f"max_accuracy_loss: must be at least {least:.4f}, not {scenario.max_accuracy_loss:g}: no design "
            "that meets the deadline and the budgets loses less; raise it, or offer fewer shards"
        )
    cheapest = min(d.money_per_month for d in allowed)
    limit = cheapest + max(_NEAR_MONEY, _NEAR_SHARE * cheapest)
    near = [d for d in allowed if d.money_per_month <= limit]
    best = min(near, key=lambda d: (d.accuracy_loss, d.worst_erase_s, d.num_shards, d.money_per_month))
    check = check_by_simulation(scenario, best, seed=seed)
    retrain = float(scenario.epochs) * scenario.num_records * scenario.seconds_per_visit / 3600
    return Plan(
        recommended=best,
        alternatives=tuple(pareto_front(designs)),
        num_evaluated=len(designs),
        retrain_gpu_hours_per_month=retrain * scenario.per_second * MONTH_S / best.requests_per_batch,
        simulated=check,
        assumptions=tuple(assumptions_of(scenario)),
    )


def pareto_front(designs: Sequence[Design]) -> list[Design]:
    """Designs that no other beats in money, accuracy (fewer shards too) and time at once; the cheapest first."""
    front: list[Design] = []
    seen: list[tuple[float, ...]] = []
    for design in sorted(designs, key=cheaper_first):
        point = (design.accuracy_loss, float(design.num_shards), design.worst_erase_s)
        # Sorted by money, so that whatever beats this one has come before it.
        if not any(all(a <= b for a, b in zip(other, point, strict=True)) for other in seen):
            front.append(design)
            seen.append(point)
    return front


def check_by_simulation(scenario: Scenario, design: Design, *, seed: int = 0) -> Check:
    """Carry out a stream of requests under ``design``, in as many seeded repetitions as it takes for a mean."""
    layout = whole_layout(scenario, design)
    most = max(1, scenario.num_records // scenario.records_per_request // _SIMULATED_SHARE)
    wanted = int(min(_MAX_SIMULATED, max(5000, 300 * design.requests_per_batch)))
    each = min(most, wanted, scenario.num_records)
    num_runs = max(1, min(20, wanted // each))
    rng = np.random.default_rng(seed)
    outcomes = []
    for _ in range(num_runs):
        stream = uniform_stream(layout, arrival_times(scenario.arrivals, each, scenario.per_second, rng), rng)
        outcomes.append(
            simulate(
                layout,
                stream,
                design.policy(scenario),
                machine_of(scenario),
                due_s=scenario.due_s,
                records_per_request=scenario.records_per_request,
            )
        )
    num_requests = each * num_runs
    # The last batch of a stream lacks whoever would have come: it costs as much for fewer requests.
    whole = [slice(None, -1 if o.num_batches > 1 else None) for o in outcomes]
    visits = sum(float(o.batch_visits[s].sum()) for o, s in zip(outcomes, whole, strict=True))
    carried_out = sum(int(o.batch_sizes[s].sum()) for o, s in zip(outcomes, whole, strict=True))
    hours = visits / carried_out * scenario.per_second * MONTH_S * scenario.seconds_per_visit / 3600
    times = np.concatenate([o.to_erase_s for o in outcomes])
    median, late, slowest = (float(t) for t in np.quantile(times, (0.5, 0.95, 1.0)))
    return Check(
        num_requests=num_requests,
        num_batches=sum(o.num_batches for o in outcomes),
        gpu_hours_per_month=hours,
        relative_error=design.gpu_hours_per_month / hours - 1 if hours else 0.0,
        erased_within_s=(median, late, slowest),
        num_missed=sum(o.num_missed for o in outcomes),
    )


def whole_layout(scenario: Scenario, design: Design) -> Layout:
    """The design's shards and slices with whole numbers of records, as even as they get."""
    cells = design.num_shards * design.num_slices
    small, larger = divmod(scenario.num_records, cells)
    sizes = np.full(cells, small) + (np.arange(cells) < larger)
    epochs = stage_epochs(design.schedule, design.num_slices, scenario.epochs)
    return by_records(sizes.reshape(design.num_slices, design.num_shards).T, epochs, design.kept)


def assumptions_of(scenario: Scenario) -> Iterator[str]:
    """What the numbers rest on and was not given."""
    given = scenario.model_fields_set
    if scenario.accuracy is not None:
        yield "between measured numbers of shards accuracy is a straight line over their logarithm"
    elif scenario.shards is None:
        yield (
            f"no accuracy curve: at most {DEFAULT_MAX_SHARDS} shards, since more cost over 5 points even on simple "
            "tasks; what fewer cost is not known and counts as nothing"
        )
    else:
        yield "no accuracy curve: what the shards cost is not known and counts as nothing"
    if "schedule_loss" not in given:
        losses = ", ".join(f"{name} {loss:.2%}" for name, loss in scenario.schedule_loss.items())
        yield f"slicing costs the accuracy that it cost on MNIST with 20 × 50 slices: {losses}; measure yours"
    yield "a request falls into any shard and slice alike, as placement by a keyed hash has it, whoever asks"
    yield (
        f"gaps between requests are {scenario.arrivals}; the law leaves {scenario.due_s / DAY_S:g} days, the shortest "
        "that its clock can be"
    )
    for field, text in (
        (
            "erase_within_days",
            f"people are promised {scenario.erase_within_days:g} days; the law wants no undue delay",
        ),
        ("gpu_hour_price", f"a GPU-hour costs {scenario.gpu_hour_price:g}"),
        ("storage_price", f"10⁹ bytes cost {scenario.storage_price:g} a month"),
        ("overhead_s", f"a batch takes {scenario.overhead_s:g} s beside training"),
    ):
        if field not in given:
            yield text
    yield "idle GPUs cost nothing; storage is that of checkpoints, without the data and a rebuild's second copy"
    yield "costs are those of unlearning; every design trains alike at first, and answers with as many models as shards"


def _designs(scenario: Scenario) -> Iterator[Design]:
    for num_shards in scenario.candidate_shards():
        affordable = _affordable(scenario, num_shards)
        if not affordable:
            continue
        for num_slices in scenario.slices:
            if num_shards * num_slices > scenario.num_records:
                continue
            # One slice is one stage: schedules differ in nothing.
            for schedule in scenario.schedules if num_slices > 1 else scenario.schedules[:1]:
                layout = layout_of(scenario, num_shards, num_slices, schedule)
                yield from _of_layout(scenario, layout, schedule, affordable)


def _of_layout(
    scenario: Scenario, layout: Layout, schedule: ScheduleName, affordable: int
) -> Iterator[Design]:
    policies: list[tuple[Policy, float]] = [
        ("at_once", 0.0),
        *(("window", w) for w in scenario.windows_s),
        # As long as the promise allows: whoever opens it is erased just in time.
        ("window", max(0.0, scenario.limit_s - predicted_s(layout, machine_of(scenario)))),
        ("deadline", 0.0),
    ]
    for policy, window_s in policies:
        stays_open_s = open_s(scenario, layout, policy, window_s)
        if stays_open_s is None:
            continue
        load = load_of(scenario, layout, stays_open_s)
        options = []
        for kept in best_kept_of_every_number(layout, affordable, load.size):
            visits = cost.window(layout.keeping(kept), load.size - 1)
            storage = layout.num_shards * len(kept) * scenario.checkpoint_bytes
            gpu_s = scenario.per_second * MONTH_S / load.size * visits * scenario.seconds_per_visit
            money = gpu_s / 3600 * scenario.gpu_hour_price + storage / 1e9 * scenario.storage_price
            options.append((money, visits, kept))
        chosen = layout.keeping(min(options)[2])
        load = load_of(scenario, chosen, stays_open_s)
        yield evaluate(scenario, chosen, schedule, policy, stays_open_s, load)


def _affordable(scenario: Scenario, num_shards: int) -> int:
    """Checkpoints of each shard that the storage budget holds."""
    if scenario.storage_budget is None:
        return max(scenario.slices)
    return scenario.storage_budget // max(1, scenario.checkpoint_bytes * num_shards)


def _why_none(scenario: Scenario) -> str:
    fewest = min(scenario.candidate_shards())
    if not any(_affordable(scenario, s) for s in scenario.candidate_shards()):
        return (
            f"storage_budget: must hold at least {fewest * scenario.checkpoint_bytes:,} bytes, a model for each of "
            f"{fewest} shards, not {scenario.storage_budget:,}; raise it or offer fewer shards"
        )
    if scenario.num_records < fewest * min(scenario.slices):
        return (
            f"num_records: must be at least one for each of {fewest} × {min(scenario.slices)} slices, not "
            f"{scenario.num_records}; offer fewer shards or slices"
        )
    whole_s = float(scenario.epochs) * scenario.num_records * scenario.seconds_per_visit / scenario.num_gpus
    return (
        f"num_gpus: must rebuild everything twice (a batch under way and the next) within {scenario.limit_s / DAY_S:g} "
        f"days, and {scenario.num_gpus} take at least {2 * whole_s / DAY_S:,.1f}; add GPUs, offer other numbers of "
        "shards, promise more time (erase_within_days) or train for fewer epochs"
    )
