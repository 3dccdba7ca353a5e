"""What commands return: plain figures, the same for Python and ``--json``."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, computed_field

from sisa_ray.core.clocks import Basis
from sisa_ray.core.records import Priority
from sisa_ray.core.requests import RequestState

Outcome = Literal["forgotten", "unknown", "already forgotten"]


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True)


class ShardSizes(_Result):
    """Records of one shard, by slice 1..R."""

    shard: int
    slices: tuple[int, ...]

    @property
    def num_records(self) -> int:
        """Records of all slices."""
        return sum(self.slices)


class IngestResult(_Result):
    """What went into the run. ``already``: the table had been ingested before, and nothing was done."""

    address: str
    already: bool
    num_rows: int
    num_refused: int
    num_records: int
    shards: tuple[ShardSizes, ...]


class AppendResult(_Result):
    """Further records of a run. ``num_slices``: those that each shard has now."""

    address: str
    num_rows: int
    num_refused: int
    num_slices: int
    num_records: int
    generation: int
    stages_built: int
    record_visits: int
    seconds: float
    shards: tuple[ShardSizes, ...]


class TrainResult(_Result):
    """A published ensemble. Figures of work are those of this call: zero where everything was built before."""

    address: str
    generation: int
    num_shards: int
    num_slices: int
    num_records: int
    stages_built: int
    record_visits: int
    seconds: float
    metric: Literal["accuracy", "rmse"] | None = None
    ensemble: float | None = None
    constituents: tuple[float | None, ...] = ()
    """The metric of every constituent on the test table; None for a shard without records."""
    warnings: tuple[str, ...] = ()


class UnlearnResult(_Result):
    """One request. ``rows``: what became of each subject of the caller's input, by row.

    Figures of work are those of its batch; ``certificate`` is the path of the batch's certificate in the run. Both
    names are None where everybody had been forgotten before.
    """

    address: str
    request: str | None
    certificate: str | None
    generation: int
    num_subjects: int
    num_forgotten: int
    num_unknown: int
    num_already_forgotten: int
    num_records: int
    slices_rewritten: int
    shards_rebuilt: tuple[int, ...]
    stages_rebuilt: int
    record_visits: int
    predicted_record_visits: int
    full_retrain_record_visits: int
    objects_purged: int
    seconds: float
    rows: tuple[UnlearnRow, ...]


class UnlearnRow(_Result):
    """The outcome for one subject, named by its row in the input (from 0) and its tag."""

    row: int
    tag: str
    outcome: Outcome
    shard: int | None = None
    slice: int | None = None


class VerifyResult(_Result):
    """What a re-execution showed. ``bit_identical`` is None where the platforms cannot be compared."""

    address: str
    outcome: Literal["bit-identical", "different", "not comparable"]
    source: Literal["source tables", "slices"]
    shards: tuple[int, ...]
    num_slices: int
    num_checkpoints: int
    num_predictions: int
    first_difference: str | None = None
    seconds: float

    @computed_field  # type: ignore[prop-decorator]
    @property
    def bit_identical(self) -> bool | None:
        """True or False, or None where not comparable."""
        return None if self.outcome == "not comparable" else self.outcome == "bit-identical"


class PredictResult(_Result):
    """Where predictions were written, and their quality where the table has labels."""

    address: str
    out: str
    generation: int
    num_rows: int
    num_voters: int
    rule: str
    mean_agreement: float | None
    metric: Literal["accuracy", "rmse"] | None = None
    value: float | None = None
    warnings: tuple[str, ...] = ()


class BaselineResult(_Result):
    """One model trained without shards or slices, for comparison."""

    address: str
    kind: Literal["full", "one_shard"]
    num_records: int
    record_visits: int
    seconds: float
    metric: Literal["accuracy", "rmse"] | None = None
    value: float | None = None


class RequestRow(_Result):
    """One request. ``seconds_left`` is None once it is closed, and negative where it is late."""

    request: str
    state: RequestState
    num_subjects: int
    num_unknown: int
    basis: Basis
    priority: Priority
    received_at: datetime
    accepted_at: datetime
    fenced_at: datetime | None
    due_at: datetime
    closed_at: datetime | None
    is_extended: bool
    was_overdue: bool
    seconds_left: float | None
    batch: str | None
    certificate: str | None


class RequestsResult(_Result):
    """The requests of a run: the open ones by due date, then the closed ones, the latest first."""

    address: str
    now: datetime
    rows: tuple[RequestRow, ...]
    purge_trouble: str | None


class LiftResult(_Result):
    """Suppressions lifted."""

    address: str
    num_lifted: int


class ReplayResult(_Result):
    """Suppressions that a restored run did not know, and that are carried out again."""

    address: str
    num_replayed: int
    generation: int


class CertificateRow(_Result):
    """A certified batch. ``path`` is within the run."""

    batch: str
    path: str
    digest: str
    num_requests: int
    closed_at: datetime
    shards: tuple[int, ...]


class CertificatesResult(_Result):
    """The certified batches of a run, the latest first."""

    address: str
    rows: tuple[CertificateRow, ...]


class HistoryLine(_Result):
    """One record of a log, in short."""

    seq: int
    at: datetime
    type: str
    facts: dict[str, str]


class ReplayedShard(_Result):
    """A shard that a certificate is about. ``superseded_by``: the batch that changed it since."""

    shard: int
    is_superseded: bool
    superseded_by: str | None


class ReplayVerification(_Result):
    """What training the certified shards once more showed; ``superseded`` where all were changed since."""

    address: str
    batch: str
    shards: tuple[ReplayedShard, ...]
    outcome: Literal["bit-identical", "different", "not comparable", "superseded"]
    first_difference: str | None
    source: Literal["source tables", "slices"] | None


class StageStatus(_Result):
    """A stage as it is now: ``built`` (clean), ``stale`` (its slices changed), ``missing``."""

    shard: int
    stage: int
    status: Literal["built", "stale", "missing"]
    kept: bool


class StatusResult(_Result):
    """The run at a glance."""

    address: str
    generation: int
    num_records: int
    num_suppressed: int
    open_requests: int
    purge_due: bool
    purge_trouble: str | None
    device: str
    num_log_entries: int
    shards: tuple[ShardSizes, ...]
    stages: tuple[StageStatus, ...]
    last_verified: str | None
    complete: bool
    next_step: str | None


UnlearnResult.model_rebuild()
