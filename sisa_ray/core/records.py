"""Typed records of the commit log. Frozen; people appear only as tags."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter

from sisa_ray.core.clocks import Basis, ExtensionReason
from sisa_ray.core.protection import BucketProtection

LOG_VERSION = 2
"""Of the form of log entries and records."""

Priority = Literal["normal", "urgent"]
RejectionReason = Literal["identity-not-verified", "legal-obligation", "withdrawn"]
LiftReason = Literal["consent-renewed", "entered-in-error"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SliceRef(_Frozen):
    """One slice of one shard. An empty slice has no object, but a content digest all the same."""

    shard: int
    slice: int
    path: str | None
    num_records: int
    num_subjects: int
    content_digest: str
    file_digest: str | None
    size_bytes: int


class PartRef(_Frozen):
    """One object of a checkpoint that is stored in parts."""

    path: str
    file_digest: str
    size_bytes: int


class StageRef(_Frozen):
    """One built stage. ``path`` is None where its checkpoint is not kept (its digests are).

    Where workers share the model out (FSDP), each stores its own part: ``path`` then is the index, which has the
    digests of ``parts``, so that its own digest stands for all of them.
    """

    shard: int
    stage: int
    key: str
    path: str | None
    file_digest: str
    size_bytes: int
    num_steps: int
    record_visits: int
    seconds: float
    platform: dict[str, str]
    parts: tuple[PartRef, ...] = ()

    @property
    def objects(self) -> dict[str, int]:
        """Paths of everything that is stored for the stage, and sizes in bytes."""
        stored = {} if self.path is None else {self.path: self.size_bytes}
        return stored | {part.path: part.size_bytes for part in self.parts}

    @property
    def total_bytes(self) -> int:
        """Size of the checkpoint, its parts included."""
        return self.size_bytes + sum(part.size_bytes for part in self.parts)


class RunCreated(_Frozen):
    """The first record: which spec and which secret the run is about, and what its bucket does with the deleted."""

    type: Literal["run_created"] = "run_created"
    spec_digest: str
    secret_id: str
    protection: BucketProtection


class AttemptOpened(_Frozen):
    """A process takes the run: attempts opened before it are superseded, and their writers fenced."""

    type: Literal["attempt_opened"] = "attempt_opened"
    attempt: str
    command: str


class AttemptClosed(_Frozen):
    """A process is done with the run and leaves nothing behind that the log does not name."""

    type: Literal["attempt_closed"] = "attempt_closed"
    attempt: str


class TableIngested(_Frozen):
    """Every slice of every shard, and the Arrow schema of the role columns (serialised, in hex)."""

    type: Literal["table_ingested"] = "table_ingested"
    attempt: str
    columns: str
    slices: tuple[SliceRef, ...]
    num_rows: int
    num_refused: int


class TableAppended(_Frozen):
    """Further records: new slices of every shard, behind those that are there. ``source`` is their table."""

    type: Literal["table_appended"] = "table_appended"
    attempt: str
    source: str
    num_slices: int
    slices: tuple[SliceRef, ...]
    num_rows: int
    num_refused: int


class SelfChecked(_Frozen):
    """The recipe was shown to keep no state of its own, on this platform."""

    type: Literal["self_checked"] = "self_checked"
    platform: dict[str, str]


class PayloadOpened(_Frozen):
    """A process that does not hold the run is about to write this payload and commit the requests in it."""

    type: Literal["payload_opened"] = "payload_opened"
    path: str


class RequestAccepted(_Frozen):
    """Subjects to forget, durable from here on: the payload names them, the log has their tags.

    ``key`` is the hash of the caller's idempotency key. An empty ``payload`` means that only tags are known:
    a suppression replayed from the mirror.
    """

    type: Literal["request_accepted"] = "request_accepted"
    request: str
    tags: tuple[str, ...]
    payload: str
    received_at: AwareDatetime
    due_at: AwareDatetime
    basis: Basis
    priority: Priority
    key: str | None


class RequestsFenced(_Frozen):
    """From here on no answer comes from a model that knew the subjects of these requests."""

    type: Literal["requests_fenced"] = "requests_fenced"
    requests: tuple[str, ...]


class RequestExtended(_Frozen):
    """The legal clock of a request was extended, for a reason that the law knows."""

    type: Literal["request_extended"] = "request_extended"
    request: str
    due_at: AwareDatetime
    reason: ExtensionReason


class RequestRejected(_Frozen):
    """A request that is not carried out; whom only it named is suppressed no longer."""

    type: Literal["request_rejected"] = "request_rejected"
    request: str
    reason: RejectionReason


class PayloadRewritten(_Frozen):
    """An object that names people, written again for those requests alone that still need it."""

    type: Literal["payload_rewritten"] = "payload_rewritten"
    before: str
    path: str
    requests: tuple[str, ...]


class SuppressionLifted(_Frozen):
    """Subjects who may be learned from again. ``signature`` (hex) is by the key that signs certificates."""

    type: Literal["suppression_lifted"] = "suppression_lifted"
    tags: tuple[str, ...]
    reason: LiftReason
    key_id: str
    signature: str


class BatchPlanned(_Frozen):
    """What a batch will touch. ``unknown`` are tags that no slice holds; they are suppressed all the same."""

    type: Literal["batch_planned"] = "batch_planned"
    batch: str
    requests: tuple[str, ...]
    unknown: tuple[str, ...]
    num_records: int
    affected: tuple[tuple[int, int], ...]


class SlicesRewritten(_Frozen):
    """The affected slices of a batch without its subjects; the old ones are no longer named."""

    type: Literal["slices_rewritten"] = "slices_rewritten"
    batch: str
    slices: tuple[SliceRef, ...]


class StageBuilt(_Frozen):
    """A stage was trained; its checkpoint, where it is kept, is durable."""

    type: Literal["stage_built"] = "stage_built"
    ref: StageRef


class CheckpointLost(_Frozen):
    """A checkpoint that is gone, fails its digest, or is no longer kept; it is rebuilt when needed."""

    type: Literal["checkpoint_lost"] = "checkpoint_lost"
    shard: int
    stage: int
    reason: Literal["missing", "digest", "retention"]


class GenerationPublished(_Frozen):
    """A complete set of constituents: the key of the last stage of each shard."""

    type: Literal["generation_published"] = "generation_published"
    generation: int
    keys: tuple[str, ...]


class PurgePlanned(_Frozen):
    """What the state does not name is about to be deleted."""

    type: Literal["purge_planned"] = "purge_planned"
    attempt: str
    num_objects: int


class Purged(_Frozen):
    """Deletion done and absence verified."""

    type: Literal["purged"] = "purged"
    attempt: str
    num_objects: int
    num_bytes: int


class PurgeFailed(_Frozen):
    """Absence could not be verified. The batch stays open, and the deletion is tried again at ``retry_at``."""

    type: Literal["purge_failed"] = "purge_failed"
    problem: str
    retry_at: AwareDatetime


class BatchClosed(_Frozen):
    """A batch is done: rebuilt, published, purged, verified. Its requests are closed."""

    type: Literal["batch_closed"] = "batch_closed"
    batch: str
    stages_rebuilt: int
    record_visits: int
    full_retrain_record_visits: int
    objects_purged: int
    bytes_purged: int


class BatchCertified(_Frozen):
    """The signed certificate of a closed batch."""

    type: Literal["batch_certified"] = "batch_certified"
    batch: str
    path: str
    digest: str


class ServingOpened(_Frozen):
    """Replicas may answer from the run's models from here on, each for ``lease_s`` after it last renewed its lease."""

    type: Literal["serving_opened"] = "serving_opened"
    lease_s: float


