"""One way to run things, and what it is expected to cost: money, accuracy and time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

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


_MAX_ROUNDS, _SETTLED = 60, 1e-6


@dataclass(frozen=True, kw_only=True)
class Load:
    """A mean batch."""

    size: float
    """Requests."""
    visits: float
    """Record-visits."""


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


def load_of(scenario: Scenario, layout: Layout, stays_open_s: float) -> Load:
    """Batches in the long run, where all shards are alike.

    A batch that is done before the next window closes leaves windows as they are: one request opens it, and as many
    join as a Poisson stream brings. During a longer one a Poisson number of requests gather and make the next batch;
    only where none came is the next one again opened by the first that does. How long batches take and how large
    they are depend on each other; a few rounds settle both.
    """
    rate = scenario.per_second
    opened = Load(size=1 + rate * stays_open_s, visits=cost.window(layout, rate * stays_open_s))
    load = opened
    for _ in range(_MAX_ROUNDS):
        took_s = _duration_s(scenario, layout, load)
        if took_s <= stays_open_s:
            return opened
        gathered = rate * took_s
        none = math.exp(-gathered)
        previous, load = (
            load.size,
            Load(
                size=gathered + none * opened.size,
                visits=cost.window(layout, gathered, first=False) + none * opened.visits,
            ),
        )
        if abs(load.size - previous) <= _SETTLED * previous:
            break
    return load


def _duration_s(scenario: Scenario, layout: Layout, load: Load) -> float:
    """Seconds of a mean batch: its slowest shard, or where shards queue all of its work on all GPUs.

    A queue's last round fills the GPUs by half in the mean: with m equal shards on G of them, m/G + (1 - 1/G)/2 rounds.
    """
    # Shards are alike, so the slowest is the one with the smallest slice that was hit: a shard with all requests.
    together = Layout(
        sizes=layout.sizes[:1],
        weights=layout.weights[:1] * layout.num_shards,
        copies=np.ones(1, dtype=np.int64),
        epochs=layout.epochs,
        kept=layout.kept,
    )
    slowest = cost.window(together, max(0.0, load.size - 1))
    gpus, shards = scenario.num_gpus, cost.shards_hit(layout, load.size)
    queued = load.visits / gpus + (1 - 1 / gpus) / 2 * load.visits / shards if shards > gpus else 0.0
    visits = max(slowest, queued)
    return visits * scenario.seconds_per_visit + scenario.overhead_s


def evaluate(
    scenario: Scenario,
    layout: Layout,
    schedule: ScheduleName,
    policy: Policy,
    stays_open_s: float,
    load: Load,
) -> Design:
    """Expectations of a layout with the checkpoints that it keeps, under a load."""
    per_month = scenario.per_second * MONTH_S / load.size * load.visits
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
        requests_per_batch=load.size,
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
