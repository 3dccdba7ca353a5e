"""What a plan is made from. Every field checks itself; what was not given is a stated assumption."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from sisa_ray.core.clocks import Basis, shortest_days
from sisa_ray.core.errors import ConfigError
from sisa_ray.core.fields import (
    ByteSize,
    PositiveFraction,
    PositiveNumber,
    is_number,
    one_of,
    shown,
    whole_number,
)
from sisa_ray.core.schedule import ScheduleName
from sisa_ray.core.section import Section, lines_of
from sisa_ray.planning.requests import Arrivals

DAY_S = 86_400.0
MONTH_DAYS = 30.0

SCHEDULE_LOSS: dict[str, float] = {"equal": 0.0005, "equal_cost": 0.0012, "harmonic": 0.0045}
"""Accuracy against no slices, measured: MNIST, 20 shards × 50 slices, 784–128–10 MLP, 15 epochs."""

DEFAULT_MAX_SHARDS = 20
"""Where no accuracy curve is known. Beyond, the paper found more than 5 points lost even on simple tasks."""


def _to_curve(value: object) -> dict[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or len(value) < 2:
        count = len(value) if isinstance(value, Mapping) else 0
        raise ValueError(
            f"must have at least two points, such as 1:0.97,20:0.95, not {count}: "
            "one point says nothing of how accuracy falls; measure another number of shards, or leave it out"
        )
    for num_shards, accuracy in value.items():
        if isinstance(num_shards, bool) or not isinstance(num_shards, int) or num_shards < 1:
            raise ValueError(f"must have numbers of shards from 1 before the colons, not {shown(num_shards)}")
        if not (is_number(accuracy) and 0 <= accuracy <= 1):
            raise ValueError(
                f"must have accuracies from 0 to 1, not {shown(accuracy)} at {num_shards} shards; "
                "divide percentages by 100"
            )
    if 1 not in value:
        raise ValueError(
            f"must have a point at 1 shard, which losses are counted from, not only at {sorted(value)}"
        )
    return {k: float(value[k]) for k in sorted(value)}


def _to_losses(value: object) -> dict[str, float]:
    losses: Mapping[Any, Any] = value if isinstance(value, Mapping) else {value: None}
    for name, loss in losses.items():
        if name not in SCHEDULE_LOSS:
            raise ValueError(f"has no schedule {shown(name)}; known are {', '.join(SCHEDULE_LOSS)}")
        if not (is_number(loss) and 0 <= loss <= 1):
            raise ValueError(f"must have losses from 0 to 1, not {shown(loss)} for {name}")
    return {**SCHEDULE_LOSS, **losses}


def _share(value: object) -> float:
    if is_number(value) and 0 <= value <= 1:  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]
    raise ValueError(f"must be from 0 to 1, not {shown(value)}; divide percentages by 100")


def _not_negative(value: object) -> float:
    if is_number(value) and 0 <= value < 1e300:  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]
    raise ValueError(f"must be 0 or more, not {shown(value)}")


NotNegative = Annotated[float, BeforeValidator(_not_negative)]


def _counts(high: int, *, optional: bool = False) -> BeforeValidator:
    def check(value: object) -> tuple[int, ...] | None:
        if value is None and optional:
            return None
        numbers = value if isinstance(value, (list, tuple)) else ()
        whole = [n for n in numbers if isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= high]
        if not whole or len(whole) < len(numbers):
            raise ValueError(f"must be whole numbers from 1 to {high}, such as 5,10,20, not {shown(value)}")
        return tuple(sorted(set(whole)))

    return BeforeValidator(check)


class Scenario(Section):
    """An organisation that plans a run."""

    num_records: Annotated[int, whole_number(1, 10**12)]
    epochs: PositiveFraction
    checkpoint_bytes: ByteSize
    seconds_per_visit: PositiveNumber
    """Of one GPU (or CPU slot), for one record trained on once."""
    requests_per_day: PositiveNumber
    records_per_request: Annotated[int, whole_number(1, 10**6)] = 1
    arrivals: Annotated[Arrivals, one_of(Arrivals)] = "exponential"
    basis: Annotated[Basis, one_of(Basis)] = "gdpr"
    custom_days: Annotated[int, whole_number(1, 3650)] = 30
    safety_margin_s: NotNegative = DAY_S
    erase_within_days: PositiveNumber = 7.0
    """What is promised. The clock of the law is its outer limit: it wants no undue delay."""
    num_gpus: Annotated[int, whole_number(1, 100_000)] = 1
    overhead_s: NotNegative = 60.0
    gpu_hour_price: NotNegative = 2.0
    storage_price: NotNegative = 0.023
    """Of 10⁹ bytes for a month."""
    storage_budget: ByteSize | None = None
    accuracy: Annotated[dict[int, float] | None, BeforeValidator(_to_curve)] = None
    max_accuracy_loss: Annotated[float, BeforeValidator(_share)] = 0.02
    schedule_loss: Annotated[dict[str, float], BeforeValidator(_to_losses)] = Field(
        default_factory=lambda: dict(SCHEDULE_LOSS)
    )
    shards: Annotated[tuple[int, ...] | None, _counts(100_000, optional=True)] = None
    slices: Annotated[tuple[int, ...], _counts(200)] = (1, 2, 5, 10, 20, 50)
    schedules: tuple[Annotated[ScheduleName, one_of(ScheduleName)], ...] = ("equal", "equal_cost", "harmonic")
    windows_s: tuple[PositiveNumber, ...] = (3600.0, 6 * 3600.0, DAY_S)

    @model_validator(mode="after")
    def _hangs_together(self) -> Scenario:
        yearly = self.requests_per_day * 365 * self.records_per_request
        if yearly > self.num_records:
            raise ValueError(
                f"requests_per_day: must leave somebody after a year, not {self.requests_per_day:g}: "
                f"{yearly:,.0f} records a year of num_records {self.num_records:,}; lower the rate or correct "
                "the number of records"
            )
        if self.due_s <= self.safety_margin_s:
            raise ValueError(
                f"safety_margin_s: must be less than the {self.due_s:,.0f} s that the law allows, "
                f"not {self.safety_margin_s:,.0f}; lower it"
            )
        if self.storage_budget is not None and self.storage_budget < self.checkpoint_bytes:
            raise ValueError(
                f"storage_budget: must hold at least the model of one shard, {self.checkpoint_bytes:,} bytes, "
                f"not {self.storage_budget:,}; raise it"
            )
        if self.shards is not None:
            most = max(self.accuracy) if self.accuracy else self.num_records
            bad = [s for s in self.shards if s > min(most, self.num_records)]
            if bad:
                of = "the accuracy curve ends there" if self.accuracy else "there are no more records"
                raise ValueError(f"shards: must be at most {min(most, self.num_records)}, not {bad[0]}: {of}")
        return self

    @property
    def due_s(self) -> float:
        """The shortest that the legal clock can be."""
        return shortest_days(self.basis, custom_days=self.custom_days) * DAY_S

    @property
    def per_second(self) -> float:
        """Requests a second."""
        return self.requests_per_day / DAY_S

    @property
    def limit_s(self) -> float:
        """What a request may take at most: what is promised, or what the law leaves beside the safety margin."""
        return min(self.erase_within_days * DAY_S, self.due_s - self.safety_margin_s)

    def candidate_shards(self) -> tuple[int, ...]:
        """Numbers of shards to look at."""
        if self.shards is not None:
            return self.shards
        most = max(self.accuracy) if self.accuracy else DEFAULT_MAX_SHARDS
        steps = {m * 10**e for m in (1, 2, 5) for e in range(6)} | set(self.accuracy or ())
        return tuple(sorted(s for s in steps if s <= min(most, self.num_records)))

    def loss(self, num_shards: int, num_slices: int, schedule: str) -> float:
        """Accuracy lost against one model without slices; that of shards is 0 where no curve is known.

        Between the points of the curve accuracy is a straight line over the logarithm of the number of shards.
        """
        of_slices = self.schedule_loss[schedule] if num_slices > 1 else 0.0
        if self.accuracy is None:
            return of_slices
        points = np.log(list(self.accuracy))
        here = float(np.interp(np.log(num_shards), points, list(self.accuracy.values())))
        return self.accuracy[1] - here + of_slices

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> Scenario:
        """Validate plain data.

        Raises:
            ConfigError: with a line for each fault: field, value, rule, fix.
        """
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise ConfigError("\n".join(lines_of(error))) from None