class ServingClosed(_Frozen):
    """No replica has a lease any more."""

    type: Literal["serving_closed"] = "serving_closed"


class PrivacySpent(_Frozen):
    """So many answers in private mode, ``epsilon`` (an exact fraction) each, may be given; unused ones are lost."""

    type: Literal["privacy_spent"] = "privacy_spent"
    num_answers: int
    epsilon: str


class Verified(_Frozen):
    """What a comparison with training from scratch found."""

    type: Literal["verified"] = "verified"
    shards: tuple[int, ...]
    source: Literal["source tables", "slices"]
    outcome: Literal["bit-identical", "different", "not comparable"]


Record = Annotated[
    RunCreated
    | AttemptOpened
    | AttemptClosed
    | TableIngested
    | TableAppended
    | SelfChecked
    | PayloadOpened
    | RequestAccepted
    | RequestsFenced
    | RequestExtended
    | RequestRejected
    | PayloadRewritten
    | SuppressionLifted
    | BatchPlanned
    | SlicesRewritten
    | StageBuilt
    | CheckpointLost
    | GenerationPublished
    | PurgePlanned
    | Purged
    | PurgeFailed
    | BatchClosed
    | BatchCertified
    | ServingOpened
    | ServingClosed
    | PrivacySpent
    | Verified,
    Field(discriminator="type"),
]

FROM_OUTSIDE = (PayloadOpened, RequestAccepted)
"""What a process may commit that has not taken the run."""

_ADAPTER: TypeAdapter[Record] = TypeAdapter(Record)


def dump_record(record: Record) -> dict[str, Any]:
    """Plain JSON data of a record."""
    return record.model_dump(mode="json")


def load_record(data: dict[str, Any]) -> Record:
    """The typed record; pydantic's ValidationError for an unknown type or field."""
    return _ADAPTER.validate_python(data)
