"""The state of a run: the fold of its commit log. The log is the truth; nothing here is stored elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import singledispatchmethod

from sisa_ray.core.records import (
    AttemptClosed,
    AttemptOpened,
    BatchClosed,
    BatchPlanned,
    CheckpointLost,
    GenerationPublished,
    Purged,
    PurgePlanned,
    Record,
    RequestAccepted,
    RunCreated,
    SelfChecked,
    SliceRef,
    SlicesRewritten,
    StageBuilt,
    StageRef,
    TableIngested,
    Verified,
)

Place = tuple[int, int]
"""(shard, slice) or (shard, stage)."""


@dataclass(kw_only=True)
class OpenRequest:
    """An accepted request that is not closed yet."""

    request: str
    tags: tuple[str, ...]
    payload: str
    batch: str | None = None


@dataclass(kw_only=True)
class OpenBatch:
    """A planned batch that is not closed yet, with what its rebuild has cost so far."""

    plan: BatchPlanned
    rewritten: bool = False
    stages_rebuilt: int = 0
    record_visits: int = 0
    objects_purged: int = 0


@dataclass(frozen=True, kw_only=True)
class ClosedBatch:
    """What a batch touched and what it cost."""

    plan: BatchPlanned
    closed: BatchClosed


@dataclass(kw_only=True)
class RunState:
    """Everything a coordinator knows. Changed only by :meth:`apply`."""

    created: RunCreated | None = None
    attempt: str | None = None
    ingested: TableIngested | None = None
    slices: dict[Place, SliceRef] = field(default_factory=dict)
    stages: dict[Place, StageRef] = field(default_factory=dict)
    suppressed: dict[str, str] = field(default_factory=dict)
    """Tag of every subject that ever asked to be forgotten -> its request."""
    unknown: set[str] = field(default_factory=set)
    """Suppressed tags that no slice held when they were asked for."""
    requests: dict[str, OpenRequest] = field(default_factory=dict)
    batches: dict[str, OpenBatch] = field(default_factory=dict)
    closed_batches: dict[str, ClosedBatch] = field(default_factory=dict)
    generation: int = 0
    published_keys: tuple[str, ...] = ()
    """Keys of the published constituents; empty once a rebuild is known to have given other bits."""
    self_checked: list[dict[str, str]] = field(default_factory=list)
    purge_due: bool = False
    """Objects may lie in storage that the state does not name."""
    last_verified: Verified | None = None

    @property
    def columns(self) -> str:
        """The serialised Arrow schema of the role columns, in hex."""
        assert self.ingested is not None
        return self.ingested.columns

    @singledispatchmethod
    def apply(self, record: Record) -> None:
        """Apply one committed record."""
        raise AssertionError(f"no rule for {type(record).__name__}")

    @apply.register
    def _(self, record: RunCreated) -> None:
        self.created = record

    @apply.register
    def _(self, record: AttemptOpened) -> None:
        # A predecessor that did not close may have left objects behind.
        self.purge_due = self.purge_due or self.attempt is not None
        self.attempt = record.attempt

    @apply.register
    def _(self, record: AttemptClosed) -> None:
        if self.attempt == record.attempt:
            self.attempt = None

    @apply.register
    def _(self, record: TableIngested) -> None:
        self.ingested = record
        self.purge_due = self.purge_due or bool(self.slices)
        self._replace_slices(record.slices)

    @apply.register
    def _(self, record: SelfChecked) -> None:
        self.self_checked.append(record.platform)

    @apply.register
    def _(self, record: RequestAccepted) -> None:
        self.requests[record.request] = OpenRequest(
            request=record.request, tags=record.tags, payload=record.payload
        )
        for tag in record.tags:
            self.suppressed.setdefault(tag, record.request)

    @apply.register
    def _(self, record: BatchPlanned) -> None:
        self.batches[record.batch] = OpenBatch(plan=record)
        # Who was held once and is asked for again was forgotten, and is not unknown.
        self.unknown.update(tag for tag in record.unknown if self.suppressed.get(tag) in record.requests)
        for request in record.requests:
            self.requests[request].batch = record.batch

    @apply.register
    def _(self, record: SlicesRewritten) -> None:
        self.batches[record.batch].rewritten = True
        self._replace_slices(record.slices)
        self.purge_due = True

    @apply.register
    def _(self, record: StageBuilt) -> None:
        ref = record.ref
        before = self.stages.get((ref.shard, ref.stage))
        self.purge_due = self.purge_due or before is not None
        self.stages[ref.shard, ref.stage] = ref
        if before is not None and before.key == ref.key and before.file_digest != ref.file_digest:
            self._drop_descendants(ref)
        for batch in self.batches.values():
            if batch.rewritten:
                batch.stages_rebuilt += 1
                batch.record_visits += ref.record_visits

    @apply.register
    def _(self, record: CheckpointLost) -> None:
        ref = self.stages[record.shard, record.stage]
        self.stages[record.shard, record.stage] = ref.model_copy(update={"path": None})
        self.purge_due = True

    @apply.register
    def _(self, record: GenerationPublished) -> None:
        self.generation = record.generation
        self.published_keys = record.keys
        self.purge_due = True
        self.last_verified = None  # what was verified was another generation

    @apply.register
    def _(self, record: PurgePlanned) -> None:
        self.purge_due = True

    @apply.register
    def _(self, record: Purged) -> None:
        self.purge_due = False
        for batch in self.batches.values():
            batch.objects_purged += record.num_objects

    @apply.register
    def _(self, record: BatchClosed) -> None:
        batch = self.batches.pop(record.batch)
        for request in batch.plan.requests:
            del self.requests[request]
        self.closed_batches[record.batch] = ClosedBatch(plan=batch.plan, closed=record)

    @apply.register
    def _(self, record: Verified) -> None:
        self.last_verified = record

    def _drop_descendants(self, rebuilt: StageRef) -> None:
        """Forget the stages that descend from other bytes than those of ``rebuilt`` (contract clause 12)."""
        later = [place for place in self.stages if place[0] == rebuilt.shard and place[1] > rebuilt.stage]
        for place in later:
            del self.stages[place]
        # The keys stay the same, but the ensemble that is rebuilt from here is another generation.
        self.published_keys = ()

    def _replace_slices(self, slices: Iterable[SliceRef]) -> None:
        self.slices.update({(s.shard, s.slice): s for s in slices})


def fold(records: Iterable[Record]) -> RunState:
    """State after all ``records``, in order."""
    state = RunState()
    for record in records:
        state.apply(record)
    return state
