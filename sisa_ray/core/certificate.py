"""Certificates of batches and receipts of subjects: what they say, and their signed files.

All that it takes to check one is the file and a public key; :mod:`sisa_ray.core.chain` adds a copy of the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field

from sisa_ray.core.canonical import Strict, members_of, refuse, refuse_newer, validated
from sisa_ray.core.clocks import Basis
from sisa_ray.core.keys import canonical_json, file_digest
from sisa_ray.core.merkle import root_from_path

VERSION = 1
"""Of both documents: a reader refuses newer ones."""

PROVES = (
    "The batch's people were taken out of the training data of the shards named here.",
    "The stages listed after were trained from a checkpoint that never saw the people, or from the start; a stage "
    "that saw them is not listed any more.",
    "Each retrained stage is, bit for bit, that of a training without the people. Whoever has the data that is "
    "left, the code and the same platform can train it again and compare the digests.",
    "What the run still held of the people was deleted, and its absence was verified at the time given here.",
    "A person who is counted as unknown was in none of the run's data when the batch was planned.",
)
"""In plain words, for those who audit."""

DOES_NOT_PROVE = (
    "It says nothing of the source tables, which the run only reads.",
    "It says nothing of backups or other copies of the run's storage, or of buckets that it is replicated to.",
    "It says nothing of checkpoints that were exported, or of predictions that were made before.",
    "Whoever kept the models of two generations can compare them, and may learn something of the people.",
    "On another platform, training again gives a model that is equal in distribution, but not in its bits.",
)

_DOMAIN = b"sisa_ray/certificate/1\n"
"""What is signed starts with this, so that no signature made for another use fits."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Outcome = Literal["forgotten", "unknown"]


class RunIdentity(Strict):
    """Which run it is about."""

    name: str
    spec_digest: str
    secret_id: str


class RequestTimes(Strict):
    """The clocks of one request (ISO 8601). ``overdue``: it was late before it was accepted."""

    request: str
    basis: Basis
    received_at: str
    accepted_at: str
    fenced_at: str | None
    due_at: str
    overdue: bool


class SubjectsCount(Strict):
    """How many people, and the Merkle root over their leaves (:func:`subject_leaf`)."""

    num: Count
    num_unknown: Count
    root: Digest


class EnsembleState(Strict):
    """All shards: the Merkle root over their leaves (:func:`shard_leaf`), in order."""

    num_shards: Count
    root: Digest


class StageDigest(Strict):
    """One built stage: the hash of its inputs, and of its checkpoint's bytes."""

    stage: Count
    key: str
    file_digest: str


class ShardChain(Strict):
    """The stages of one shard, and the Merkle path from its leaf to the ensemble's root."""

    stages: tuple[StageDigest, ...]
    path: tuple[Digest, ...]


class TouchedShard(Strict):
    """A shard that held people of the batch."""

    shard: Count
    before: ShardChain
    after: ShardChain


class PurgeReport(Strict):
    """What was deleted, when its absence was verified (ISO 8601), and what no purge reaches."""

    objects: Count
    bytes: Count
    verified_at: str | None
    out_of_reach: tuple[str, ...]
    replication: tuple[str, ...]


class WorkReport(Strict):
    """What it cost, in stages and in records visited in training; a full retraining would visit so many."""

    stages_rebuilt: Count
    record_visits: Count
    full_retrain_record_visits: Count


class BatchTimes(Strict):
    """When (ISO 8601) the batch was planned, its generation published, and everything done."""

    planned_at: str
    published_at: str | None
    closed_at: str


class LogPosition(Strict):
    """The entry of the commit log that closed the batch, and the SHA-256 of its bytes."""

    seq: Count
    digest: str


class Certificate(Strict):
    """The evidence of one batch. People are a count and a Merkle root."""

    version: Literal[1]
    kind: Literal["certificate"]
    run: RunIdentity
    batch: str
    generation: Count
    requests: tuple[RequestTimes, ...]
    subjects: SubjectsCount
    before: EnsembleState
    after: EnsembleState
    touched: tuple[TouchedShard, ...]
    purged: PurgeReport
    work: WorkReport
    times: BatchTimes
    platforms: tuple[dict[str, str], ...]
    log: LogPosition
    proves: tuple[str, ...]
    does_not_prove: tuple[str, ...]


class Receipt(Strict):
    """One subject's own evidence: its leaf is in the certificate with that digest. Nobody else's tag is in it."""

    version: Literal[1]
    kind: Literal["receipt"]
    run: RunIdentity
    batch: str
    request: str
    tag: str
    outcome: Outcome
    received_at: str
    due_at: str
    index: Count
    num_subjects: Count
    path: tuple[Digest, ...]
    subjects_root: Digest
    certificate_digest: Digest


