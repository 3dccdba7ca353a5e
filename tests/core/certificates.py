"""A certificate of a batch on five shards, its receipts, and the log that it belongs to."""

from __future__ import annotations

from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sisa_ray.core import merkle
from sisa_ray.core.certificate import (
    DOES_NOT_PROVE,
    PROVES,
    BatchTimes,
    Certificate,
    EnsembleState,
    LogPosition,
    Outcome,
    PurgeReport,
    Receipt,
    RequestTimes,
    RunIdentity,
    ShardChain,
    StageDigest,
    SubjectsCount,
    TouchedShard,
    WorkReport,
    shard_leaf,
    subject_leaf,
)
from sisa_ray.core.keys import canonical_json, file_digest
from sisa_ray.core.records import LOG_VERSION, BatchClosed, Record, StageBuilt, dump_record
from tests.core.builders import PLATFORM, RECEIVED, digest_of, make_stage

KEY = Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\x01")
NUM_SHARDS = 5
TOUCHED = (1, 3)
NUM_STAGES = 3
FIRST_RETRAINED = 2
TAGS = [digest_of("tag", i) for i in range(7)]
OUTCOMES: list[Outcome] = ["unknown" if i >= 5 else "forgotten" for i in range(7)]
RUN = RunIdentity(name="Bücher", spec_digest=digest_of("spec"), secret_id="secret")

When = Literal["before", "after"]


def stage_of(shard: int, stage: int, when: When) -> StageDigest:
    """A stage as it was built; those of touched shards are built anew from some stage on."""
    anew = when == "after" and shard in TOUCHED and stage >= FIRST_RETRAINED
    name = (shard, stage, "after" if anew else "before")
    return StageDigest(stage=stage, key=digest_of("key", name), file_digest=digest_of("file", name))


def state_of(when: When) -> list[list[StageDigest]]:
    """The stages of every shard."""
    return [[stage_of(k, r, when) for r in range(1, NUM_STAGES + 1)] for k in range(NUM_SHARDS)]


def built(shard: int, stage: int, when: When, **changes: Any) -> StageBuilt:
    """The log's record of a stage."""
    digest = stage_of(shard, stage, when)
    return StageBuilt(
        ref=make_stage(shard, stage, **{"key": digest.key, "file_digest": digest.file_digest, **changes})
    )


CLOSED = BatchClosed(
    batch="b",
    stages_rebuilt=4,
    record_visits=48,
    full_retrain_record_visits=180,
    objects_purged=7,
    bytes_purged=700,
)


def log_records() -> list[list[Record]]:
    """The records of each entry; number 3 closes the batch, and others are built after it."""
    return [
        [built(k, r, "before") for k in range(NUM_SHARDS) for r in range(1, NUM_STAGES + 1)],
        [built(1, 2, "after"), built(3, 2, "after")],
        [built(1, 3, "after"), built(3, 3, "after")],
        [CLOSED],
        [built(1, 3, "after", key="of a later batch")],
    ]


def chained(records: list[list[Record]]) -> list[bytes]:
    """Log entries as they are stored."""
    entries: list[bytes] = []
    for seq, held in enumerate(records):
        entries.append(
            canonical_json(
                {
                    "version": LOG_VERSION,
                    "seq": seq,
                    "prev": file_digest(entries[-1]) if entries else "",
                    "commit": f"commit {seq}",
                    "at": RECEIVED.isoformat(),
                    "records": [dump_record(record) for record in held],
                }
            )
        )
    return entries


def make_certificate(entries: list[bytes] | None = None, *, seq: int = 3) -> Certificate:
    """The certificate of the batch that entry ``seq`` closes."""
    log = chained(log_records()) if entries is None else entries
    trees = {when: [shard_leaf(k, stages) for k, stages in enumerate(state_of(when))] for when in _WHENS}
    at = RECEIVED.isoformat()

    def chain(shard: int, when: When) -> ShardChain:
        return ShardChain(stages=tuple(state_of(when)[shard]), path=merkle.path(trees[when], shard))

    return Certificate(
        version=1,
        kind="certificate",
        run=RUN,
        batch="b",
        generation=2,
        requests=(
            RequestTimes(
                request="r",
                basis="gdpr",
                received_at=at,
                accepted_at=at,
                fenced_at=None,
                due_at=at,
                overdue=False,
            ),
        ),
        subjects=SubjectsCount(num=len(TAGS), num_unknown=2, root=merkle.root(_subject_leaves())),
        before=EnsembleState(num_shards=NUM_SHARDS, root=merkle.root(trees["before"])),
        after=EnsembleState(num_shards=NUM_SHARDS, root=merkle.root(trees["after"])),
        touched=tuple(
            TouchedShard(shard=k, before=chain(k, "before"), after=chain(k, "after")) for k in TOUCHED
        ),
        purged=PurgeReport(
            objects=7, bytes=700, verified_at=at, out_of_reach=("source tables",), replication=()
        ),
        work=WorkReport(stages_rebuilt=4, record_visits=48, full_retrain_record_visits=180),
        times=BatchTimes(planned_at=at, published_at=None, closed_at=at),
        platforms=(PLATFORM,),
        log=LogPosition(seq=seq, digest=file_digest(log[seq])),
        proves=PROVES,
        does_not_prove=DOES_NOT_PROVE,
    )


def make_receipt(index: int) -> Receipt:
    """The receipt of one subject of the batch."""
    leaves = _subject_leaves()
    return Receipt(
        version=1,
        kind="receipt",
        run=RUN,
        batch="b",
        request="r",
        tag=TAGS[index],
        outcome=OUTCOMES[index],
        received_at=RECEIVED.isoformat(),
        due_at=RECEIVED.isoformat(),
        index=index,
        num_subjects=len(leaves),
        path=merkle.path(leaves, index),
        subjects_root=merkle.root(leaves),
        certificate_digest=digest_of("certificate"),
    )


_WHENS: tuple[When, When] = ("before", "after")


def _subject_leaves() -> list[bytes]:
    return [subject_leaf(tag, outcome) for tag, outcome in zip(TAGS, OUTCOMES, strict=True)]
