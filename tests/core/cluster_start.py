"""What every simulated history begins with, and what a run has that never knew some people."""

from __future__ import annotations

from functools import lru_cache

from sisa_ray.core.lineage import stage_keys
from sisa_ray.core.protection import BucketProtection
from sisa_ray.core.records import (
    AttemptClosed,
    AttemptOpened,
    GenerationPublished,
    Purged,
    PurgePlanned,
    Record,
    RunCreated,
    StageBuilt,
    TableIngested,
)
from sisa_ray.core.schedule import stage_steps
from tests.core.builders import content_digest, digest_of, make_stage
from tests.core.cluster_store import (
    NUM_SHARDS,
    NUM_SLICES,
    STEP_S,
    TABLE,
    epochs,
    records_of,
    slice_ref,
    stage_digest,
)

PLACES = [(k, r) for k in range(NUM_SHARDS) for r in range(1, NUM_SLICES + 1)]


@lru_cache
def prefix(*, is_trained: bool) -> tuple[Record, ...]:
    """What was committed before the history begins."""
    slices = tuple(slice_ref(*where, records_of(where), "a0") for where in PLACES)
    records: list[Record] = [
        RunCreated(spec_digest="", secret_id="secret", protection=BucketProtection()),
        AttemptOpened(attempt="a0", command="train"),
        TableIngested(attempt="a0", columns="", slices=slices, num_rows=len(TABLE), num_refused=0),
    ]
    if is_trained:
        stages = contents_without(frozenset())[1]
        for shard in range(NUM_SHARDS):
            sizes = [ref.num_records for ref in slices if ref.shard == shard]
            for stage, num_steps in enumerate(stage_steps(sizes, epochs(NUM_SLICES), 2), start=1):
                key, digest = stages[shard, stage]
                ref = make_stage(shard, stage, key=key, file_digest=digest, num_steps=num_steps)
                update = {"seconds": num_steps * STEP_S, "platform": {"device": "cpu"}}
                records.append(StageBuilt(ref=ref.model_copy(update=update)))
        keys = tuple(stages[shard, NUM_SLICES][0] for shard in range(NUM_SHARDS))
        records += [
            GenerationPublished(generation=1, keys=keys),
            PurgePlanned(attempt="a0", num_objects=0),
            Purged(attempt="a0", num_objects=0, num_bytes=0),
        ]
    return (*records, AttemptClosed(attempt="a0"))


@lru_cache(maxsize=4096)
def contents_without(
    forgotten: frozenset[str],
) -> tuple[dict[tuple[int, int], str], dict[tuple[int, int], tuple[str, str]]]:
    """Content digests of slices, keys and file digests of stages of a run that never knew some people."""
    slices: dict[tuple[int, int], str] = {}
    stages: dict[tuple[int, int], tuple[str, str]] = {}
    for shard in range(NUM_SHARDS):
        places = [(shard, r) for r in range(1, NUM_SLICES + 1)]
        slices |= {where: content_digest(records_of(where, forgotten)) for where in places}
        previous = ""
        for where, key in zip(
            places, stage_keys(stage_digest(), shard, [slices[w] for w in places]), strict=True
        ):
            previous = digest_of("state", key, previous, "cpu")
            stages[where] = (key, previous)
    return slices, stages


def people_before(where: tuple[int, int]) -> frozenset[str]:
    """Everybody in the slices up to one of a shard, at the beginning."""
    shard, last = where
    return frozenset(TABLE[r] for s in range(1, last + 1) for r in records_of((shard, s)))
