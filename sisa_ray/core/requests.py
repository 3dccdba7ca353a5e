"""Requests and batches as the state has them, and the name of the state that each request is in."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Literal

from sisa_ray.core.certificate import StageDigest, shard_leaf
from sisa_ray.core.clocks import Basis
from sisa_ray.core.places import Place, Places
from sisa_ray.core.records import BatchClosed, BatchPlanned, Priority, PurgeFailed, StageRef

RequestState = Literal[
    "accepted",
    "fenced",
    "batched",
    "rebuilding",
    "published",
    "purging",
    "certified",
    "unknown",
    "rejected",
]
"""``unknown``: certified, though the run held nobody whom it named. The others: see design.md."""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """What is built of one shard, in the order of stages. States share those that have not changed between them."""

    stages: tuple[StageRef, ...]

    @cached_property
    def digests(self) -> tuple[StageDigest, ...]:
        """What a certificate says of it."""
        return tuple(StageDigest(stage=s.stage, key=s.key, file_digest=s.file_digest) for s in self.stages)

    @cached_property
    def leaf(self) -> bytes:
        """Its leaf in a certificate's tree; there is none of a chain of nothing, which tells no shard."""
        return shard_leaf(self.stages[0].shard, self.digests)


Chains = dict[int, Chain]
"""Every stage that was built, by shard; shards of which nothing is built may be missing."""


def chains_of(stages: Places[StageRef], *, without: Collection[Place] = ()) -> Chains:
    """What is built of every shard; what has not changed since the last time is the same object."""
    chains = {shard: _chain(stages, shard) for shard in stages.shards}
    for shard in {shard for shard, _ in without}:
        left = tuple(ref for ref in _chain(stages, shard).stages if (shard, ref.stage) not in without)
        chains[shard] = Chain(stages=left)
    return chains


def _chain(stages: Places[StageRef], shard: int) -> Chain:
    derived = stages.derived(shard)
    if "chain" not in derived:
        derived["chain"] = Chain(stages=tuple(ref for _, ref in sorted(stages.of(shard).items())))
    chain: Chain = derived["chain"]
    return chain


def refs_of(chains: Chains) -> tuple[StageRef, ...]:
    """Every stage of all shards."""
    return tuple(ref for chain in chains.values() for ref in chain.stages)


@dataclass(kw_only=True)
class Request:
    """An accepted request. People are its tags; the payload names them until their slices are rewritten."""

    request: str
    tags: tuple[str, ...]
    payload: str
    received_at: datetime
    accepted_at: datetime
    due_at: datetime
    basis: Basis
    priority: Priority
    key: str | None = None
    """The hash of its idempotency key."""
    seq: int = -1
    """The log entry that accepted it."""
    num_ingests: int = 0
    """Ingests done before it was accepted; later ones have refused its people."""
    is_extended: bool = False
    fenced_at: datetime | None = None
    batch: str | None = None
    closed_at: datetime | None = None
    is_rejected: bool = False

    @property
    def is_overdue(self) -> bool:
        """Whether it was late before it was accepted."""
        return self.due_at < self.accepted_at


@dataclass(kw_only=True)
class OpenBatch:
    """A planned batch that is not closed yet, with what its rebuild has cost so far."""

    plan: BatchPlanned
    planned_at: datetime
    before: Chains
    """Every stage as it was built when the batch was planned."""
    unknown: tuple[str, ...]
    """Tags whom the run did not hold, and had never held."""
    rewritten: bool = False
    published_at: datetime | None = None
    purging: bool = False
    verified_at: datetime | None = None
    """When the absence of what was purged was verified."""
    stages_rebuilt: int = 0
    record_visits: int = 0
    objects_purged: int = 0
    bytes_purged: int = 0

    def touches(self, ref: StageRef) -> bool:
        """Whether a stage is of a shard that held people of this batch."""
        return any(shard == ref.shard for shard, _ in self.plan.affected)


@dataclass(frozen=True, kw_only=True)
class EntryMark:
    """The log entry that a state was last changed by. ``digest`` is the entry's hash."""

    seq: int
    digest: str
    at: datetime


BEFORE_ALL = EntryMark(seq=-1, digest="", at=datetime.fromtimestamp(0, UTC))
"""Of a state that no entry has changed."""


@dataclass(kw_only=True)
class Evidence:
    """What a certificate is made of; kept until it is signed."""

    before: Chains
    after: Chains
    published_at: datetime | None
    verified_at: datetime | None
    generation: int
    entry: EntryMark
    """The log entry that closed the batch."""


@dataclass(kw_only=True)
class ClosedBatch:
    """What a batch touched, what it cost, and its certificate once that is signed."""

    plan: BatchPlanned
    closed: BatchClosed
    planned_at: datetime
    closed_at: datetime
    unknown: tuple[str, ...]
    evidence: Evidence | None
    certificate: str | None = None
    certificate_digest: str | None = None


@dataclass(kw_only=True)
class PurgeTrouble:
    """A deletion that could not be verified; it is tried again, ever more seldom."""

    problem: str
    num_tries: int
    since: datetime
    retry_at: datetime


def trouble_after(before: PurgeTrouble | None, record: PurgeFailed, *, at: datetime) -> PurgeTrouble:
    """The trouble with a deletion that failed at ``at``, and maybe before."""
    return PurgeTrouble(
        problem=record.problem,
        num_tries=1 if before is None else before.num_tries + 1,
        since=at if before is None else before.since,
        retry_at=record.retry_at,
    )


def state_of(request: Request, batch: OpenBatch | None, closed: ClosedBatch | None) -> RequestState:
    """Where a request is on its way; ``batch`` or ``closed`` is its batch, if it has one."""
    if request.is_rejected:
        return "rejected"
    if closed is not None:
        if closed.certificate is None:
            return "purging"
        return "unknown" if set(closed.unknown).issuperset(request.tags) else "certified"
    if batch is None:
        return "accepted" if request.fenced_at is None else "fenced"
    if batch.purging:
        return "purging"
    if batch.published_at is not None:
        return "published"
    return "rebuilding" if batch.rewritten else "batched"


def heirs_of(rejected: Request, tags: Collection[str], others: Iterable[Request]) -> dict[str, str]:
    """Who else names the people that only a rejected request suppressed: tag -> request, for those who are named."""
    alone, heirs = set(tags), {}
    for other in others:
        # Earlier ones that named whom only this one has now were lifted.
        if alone and not other.is_rejected and other.seq >= rejected.seq:
            taken = alone.intersection(other.tags)
            heirs.update(dict.fromkeys(taken, other.request))
            alone -= taken
    return heirs
