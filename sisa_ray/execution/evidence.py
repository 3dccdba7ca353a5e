"""Evidence taken out of a run: its history, segments of its log, certificates, receipts; and certificates replayed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from sisa_ray.core.certificate import Certificate
from sisa_ray.core.errors import DataError, ObjectMissing
from sisa_ray.core.keys import file_digest
from sisa_ray.core.records import Record
from sisa_ray.core.requests import ClosedBatch
from sisa_ray.execution.acceptance import checked_subjects, rows_of
from sisa_ray.execution.certify import receipts
from sisa_ray.execution.events import OnEvent, ignore
from sisa_ray.execution.opening import Target, existing_run
from sisa_ray.execution.results import (
    CertificateRow,
    CertificatesResult,
    HistoryLine,
    ReplayedShard,
    ReplayVerification,
)
from sisa_ray.execution.verify import verify
from sisa_ray.execution.workers import NewWorkers, Workers
from sisa_ray.storage import layout
from sisa_ray.storage.log import CommitLog
from sisa_ray.storage.objects import open_store
from sisa_ray.storage.run import Run


def certificates(target: Target) -> CertificatesResult:
    """The certified batches of a run, the latest first."""
    run = existing_run(target, check_code=False)
    rows = [
        CertificateRow(
            batch=name,
            path=batch.certificate,
            digest=batch.certificate_digest,
            num_requests=len(batch.plan.requests),
            closed_at=batch.closed_at,
            shards=tuple(sorted({shard for shard, _ in batch.plan.affected})),
        )
        for name, batch in reversed(run.state.closed_batches.items())
        if batch.certificate is not None and batch.certificate_digest is not None
    ]
    return CertificatesResult(address=run.address, rows=tuple(rows))


def certificate_file(target: Target, batch: str | None = None) -> bytes:
    """The signed file of a batch (by the beginning of its id; default: the latest)."""
    run = existing_run(target, check_code=False)
    return _file(run, _certified(run, batch)[1])


def receipt_files(target: Target, subjects: Sequence[str]) -> list[bytes]:
    """The receipt of each subject, from the last certified batch that named them.

    Raises:
        DataError: naming the row of a subject whom no certified batch names.
    """
    run = existing_run(target, check_code=False)
    people = checked_subjects(subjects)
    made = []
    for row, tag in rows_of(subjects, dict(zip(people, run.secret.tags(people), strict=True))):
        batch = _batch_naming(run, tag)
        if batch is None:
            raise DataError(f"subjects: row {row}: no certified batch of this run names them")
        made += receipts(run, batch, tags=[tag])
    return made


def history(target: Target, *, first: int = 0, last: int | None = None) -> Iterator[HistoryLine]:
    """The records of a run's log, one line each."""
    run = existing_run(target, check_code=False)
    for entry in CommitLog(run.store).read():
        if entry.head.seq >= first and (last is None or entry.head.seq <= last):
            for record in entry.records:
                yield _line(entry.head.seq, entry.at, record)


def segment(target: Target, *, first: int = 0, last: int | None = None) -> list[bytes]:
    """Entries of a run's log as they are stored, for an auditor.

    Raises:
        DataError: where there are none in that range.
    """
    run = existing_run(target, check_code=False)
    store = open_store(run.address)
    end = run.head.seq if last is None else min(last, run.head.seq)
    if not 0 <= first <= end:
        raise DataError(f"--from {first}: the log has the entries 0 to {run.head.seq}; choose among them")
    return [store.get(layout.entry_path(seq)) for seq in range(first, end + 1)]


def replay_certificate(
    target: Target, certificate: Certificate, *, on_event: OnEvent = ignore, new_workers: NewWorkers = Workers
) -> ReplayVerification:
    """Train the shards that a certificate is about once more, as far as they are still in the certified state.

    Raises:
        DataError: where the certificate is of another run.
    """
    run = existing_run(target)
    identity = certificate.run
    if (identity.spec_digest, identity.secret_id) != (run.spec.digest, run.spec.secret_id):
        raise DataError(
            f"{run.address}: is not the run that the certificate is about (run {identity.name!r})"
        )
    shards: list[ReplayedShard] = []
    for touched in certificate.touched:
        certified = {stage.stage: (stage.key, stage.file_digest) for stage in touched.after.stages}
        there = {
            stage: (ref.key, ref.file_digest)
            for (shard, stage), ref in run.state.stages.items()
            if shard == touched.shard
        }
        is_same = all(there.get(stage) == names for stage, names in certified.items())
        later = None if is_same else _superseding(run, certificate.batch, touched.shard)
        shards.append(ReplayedShard(shard=touched.shard, is_superseded=not is_same, superseded_by=later))
    current = [s.shard for s in shards if not s.is_superseded]
    verified = verify(target, shards=current, on_event=on_event, new_workers=new_workers) if current else None
    return ReplayVerification(
        address=run.address,
        batch=certificate.batch,
        shards=tuple(shards),
        outcome=verified.outcome if verified else "superseded",
        first_difference=verified.first_difference if verified else None,
        source=verified.source if verified else None,
    )


def _superseding(run: Run, batch: str, shard: int) -> str | None:
    """The first later batch that touched a shard."""
    names = list(run.state.closed_batches)
    later = names[names.index(batch) + 1 :] if batch in names else names
    for name in later:
        if any(place[0] == shard for place in run.state.closed_batches[name].plan.affected):
            return name
    return None


def _certified(run: Run, batch: str | None) -> tuple[str, ClosedBatch]:
    done = {name: b for name, b in run.state.closed_batches.items() if b.certificate is not None}
    if batch is None:
        if not done:
            raise DataError(
                f"{run.address}: no batch is certified yet; `sisa-ray requests RUN` says what is open"
            )
        return list(done.items())[-1]
    found = [(name, b) for name, b in done.items() if name.startswith(batch)]
    if len(found) != 1:
        raise DataError(
            f"batch {batch}: is {'the beginning of several' if found else 'no certified batch of this run'}; "
            "`sisa-ray certificate list RUN` lists them"
        )
    return found[0]


def _file(run: Run, batch: ClosedBatch) -> bytes:
    assert batch.certificate is not None
    try:
        data = run.store.get(batch.certificate)
    except ObjectMissing:
        raise DataError(
            f"{run.address}/{batch.certificate}: is gone, though the log names it; restore it from a backup"
        ) from None
    if file_digest(data) != batch.certificate_digest:
        raise DataError(f"{run.address}/{batch.certificate}: is not the file that was signed; restore it")
    return data


def _batch_naming(run: Run, tag: str) -> str | None:
    for name, batch in reversed(run.state.closed_batches.items()):
        asked = (run.state.closed_requests[request] for request in batch.plan.requests)
        if batch.certificate is not None and any(tag in request.tags for request in asked):
            return name
    return None


def _line(seq: int, at: datetime, record: Record) -> HistoryLine:
    facts = record.model_dump(mode="json", exclude={"type", "columns", "slices", "protection"})
    return HistoryLine(seq=seq, at=at, type=record.type, facts={k: _short(v) for k, v in facts.items()})


def _short(value: object) -> str:
    """Long lists as their length, references as where they are."""
    if isinstance(value, dict) and "stage" in value:
        return f"shard {value['shard']} stage {value['stage']}: {value['num_steps']} steps"
    if isinstance(value, list) and len(value) > 3:
        return f"{len(value)} of them"
    if isinstance(value, list):
        return ", ".join(_short(item) for item in value)
    text = str(value)
    return text[:12] if len(text) >= 32 and all(c in "0123456789abcdef" for c in text) else text
