"""What a run has shown of its own costs: where a plan may take its numbers from."""

from __future__ import annotations

from dataclasses import dataclass

from sisa_ray.core.errors import ConfigError
from sisa_ray.execution import opening
from sisa_ray.execution.opening import Target


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Sizes and times of a run as it is."""

    num_records: int
    epochs: str
    checkpoint_bytes: int
    """The largest: those of one run differ by what optimizers hold."""
    seconds_per_visit: float
    num_stages: int
    """Stages behind these numbers."""


def measure(target: Target) -> Measured:
    """Read a run's log; trains nothing.

    Raises:
        ConfigError: where the run has trained nothing that takes time yet.
    """
    run = opening.existing_run(target, check_code=False)
    stages = [ref for ref in run.state.stages.values() if ref.record_visits]
    seconds = sum(ref.seconds for ref in stages)
    if not seconds > 0:
        raise ConfigError(f"{run.address}: has trained nothing to be measured; `sisa-ray train` it first")
    return Measured(
        num_records=sum(ref.num_records for ref in run.state.slices.values()),
        epochs=str(run.spec.config.sisa.epochs),
        checkpoint_bytes=max(ref.total_bytes for ref in stages),
        seconds_per_visit=seconds / sum(ref.record_visits for ref in stages),
        num_stages=len(stages),
    )