class _Signature(Strict):
    algorithm: Literal["Ed25519"]
    key_id: Digest
    value: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


def shard_leaf(shard: int, stages: Sequence[StageDigest]) -> bytes:
    """What a shard's leaf in the tree of the ensemble is the hash of."""
    return canonical_json({"shard": shard, "stages": [s.model_dump() for s in stages]})


def subject_leaf(tag: str, outcome: Outcome) -> bytes:
    """What a subject's leaf in the tree of the batch is the hash of."""
    return canonical_json({"tag": tag, "outcome": outcome})


def key_id(public_key: Ed25519PublicKey) -> str:
    """SHA-256 (hex) of the raw public key."""
    return file_digest(public_key.public_bytes_raw())


def sign(document: Certificate | Receipt, key: Ed25519PrivateKey) -> bytes:
    """The file of a document: canonical JSON, with a signature of the canonical JSON without it."""
    members = document.model_dump(mode="json")
    signature = _Signature(
        algorithm="Ed25519",
        key_id=key_id(key.public_key()),
        value=key.sign(_DOMAIN + canonical_json(members)).hex(),
    )
    return canonical_json({**members, "signature": signature.model_dump()})


def read_signed(data: bytes, public_key: Ed25519PublicKey, *, name: str) -> Certificate | Receipt:
    """The document in a signed file, after every check that the file and the key allow. ``name`` is for messages.

    Raises:
        CertificateInvalid: saying where it is broken.
    """
    members = members_of(data, name=name)
    refuse_newer(members, version=VERSION, name=name)
    if not isinstance(members.get("signature"), dict):
        refuse(name, "the member signature is missing, or no object")
    signature = validated(_Signature, members.pop("signature"), name=name, within="signature")
    kind = members.get("kind")
    document: Certificate | Receipt
    if kind == "certificate":
        document = validated(Certificate, members, name=name)
    elif kind == "receipt":
        document = validated(Receipt, members, name=name)
    else:
        refuse(name, "the member kind is neither certificate nor receipt")
    known = key_id(public_key)
    if signature.key_id != known:
        refuse(
            name,
            f"it was signed with another key (key id {signature.key_id}; the public key given has {known}); "
            "check it with the public key of whoever issued it",
        )
    faults = _certificate_faults(document) if isinstance(document, Certificate) else _receipt_faults(document)
    fault = next(faults, None)
    try:
        public_key.verify(bytes.fromhex(signature.value), _DOMAIN + canonical_json(members))
    except InvalidSignature:
        refuse(
            name,
            "the signature does not fit: it, or the document, was changed after it was signed"
            + (f"; {fault}" if fault else ""),
        )
    if fault:
        refuse(name, fault)
    return document


def _certificate_faults(certificate: Certificate) -> Iterator[str]:
    before, after = certificate.before, certificate.after
    if before.num_shards != after.num_shards:
        yield f"before has {before.num_shards} shards, but after {after.num_shards}"
    if certificate.subjects.num_unknown > certificate.subjects.num:
        yield "subjects: more are unknown than there are"
    last = -1
    for touched in certificate.touched:
        shard = touched.shard
        if shard >= before.num_shards:
            yield f"touched: there is no shard {shard} among {before.num_shards}"
        if shard <= last:
            yield f"touched: shard {shard} comes after shard {last}; they must be in order, each once"
        last = shard
        for when, ensemble, chain in (("before", before, touched.before), ("after", after, touched.after)):
            numbers = [s.stage for s in chain.stages]
            if numbers != sorted(set(numbers)):
                yield f"shard {shard}, {when}: its stages must be in order, each once"
            leaf = shard_leaf(shard, chain.stages)
            yield from _path_faults(
                f"shard {shard}, {when}", leaf, shard, ensemble.num_shards, chain.path, ensemble.root
            )


def _receipt_faults(receipt: Receipt) -> Iterator[str]:
    leaf = subject_leaf(receipt.tag, receipt.outcome)
    yield from _path_faults(
        "the receipt", leaf, receipt.index, receipt.num_subjects, receipt.path, receipt.subjects_root
    )


def _path_faults(
    what: str, leaf: bytes, index: int, num_leaves: int, path: Sequence[str], root: str
) -> Iterator[str]:
    try:
        if root_from_path(leaf, index, num_leaves, path) != root:
            yield f"{what}: its Merkle path does not lead to the root"
    except ValueError as error:
        yield f"{what}: its Merkle path does not lead to the root: {error}"
