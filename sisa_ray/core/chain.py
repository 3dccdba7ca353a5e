"""A certificate held against a copy of its run's commit log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, ValidationError

from sisa_ray.core.canonical import Strict, members_of, refuse, refuse_newer, validated
from sisa_ray.core.certificate import Certificate, Receipt
from sisa_ray.core.keys import file_digest
from sisa_ray.core.records import LOG_VERSION, BatchClosed, StageBuilt, StageRef, load_record


@dataclass(frozen=True, kw_only=True)
class _Built:
    """What the log says was built last for a stage. ``order`` counts records."""

    order: int
    seq: int
    ref: StageRef


class _Entry(Strict):
    version: Literal[2]
    seq: int = Field(ge=0)
    prev: str
    commit: str
    at: str
    records: tuple[dict[str, Any], ...]


def check_chain(certificate: Certificate, entries: Sequence[bytes], *, name: str) -> int:
    """Check a certificate against a contiguous segment of its run's log.

    Args:
        certificate: as :func:`sisa_ray.core.certificate.read_signed` gave it.
        entries: bytes of the log's entries, in order. The further back they go from the entry that closed the
            batch, the more of the certified stages are held against what the log says was built.
        name: what to call the certificate in messages.

    Returns:
        The number of entries checked.

    Raises:
        CertificateInvalid: saying which entry breaks the chain or contradicts the certificate.
    """
    segment = _linked(entries, name)
    seq = certificate.log.seq
    index = seq - segment[0].seq if segment else 0
    if not 0 <= index < len(segment):
        held = f"entries {segment[0].seq} to {segment[-1].seq}" if segment else "no entry"
        refuse(name, f"log entry {seq}, which closed the batch, is not in the part of the log given ({held})")
    digest = file_digest(entries[index])
    if digest != certificate.log.digest:
        refuse(name, f"log entry {seq} has the digest {digest}, but {certificate.log.digest} is certified")
    built: dict[tuple[int, int], _Built] = {}
    closed: BatchClosed | None = None
    for order, (entry, record) in enumerate(_records(segment[: index + 1], name)):
        if isinstance(record, StageBuilt):
            built[record.ref.shard, record.ref.stage] = _Built(order=order, seq=entry.seq, ref=record.ref)
        elif entry.seq == seq and record.batch == certificate.batch:
            closed = record
            break  # what was built later is not certified
    if closed is None:
        refuse(name, f"log entry {seq} does not close batch {certificate.batch}")
    _check_figures(certificate, closed, name)
    _check_built(certificate, built, name)
    return len(segment)


def check_receipt(receipt: Receipt, certificate: Certificate, data: bytes, *, name: str) -> None:
    """See that a receipt belongs to a certificate.

    Args:
        receipt: as :func:`sisa_ray.core.certificate.read_signed` gave it.
        certificate: likewise.
        data: the certificate's file.
        name: what to call the receipt in messages.

    Raises:
        CertificateInvalid: saying what does not fit.
    """
    if receipt.batch != certificate.batch or receipt.certificate_digest != file_digest(data):
        refuse(name, "certificate_digest: is not that of the certificate given")
    there = certificate.subjects
    if (receipt.subjects_root, receipt.num_subjects) != (there.root, there.num):
        refuse(name, "subjects_root: is not the certificate's")


def _linked(entries: Sequence[bytes], name: str) -> list[_Entry]:
    """The entries of a segment in which each follows from the one before it."""
    segment: list[_Entry] = []
    for i, data in enumerate(entries):
        which = str(segment[-1].seq + 1) if segment else f"(number {i} of those given)"
        where = f"{name}: log entry {which}"
        members = members_of(data, name=where)
        refuse_newer(members, version=LOG_VERSION, name=where)
        entry = validated(_Entry, members, name=where)
        if segment:
            if entry.seq != segment[-1].seq + 1:
                refuse(where, f"is not there; entry {entry.seq} is in its place")
            if entry.prev != file_digest(entries[i - 1]):
                refuse(where, "does not follow the entry before it: one of the two was changed")
        elif (entry.seq == 0) != (entry.prev == ""):
            refuse(where, f"is entry {entry.seq}: only entry 0 follows none")
        segment.append(entry)
    return segment


def _records(segment: Sequence[_Entry], name: str) -> Iterator[tuple[_Entry, StageBuilt | BatchClosed]]:
    """The records that a certificate is held against, in order. The others need not be known to this version."""
    for entry in segment:
        for i, data in enumerate(entry.records):
            if data.get("type") not in ("stage_built", "batch_closed"):
                continue
            try:
                record = load_record(data)
            except ValidationError:
                refuse(
                    name,
                    f"log entry {entry.seq}: its record {i} is no {data['type']} that this version knows",
                )
            assert isinstance(record, (StageBuilt, BatchClosed))
            yield entry, record


def _check_figures(certificate: Certificate, closed: BatchClosed, name: str) -> None:
    work, purged = certificate.work, certificate.purged
    certified = {
        "stages_rebuilt": work.stages_rebuilt,
        "record_visits": work.record_visits,
        "full_retrain_record_visits": work.full_retrain_record_visits,
        "objects_purged": purged.objects,
        "bytes_purged": purged.bytes,
    }
    for figure, value in certified.items():
        logged = getattr(closed, figure)
        if logged != value:
            refuse(
                name, f"{figure} is certified as {value}, but log entry {certificate.log.seq} has {logged}"
            )


def _check_built(certificate: Certificate, built: Mapping[tuple[int, int], _Built], name: str) -> None:
    """The certified stages are those that were built last, as far as the segment says."""
    for touched in certificate.touched:
        certified = {stage.stage: stage for stage in touched.after.stages}
        logged = {stage: last for (shard, stage), last in built.items() if shard == touched.shard}
        for number, last in sorted(logged.items()):
            what = f"log entry {last.seq} built stage {number} of shard {touched.shard}"
            stage = certified.get(number)
            if stage is None:
                # A stage built again with other bits drops those after it, which then need not be there.
                if all(lower.order < last.order for n, lower in logged.items() if n < number):
                    refuse(name, f"{what}, which the certificate leaves out")
            elif stage.key != last.ref.key:
                refuse(name, f"{what} with the key {last.ref.key}, but {stage.key} is certified")
            elif stage.file_digest != last.ref.file_digest:
                refuse(
                    name,
                    f"{what} with the digest {last.ref.file_digest}, but {stage.file_digest} is certified",
                )
