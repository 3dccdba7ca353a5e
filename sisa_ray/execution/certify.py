"""Certificates of closed batches, and receipts for the people in them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sisa_ray.core.certificate import (
    DOES_NOT_PROVE,
    PROVES,
    BatchTimes,
    Certificate,
    EnsembleState,
    LogPosition,
    PurgeReport,
    Receipt,
    RequestTimes,
    RunIdentity,
    ShardChain,
    SubjectsCount,
    TouchedShard,
    WorkReport,
    read_signed,
    shard_leaf,
    sign,
    subject_leaf,
)
from sisa_ray.core.errors import DataError, IntegrityError, ObjectExists
from sisa_ray.core.keys import file_digest
from sisa_ray.core.merkle import paths, root
from sisa_ray.core.records import BatchCertified
from sisa_ray.core.requests import Chain, Chains, ClosedBatch, Request
from sisa_ray.core.state import RunState
from sisa_ray.storage import layout, signing
from sisa_ray.storage.run import Run

_OUT_OF_REACH = (
    "source tables outside the run",
    "backups and copies of the run",
    "checkpoints exported from the run",
    "predictions made before",
)
_NOTHING = Chain(stages=())


def certify(run: Run, batch: str) -> BatchCertified:
    """Sign and store the certificate of a closed batch; the record that names it.

    Raises:
        ConfigError: where the signing key cannot be used.
        IntegrityError: where something else lies in the certificate's place.
    """
    key = signing.load_or_create(storage_path=run.spec.config.storage_path)
    certificate = _certificate(run, batch)
    data = sign(certificate, key)
    where = layout.certificate_path(batch)
    try:
        run.store.create(where, data)
    except ObjectExists:  # signed before a crash
        data = run.store.get(where)
        there = read_signed(data, key.public_key(), name=f"{run.address}/{where}")
        if there != certificate:
            raise IntegrityError(
                f"{run.address}/{where}: is not the certificate of this batch; move it away, then run the same "
                "command again"
            ) from None
    return BatchCertified(batch=batch, path=where, digest=file_digest(data))


def receipts(run: Run, batch: str, *, tags: Iterable[str]) -> list[bytes]:
    """Signed receipts of subjects of a certified batch, each with its own tag and nobody else's.

    Raises:
        DataError: for a subject that is not in the batch, or a batch that is not certified yet.
    """
    closed = run.state.closed_batches[batch]
    if closed.certificate_digest is None:
        raise DataError(f"batch {batch}: is not certified yet; its receipts can be had once it is")
    key = signing.load_or_create(storage_path=run.spec.config.storage_path)
    asked = _subjects(run.state, closed)
    order = {tag: index for index, tag in enumerate(asked)}
    wanted = list(tags)
    absent = [tag for tag in wanted if tag not in order]
    if absent:
        raise DataError(f"tag {absent[0][:12]}: is not one of the subjects of batch {batch}")
    leaves = _subject_leaves(run.state, closed)
    ways = paths(leaves, [order[tag] for tag in wanted])
    return [
        sign(
            Receipt(
                version=1,
                kind="receipt",
                run=_identity(run),
                batch=batch,
                request=asked[tag].request,
                tag=tag,
                outcome="unknown" if tag in closed.unknown else "forgotten",
                received_at=_text(asked[tag].received_at),
                due_at=_text(asked[tag].due_at),
                index=order[tag],
                num_subjects=len(order),
                path=way,
                subjects_root=root(leaves),
                certificate_digest=closed.certificate_digest,
            ),
            key,
        )
        for tag, way in zip(wanted, ways, strict=True)
    ]


def _certificate(run: Run, batch: str) -> Certificate:
    state = run.state
    closed = state.closed_batches[batch]
    evidence = closed.evidence
    assert evidence is not None
    assert state.created is not None
    protection = state.created.protection
    num_shards = run.spec.config.sisa.num_shards
    before, after = _leaves(evidence.before, num_shards), _leaves(evidence.after, num_shards)
    touched = sorted({shard for shard, _ in closed.plan.affected})
    ways = zip(touched, paths(before, touched), paths(after, touched), strict=True)
    rebuilt = [evidence.after.get(shard, _NOTHING) for shard in touched]
    leaves = _subject_leaves(state, closed)
    requests = [state.closed_requests[name] for name in closed.plan.requests]
    platforms = {tuple(sorted(ref.platform.items())): None for chain in rebuilt for ref in chain.stages}
    return Certificate(
        version=1,
        kind="certificate",
        run=_identity(run),
        batch=batch,
        generation=evidence.generation,
        requests=tuple(_times(request) for request in requests),
        subjects=SubjectsCount(
            num=len(leaves),
            num_unknown=len(closed.unknown),
            root=root(leaves),
        ),
        before=EnsembleState(num_shards=num_shards, root=root(before)),
        after=EnsembleState(num_shards=num_shards, root=root(after)),
        touched=tuple(
            TouchedShard(
                shard=shard,
                before=ShardChain(stages=evidence.before.get(shard, _NOTHING).digests, path=way_before),
                after=ShardChain(stages=evidence.after.get(shard, _NOTHING).digests, path=way_after),
            )
            for shard, way_before, way_after in ways
        ),
        purged=PurgeReport(
            objects=closed.closed.objects_purged,
            bytes=closed.closed.bytes_purged,
            verified_at=None if evidence.verified_at is None else _text(evidence.verified_at),
            out_of_reach=(*_OUT_OF_REACH, *protection.unread),
            replication=protection.replication,
        ),
        work=WorkReport(
            stages_rebuilt=closed.closed.stages_rebuilt,
            record_visits=closed.closed.record_visits,
            full_retrain_record_visits=closed.closed.full_retrain_record_visits,
        ),
        times=BatchTimes(
            planned_at=_text(closed.planned_at),
            published_at=None if evidence.published_at is None else _text(evidence.published_at),
            closed_at=_text(closed.closed_at),
        ),
        platforms=tuple(dict(platform) for platform in platforms),
        log=LogPosition(seq=evidence.entry.seq, digest=evidence.entry.digest),
        proves=PROVES,
        does_not_prove=DOES_NOT_PROVE,
    )


def _identity(run: Run) -> RunIdentity:
    spec = run.spec
    return RunIdentity(name=spec.config.name, spec_digest=spec.digest, secret_id=spec.secret_id)


def _times(request: Request) -> RequestTimes:
    return RequestTimes(
        request=request.request,
        basis=request.basis,
        received_at=_text(request.received_at),
        accepted_at=_text(request.accepted_at),
        fenced_at=None if request.fenced_at is None else _text(request.fenced_at),
        due_at=_text(request.due_at),
        overdue=request.is_overdue,
    )


def _subjects(state: RunState, closed: ClosedBatch) -> dict[str, Request]:
    """Tags of the batch in the order of its receipts, each with the request that named it first."""
    asked: dict[str, Request] = {}
    for name in closed.plan.requests:
        request = state.closed_requests[name]
        for tag in request.tags:
            asked.setdefault(tag, request)
    return asked


def _subject_leaves(state: RunState, closed: ClosedBatch) -> list[bytes]:
    unknown = set(closed.unknown)
    return [
        subject_leaf(tag, "unknown" if tag in unknown else "forgotten") for tag in _subjects(state, closed)
    ]


def _leaves(chains: Chains, num_shards: int) -> list[bytes]:
    """A leaf for each shard, those of which nothing is built included."""
    shards = ((shard, chains.get(shard, _NOTHING)) for shard in range(num_shards))
    return [chain.leaf if chain.stages else shard_leaf(shard, ()) for shard, chain in shards]


def _text(at: datetime) -> str:
    return at.isoformat()
