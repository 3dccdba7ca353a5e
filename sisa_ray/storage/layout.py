"""Where things lie in a run. Paths are relative to the run's root; every payload lies under its writer's attempt."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

SPEC = "spec.json"
LOG = "log/"
DATA = "data/"
CHECKPOINTS = "checkpoints/"
FEATURES = "features/"
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
    r"/partial-(?P<key>[0-9a-f]{64})-(?P<step>\d{10})-(?P<digest>[0-9a-f]{64})"
    r"(?:-(?P<part>\d{5})-of-(?P<parts>\d{5}))?\.safetensors$"
)

_FEATURES = re.compile(
    r"^features/shard=\d{5}/slice=\d{4}/[^/]+/"
    r"(?P<key>[0-9a-f]{64})-(?P<platform>[0-9a-f]{16})-(?P<bucket>\d{5})-(?P<digest>[0-9a-f]{64})\.safetensors$"
)


@dataclass(frozen=True, kw_only=True)
class FeatureName:
    """What a backbone made of one order bucket of a slice.

    Attributes:
        key: of the slice, see :func:`~sisa_ray.core.lineage.feature_key`.
        platform: digest of the platform that computed it: another one rounds in its own way.
        bucket: number of the order bucket.
        digest: SHA-256 (hex) of the object.
    """

    key: str
    platform: str
    bucket: int
    digest: str


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


def part_path(index: str, part: int, num_parts: int) -> str:
    """One part of the checkpoint whose index is at ``index``."""
    return f"{index.rpartition('/')[0]}/state-{part:05d}-of-{num_parts:05d}.safetensors"


def index_path(shard: int, stage: int, attempt: str, key: str) -> str:
    """The index of a checkpoint that is stored in parts, which lie beside it."""
    return f"{checkpoint_path(shard, stage, attempt, key)}.index.json"


def shard_prefixes(shard: int) -> tuple[str, ...]:
    """Everything that holds or was made of records of one shard lies below these."""
    return f"{DATA}shard={shard:05d}/", f"{CHECKPOINTS}shard={shard:05d}/", features_prefix(shard)


def partial_prefix(shard: int, stage: int) -> str:
    """All mid-stage checkpoints of one stage lie below this (beside its checkpoints)."""
    return _stage_prefix(shard, stage)


def partial_path(
    shard: int, stage: int, attempt: str, *, key: str, step: int, digest: str, part: tuple[int, int] = (0, 1)
) -> str:
    """A mid-stage checkpoint, or one part of it: ``part`` is (which, of how many).

    Its name carries all there is to know, so one object is payload and marker; parts are whole when all are there.
    """
    which = "-{:05d}-of-{:05d}".format(*part) if part[1] > 1 else ""
    return f"{_stage_prefix(shard, stage)}{attempt}/partial-{key}-{step:010d}-{digest}{which}.safetensors"


class PartialName(NamedTuple):
    """What the path of a mid-stage checkpoint says: the stage's key, steps done, the file's digest, which part."""

    key: str
    step: int
    digest: str
    part: tuple[int, int]


def parse_partial(path: str) -> PartialName | None:
    """What a mid-stage checkpoint's path says, or None for other objects."""
    match = _PARTIAL.search(path)
    if match is None:
        return None
    part = (int(match["part"] or 0), int(match["parts"] or 1))
    return PartialName(match["key"], int(match["step"]), match["digest"], part)


def features_prefix(shard: int) -> str:
    """The cached features of one shard lie below this."""
    return f"{FEATURES}shard={shard:05d}/"


def features_path(shard: int, slice_: int, attempt: str, name: FeatureName) -> str:
    """Cached features. Their name carries all there is to know, so one object is payload and marker."""
    prefix = f"{features_prefix(shard)}slice={slice_:04d}/{attempt}/"
    return f"{prefix}{name.key}-{name.platform}-{name.bucket:05d}-{name.digest}.safetensors"


def parse_features(path: str) -> FeatureName | None:
    """The name of cached features from their path, or None for other objects."""
    match = _FEATURES.match(path)
    if match is None:
        return None
    return FeatureName(
        key=match["key"], platform=match["platform"], bucket=int(match["bucket"]), digest=match["digest"]
    )


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
