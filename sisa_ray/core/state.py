"""The state of a run: the fold of its commit log. The log is the truth; nothing here is stored elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from functools import singledispatchmethod

from sisa_ray.core.places import Place, Places
from sisa_ray.core.records import (
    AttemptClosed,
    AttemptOpened,
    BatchCertified,
    BatchClosed,
    BatchPlanned,
    CheckpointLost,
    GenerationPublished,
    PayloadOpened,
    PayloadRewritten,
    PrivacySpent,
    Purged,
    PurgeFailed,
    PurgePlanned,
    Record,
    RequestAccepted,
    RequestExtended,
    RequestRejected,
    RequestsFenced,
    RunCreated,
    SelfChecked,
    ServingClosed,
    ServingOpened,
    SlicesRewritten,
    StageBuilt,
    StageRef,
    SuppressionLifted,
    TableAppended,
    TableIngested,
    Verified,
)
from sisa_ray.core.requests import (
    BEFORE_ALL,
    ClosedBatch,
    EntryMark,
    Evidence,
    OpenBatch,
    PurgeTrouble,
    Request,
    RequestState,
    chains_of,
    heirs_of,
    state_of,
    trouble_after,
)
from sisa_ray.core.snapshot import Slices, Stages

OPENED_FOR = timedelta(hours=1)
"""How long a process may take from announcing a payload to committing the requests in it."""


@dataclass(kw_only=True)
class RunState:
    """Everything a coordinator knows. Changed only by :meth:`apply`."""

    created: RunCreated | None = None
    attempt: str | None = None
    ingested: TableIngested | None = None
    appended: list[TableAppended] = field(default_factory=list)
    """The appends, their slices left out: those are among ``slices``."""
    slices: Slices = field(default_factory=Places)
    stages: Stages = field(default_factory=Places)
    stale: set[Place] = field(default_factory=set)
    """(shard, stage) that was built of slices which a batch has rewritten since."""
    suppressed: dict[str, str] = field(default_factory=dict)
    """Tag of every subject that ever asked to be forgotten -> its request."""
    left_out: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    """Tag that was suppressed for a time -> from which ingest on (from 0), up to which, its records are left out."""
    unknown: set[str] = field(default_factory=set)
    """Suppressed tags that no slice held when they were asked for."""
    requests: dict[str, Request] = field(default_factory=dict)
    """Requests still open."""
    closed_requests: dict[str, Request] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    """Hash of an idempotency key -> its request."""
    payloads: dict[str, list[str]] = field(default_factory=dict)
    """Object that names people -> the requests in it."""
    opened_payloads: dict[str, datetime] = field(default_factory=dict)
    """Payloads that processes outside are about to commit -> since when."""
    batches: dict[str, OpenBatch] = field(default_factory=dict)
    closed_batches: dict[str, ClosedBatch] = field(default_factory=dict)
    uncertified: list[str] = field(default_factory=list)
    """Closed batches whose certificate is not signed yet."""
    generation: int = 0
    published_keys: tuple[str, ...] = ()
    """Keys of the published constituents; empty once a rebuild is known to have given other bits."""
    self_checked: list[dict[str, str]] = field(default_factory=list)
    purge_due: bool = False
    """Objects may lie in storage that the state does not name."""
    purge_shards: set[int] | None = field(default_factory=set)
    """Shards of which they may be; None: they may lie anywhere."""
    purge_trouble: PurgeTrouble | None = None
    last_verified: Verified | None = None
    serving: ServingOpened | None = None
    """Set while replicas may have leases."""
    epsilon_spent: str = "0"
    """What answers in private mode have cost so far, as an exact fraction."""
    entry: EntryMark = BEFORE_ALL
    """The log entry that is being, or was last, applied."""

    @property
    def columns(self) -> str:
        """The serialised Arrow schema of the role columns, in hex."""
        assert self.ingested is not None
        return self.ingested.columns

    @property
    def num_ingests(self) -> int:
        """The first table, and the appends."""
        return len(self.appended) + (self.ingested is not None)

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
        if self.attempt is not None:
            self.purge_due, self.purge_shards = True, None
        self.attempt = record.attempt

    @apply.register
    def _(self, record: AttemptClosed) -> None:
        if self.attempt == record.attempt:
            self.attempt = None

    @apply.register
    def _(self, record: TableIngested) -> None:
        self.ingested = record
        if self.slices:
            self.purge_due, self.purge_shards = True, None
        self.slices.update(((s.shard, s.slice), s) for s in record.slices)

    @apply.register
    def _(self, record: TableAppended) -> None:
        self.appended.append(record.model_copy(update={"slices": ()}))
        self.slices.update(((s.shard, s.slice), s) for s in record.slices)
        self.last_verified = None

    @apply.register
    def _(self, record: SelfChecked) -> None:
        self.self_checked.append(record.platform)

    @apply.register
    def _(self, record: PayloadOpened) -> None:
        self.opened_payloads[record.path] = self.entry.at

    @apply.register
    def _(self, record: RequestAccepted) -> None:
        self.opened_payloads.pop(record.payload, None)
        if record.key is not None and self.keys.setdefault(record.key, record.request) != record.request:
            self.purge_due = True  # two processes accepted one request; the first counts
            return
        self.requests[record.request] = Request(
            request=record.request,
            tags=record.tags,
            payload=record.payload,
            received_at=record.received_at,
            accepted_at=self.entry.at,
            due_at=record.due_at,
            basis=record.basis,
            priority=record.priority,
            key=record.key,
            num_ingests=self.num_ingests,
            seq=self.entry.seq,
        )
        if record.payload:
            self.payloads.setdefault(record.payload, []).append(record.request)
        for tag in record.tags:
            self.suppressed.setdefault(tag, record.request)

    @apply.register
    def _(self, record: RequestsFenced) -> None:
        for request in record.requests:
            self.requests[request].fenced_at = self.entry.at

    @apply.register
    def _(self, record: RequestExtended) -> None:
        request = self.requests[record.request]
        request.due_at, request.is_extended = record.due_at, True

    @apply.register
    def _(self, record: RequestRejected) -> None:
        request = self.requests.pop(record.request)
        request.is_rejected, request.closed_at = True, self.entry.at
        self.closed_requests[request.request] = request
        self.purge_due = True
        held_by_it = [tag for tag in request.tags if self.suppressed.get(tag) == request.request]
        heirs = heirs_of(request, held_by_it, (*self.closed_requests.values(), *self.requests.values()))
        for tag in held_by_it:
            del self.suppressed[tag]
        self.suppressed.update(heirs)
        self._leave_out(request.tags, since=request.num_ingests)

    @apply.register
    def _(self, record: PayloadRewritten) -> None:
        del self.payloads[record.before]
        self.payloads[record.path] = list(record.requests)
        for request in record.requests:
            self.requests[request].payload = record.path
        self.purge_due = True

    @apply.register
    def _(self, record: SuppressionLifted) -> None:
        for tag in record.tags:
            self.suppressed.pop(tag, None)
            self.unknown.discard(tag)
        self._leave_out(record.tags, since=0)

    @apply.register
    def _(self, record: BatchPlanned) -> None:
        # Who was held once and is asked for again was forgotten, and is not unknown.
        self.unknown.update(tag for tag in record.unknown if self.suppressed.get(tag) in record.requests)
        self.batches[record.batch] = OpenBatch(
            plan=record,
            planned_at=self.entry.at,
            before=chains_of(self.stages),
            unknown=tuple(tag for tag in record.unknown if tag in self.unknown),
        )
        for request in record.requests:
            self.requests[request].batch = record.batch

    @apply.register
    def _(self, record: SlicesRewritten) -> None:
        batch = self.batches[record.batch]
        batch.rewritten = True
        first = {s.shard: s.slice for s in sorted(record.slices, key=lambda s: -s.slice)}
        # What was left lying may be of somebody whom no slice holds, anywhere.
        self._may_hold_strays(None if batch.plan.unknown else first)
        for shard, slice_ in first.items():
            self.stale.update((shard, stage) for stage in self.stages.of(shard) if stage >= slice_)
        self.slices.update(((s.shard, s.slice), s) for s in record.slices)
        self.purge_due = True

    @apply.register
    def _(self, record: StageBuilt) -> None:
        ref = record.ref
        before = self.stages.get((ref.shard, ref.stage))
        self.purge_due = self.purge_due or before is not None
        self._may_hold_strays([ref.shard])
        self.stages[ref.shard, ref.stage] = ref
        self.stale.discard((ref.shard, ref.stage))
        if before is not None and before.key == ref.key and before.file_digest != ref.file_digest:
            self._drop_descendants(ref)
        for batch in self.batches.values():
            if batch.rewritten and batch.touches(ref):
                batch.stages_rebuilt += 1
                batch.record_visits += ref.record_visits

    @apply.register
    def _(self, record: CheckpointLost) -> None:
        ref = self.stages[record.shard, record.stage]
        self.stages[record.shard, record.stage] = ref.model_copy(update={"path": None})
        self._may_hold_strays([record.shard])
        self.purge_due = True

    @apply.register
    def _(self, record: GenerationPublished) -> None:
        self.generation, self.published_keys = record.generation, record.keys
        self.purge_due = True
        self.last_verified = None  # what was verified was another generation
        for batch in self.batches.values():
            if batch.rewritten:
                batch.published_at = self.entry.at

    @apply.register
    def _(self, record: PurgePlanned) -> None:
        self.purge_due = True
        expired = self.entry.at - OPENED_FOR
        for path in [path for path, since in self.opened_payloads.items() if since < expired]:
            del self.opened_payloads[path]
        for batch in self.batches.values():
            batch.purging = batch.rewritten

    @apply.register
    def _(self, record: Purged) -> None:
        self.purge_due, self.purge_shards, self.purge_trouble = False, set(), None
        for payload in [path for path in self.payloads if not self.needed_in(path)]:
            del self.payloads[payload]
        for batch in self.batches.values():
            batch.verified_at = self.entry.at
            batch.objects_purged += record.num_objects
            batch.bytes_purged += record.num_bytes

    @apply.register
    def _(self, record: PurgeFailed) -> None:
        self.purge_trouble = trouble_after(self.purge_trouble, record, at=self.entry.at)

    @apply.register
    def _(self, record: BatchClosed) -> None:
        batch = self.batches.pop(record.batch)
        self.uncertified.append(record.batch)
        for name in batch.plan.requests:
            request = self.requests.pop(name)
            request.closed_at = self.entry.at
            self.closed_requests[name] = request
        self.closed_batches[record.batch] = ClosedBatch(
            plan=batch.plan,
            closed=record,
            planned_at=batch.planned_at,
            closed_at=self.entry.at,
            unknown=batch.unknown,
            evidence=Evidence(
                before=batch.before,
                after=chains_of(self.stages, without=self.stale),
                published_at=batch.published_at,
                verified_at=batch.verified_at,
                generation=self.generation,
                entry=self.entry,
            ),
        )

    @apply.register
    def _(self, record: BatchCertified) -> None:
        self.uncertified.remove(record.batch)
        batch = self.closed_batches[record.batch]
        batch.certificate = record.path
        batch.certificate_digest = record.digest
        batch.evidence = None  # the certificate has it

    @apply.register
    def _(self, record: ServingOpened | ServingClosed) -> None:
        self.serving = record if isinstance(record, ServingOpened) else None

    @apply.register
    def _(self, record: PrivacySpent) -> None:
        spent = Fraction(self.epsilon_spent) + record.num_answers * Fraction(record.epsilon)
        self.epsilon_spent = str(spent)

    @apply.register
    def _(self, record: Verified) -> None:
        self.last_verified = record

    def absent_from(self, ingest: int) -> frozenset[str]:
        """Tags that an ingest (from 0: the first table, then the appends) is without, whatever its source says."""
        left_out = (t for t, spans in self.left_out.items() if any(a <= ingest < b for a, b in spans))
        return frozenset((*self.suppressed, *left_out))

    def find_request(self, name: str) -> Request | None:
        """A request, open or closed."""
        return self.requests.get(name) or self.closed_requests.get(name)

    def request_state(self, request: Request) -> RequestState:
        """Where a request is on its way."""
        batch = request.batch or ""
        return state_of(request, self.batches.get(batch), self.closed_batches.get(batch))

    def needed_in(self, payload: str) -> tuple[str, ...]:
        """Requests of an object that names people whose slices are not rewritten yet."""
        waiting = []
        for name in self.payloads[payload]:
            request = self.requests.get(name)
            batch = self.batches.get(request.batch or "") if request is not None else None
            if request is not None and (batch is None or not batch.rewritten):
                waiting.append(name)
        return tuple(waiting)

    def _leave_out(self, tags: Iterable[str], *, since: int) -> None:
        """Remember that the ingests from ``since`` up to now are without people who are suppressed no longer."""
        if since < self.num_ingests:
            for tag in tags:
                self.left_out.setdefault(tag, []).append((since, self.num_ingests))

    def _drop_descendants(self, rebuilt: StageRef) -> None:
        """Forget the stages that descend from other bytes than those of ``rebuilt`` (contract clause 12)."""
        for stage in [stage for stage in self.stages.of(rebuilt.shard) if stage > rebuilt.stage]:
            del self.stages[rebuilt.shard, stage]
        # The keys stay the same, but the ensemble that is rebuilt from here is another generation.
        self.published_keys = ()

    def _may_hold_strays(self, shards: Iterable[int] | None) -> None:
        if shards is None or self.purge_shards is None:
            self.purge_shards = None
        else:
            self.purge_shards.update(shards)


def fold(records: Iterable[Record]) -> RunState:
    """State after all ``records``, in order."""
    state = RunState()
    for record in records:
        state.apply(record)
    return state
