"""Where things lie in a run. Paths are relative to the run's root; every payload lies under its writer's attempt."""

from __future__ import annotations

import re

SPEC = "spec.json"
LOG = "log/"
DATA = "data/"
CHECKPOINTS = "checkpoints/"
REQUESTS = "requests/"
CERTIFICATES = "certificates/"
SCRATCH = "scratch/"
TEMPORARY = ".tmp/"
"""Where a local directory keeps what is not written to its end yet."""
COORDINATOR = "coordinator.json"
"""Who has the run: advice for people and commands; what decides is the log."""

SNAPSHOTS = "snapshots/"

PERMANENT = (SPEC, LOG, SNAPSHOTS, CERTIFICATES, COORDINATOR)
"""Prefixes that purge never touches."""

_NAME_DIGITS = 16

_PARTIAL = re.compile(
    r"/partial-(?P<key>[0-9a-f]{64})-(?P<step>\d{10})-(?P<digest>[0-9a-f]{64})\.safetensors$"
)


def entry_path(seq: int) -> str:
    """The object of one entry of the commit log."""
    return f"{LOG}{seq:020d}.json"


def snapshot_path(seq: int) -> str:
    """The state after one entry of the commit log."""
    return f"{SNAPSHOTS}{seq:020d}.json"


def slice_path(shard: int, slice_: int, attempt: str, content_digest: str) -> str:
    """The Parquet object of one slice. A slice written again by the same attempt has other contents, and so its own."""
    return f"{DATA}shard={shard:05d}/slice={slice_:04d}/{attempt}/{content_digest[:_NAME_DIGITS]}.parquet"


def checkpoint_path(shard: int, stage: int, attempt: str, key: str) -> str:
    """The checkpoint after one stage. A stage built again by the same attempt has another key, and so its own."""
    return f"{_stage_prefix(shard, stage)}{attempt}/{key[:_NAME_DIGITS]}/state.safetensors"


def partial_prefix(shard: int, stage: int) -> str:
    """All mid-stage checkpoints of one stage lie below this (beside its checkpoints)."""
    return _stage_prefix(shard, stage)


def partial_path(shard: int, stage: int, attempt: str, *, key: str, step: int, digest: str) -> str:
    """A mid-stage checkpoint. Its name carries all there is to know, so one object is payload and marker."""
    return f"{_stage_prefix(shard, stage)}{attempt}/partial-{key}-{step:010d}-{digest}.safetensors"


def parse_partial(path: str) -> tuple[str, int, str] | None:
    """(stage key, step, file digest) of a mid-stage checkpoint's path, or None for other objects."""
    match = _PARTIAL.search(path)
    return (match["key"], int(match["step"]), match["digest"]) if match else None


def payload_path(name: str) -> str:
    """The payload of one group of requests: the only objects that name who asked."""
    return f"{REQUESTS}{name}.json"


def certificate_path(batch: str) -> str:
    """The signed certificate of one batch."""
    return f"{CERTIFICATES}{batch}.json"


def scratch_prefix(attempt: str) -> str:
    """Scratch space of one attempt."""
    return f"{SCRATCH}{attempt}/"


def _stage_prefix(shard: int, stage: int) -> str:
    return f"{CHECKPOINTS}shard={shard:05d}/stage={stage:04d}/"
