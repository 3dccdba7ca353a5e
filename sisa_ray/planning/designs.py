"""One way to run things, and what it is expected to cost: money, accuracy and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sisa_ray.core.config import UnlearningConfig
from sisa_ray.core.schedule import ScheduleName, stage_epochs
from sisa_ray.planning import cost
from sisa_ray.planning.layouts import Layout, even_layout
from sisa_ray.planning.scenario import DAY_S, MONTH_DAYS, Scenario
from sisa_ray.planning.simulator import Machine, predicted_s

Policy = Literal["at_once", "window", "deadline"]
MONTH_S = MONTH_DAYS * DAY_S
_SLACK_S = 1e-3
"""``deadline`` uses what the law leaves to the last bit; sums of floats may exceed it by one."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """A design and its expectations. ``window_s`` is how long a batch is open: 0 at once."""

    num_shards: int
    num_slices: int
    schedule: ScheduleName
    kept: tuple[int, ...]
    batching: Policy
    window_s: float
    requests_per_batch: float
    visits_per_month: float
    gpu_hours_per_month: float
    storage_bytes: int
    money_per_month: float
    accuracy_loss: float
    worst_erase_s: float
    """From a request that comes as a batch starts to the end of its own, if every shard has to be rebuilt whole."""

    def policy(self, scenario: Scenario) -> UnlearningConfig:
        """The batching policy as a configuration has it."""
        return UnlearningConfig(
            batching=self.batching,
            window_s=self.window_s or 3600.0,
            safety_margin_s=max(scenario.safety_margin_s, 1e-3),
            basis=scenario.basis,
            custom_days=scenario.custom_days,
        )


def machine_of(scenario: Scenario) -> Machine:
    """What the scenario's rebuilds run on."""
    return Machine(
        seconds_per_visit=scenario.seconds_per_visit,
        num_gpus=scenario.num_gpus,
        overhead_s=scenario.overhead_s,
    )


def layout_of(scenario: Scenario, num_shards: int, num_slices: int, schedule: ScheduleName) -> Layout:
    """Shards and slices of one size, all checkpoints kept."""
    return even_layout(scenario.num_records, num_shards, stage_epochs(schedule, num_slices, scenario.epochs))


def open_s(scenario: Scenario, layout: Layout, policy: Policy, window_s: float) -> float | None:
    """How long a batch may be open; None where a rebuild could then end too late.

    Whoever asks as a batch starts waits for its end, and for the window if that is longer, and for the own batch.
    """
    worst = predicted_s(layout, machine_of(scenario))
    left = scenario.due_s - scenario.safety_margin_s - worst
    stays_open = {"at_once": 0.0, "window": window_s, "deadline": left}[policy]
    return stays_open if max(stays_open, worst) + worst <= scenario.limit_s + _SLACK_S else None


def batch_size(scenario: Scenario, layout: Layout, stays_open_s: float) -> float:
    """Requests of a mean batch: the first, those of the window, or all that came during a longer rebuild."""
    machine = machine_of(scenario)
    size = 1 + scenario.per_second * stays_open_s
    for _ in range(60):
        visits = cost.window(layout, size - 1)
        shards = max(1.0, cost.shards_hit(layout, size))
        took_s = visits * machine.seconds_per_visit / min(machine.num_gpus, shards) + machine.overhead_s
        grown = max(1 + scenario.per_second * stays_open_s, scenario.per_second * took_s)
        if abs(grown - size) <= 1e-6 * size:
            break
        size = grown
    return size


def evaluate(
    scenario: Scenario,
    layout: Layout,
    schedule: ScheduleName,
    policy: Policy,
    stays_open_s: float,
    size: float,
) -> Design:
    """Expectations of a layout, with the checkpoints that it keeps."""
    visits = cost.window(layout, size - 1)
    per_month = scenario.per_second * MONTH_S / size * visits
    gpu_hours = per_month * scenario.seconds_per_visit / 3600
    storage = layout.num_checkpoints * scenario.checkpoint_bytes
    worst = predicted_s(layout, machine_of(scenario))
    return Design(
        num_shards=layout.num_shards,
        num_slices=layout.num_slices,
        schedule=schedule,
        kept=layout.kept,
        batching=policy,
        window_s=stays_open_s,
        requests_per_batch=size,
        visits_per_month=per_month,
        gpu_hours_per_month=gpu_hours,
        storage_bytes=storage,
        money_per_month=gpu_hours * scenario.gpu_hour_price + storage / 1e9 * scenario.storage_price,
        accuracy_loss=scenario.loss(layout.num_shards, layout.num_slices, schedule),
        worst_erase_s=max(stays_open_s, worst) + worst,
    )


def cheaper_first(design: Design) -> tuple[float, ...]:
    """Order by money, then by what else there is."""
    return (design.money_per_month, design.accuracy_loss, design.worst_erase_s, design.num_shards)
