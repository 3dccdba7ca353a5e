"""What long work reports while it runs. Shard actors send these to the driver, the driver to its caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sisa_ray.core.records import StageRef


@dataclass(frozen=True, kw_only=True)
class PhaseStarted:
    """A new part of the work begins."""

    text: str


@dataclass(frozen=True, kw_only=True)
class WorkPlanned:
    """Stages that will be built, and their steps in total."""

    num_shards: int
    num_stages: int
    num_steps: int


@dataclass(frozen=True, kw_only=True)
class StageProgress:
    """A shard has done ``step`` of ``num_steps`` of a stage."""

    shard: int
    stage: int
    step: int
    num_steps: int


@dataclass(frozen=True, kw_only=True)
class StageFinished:
    """A stage is built and its checkpoint, where it is kept, is durable."""

    ref: StageRef


@dataclass(frozen=True, kw_only=True)
class CheckpointBroken:
    """The checkpoint that a shard should start from is gone or is not what was committed."""

    shard: int
    stage: int
    problem: str


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something the user should know, though the work goes on."""

    text: str


ShardEvent = StageProgress | StageFinished | CheckpointBroken
Event = PhaseStarted | WorkPlanned | ShardEvent | Notice
OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The callback of those who do not want to know."""
