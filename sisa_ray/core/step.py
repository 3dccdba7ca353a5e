"""One step of the coordinator: state in, decision out. Nothing here touches storage, Ray or a clock."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sisa_ray.core.batching import starts_at
from sisa_ray.core.identity import Spec
from sisa_ray.core.planner import Lineage, ShardPlan, missing_stages, predicted_rebuild_s, unkept_shards
from sisa_ray.core.requests import Request
from sisa_ray.core.state import OPENED_FOR, RunState

_JOIN_S = 60.0
"""Seconds for which a batch can be joined, however fast the run is rebuilt."""


@dataclass(frozen=True, kw_only=True)
class FenceRequests:
    """See to it that nobody is answered from a model that knew the subjects of these requests."""

    requests: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PlanBatch:
    """Find out what the waiting requests touch."""

    requests: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RewriteSlices:
    """Write the affected slices without the subjects of the batch."""

    batch: str


@dataclass(frozen=True, kw_only=True)
class BuildStages:
    """Train what is missing."""

    shards: tuple[ShardPlan, ...]


@dataclass(frozen=True, kw_only=True)
class Publish:
    """Publish the constituents as the next generation."""

    generation: int
    keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RewritePayload:
    """Write an object that names people again, for those requests alone that still need it."""

    path: str
    requests: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Purge:
    """Delete what nothing names any more, and verify that it is gone."""


@dataclass(frozen=True, kw_only=True)
class CloseBatch:
    """Everything a batch promised is done."""

    batch: str


@dataclass(frozen=True, kw_only=True)
class Certify:
    """Sign the certificate of a closed batch."""

    batch: str


Decision = (
    FenceRequests
    | PlanBatch
    | RewriteSlices
    | BuildStages
    | Publish
    | RewritePayload
    | Purge
    | CloseBatch
    | Certify
)


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What a coordinator knows beside the state: the time, and how many shards can train side by side."""

    now: datetime
    num_slots: int = 1


def step(spec: Spec, state: RunState, *, train: bool, moment: Moment | None = None) -> Decision | None:
    """What to do next, or None when there is nothing to do now.

    Args:
        spec: the run's.
        state: the fold of its log.
        train: build up to a complete ensemble; without it, only if a generation was published.
        moment: lets the run's batching policy and the back-off of a purge decide when; None waits for nothing.
    """
    joined = join(spec, state, moment=moment)
    if joined is not None:
        return joined
    if state.ingested is not None and (train or state.generation):
        lineage = Lineage(spec, state)
        shards = missing_stages(spec, state, lineage)
        if shards:
            return BuildStages(shards=shards)
        keys = tuple(lineage.keys(k)[-1] for k in range(spec.config.sisa.num_shards))
        if keys != state.published_keys:
            return Publish(generation=state.generation + 1, keys=keys)
    return _settle(spec, state, moment)


def join(spec: Spec, state: RunState, *, moment: Moment | None) -> Decision | None:
    """The part of :func:`step` that may be done while stages are being built: requests that join."""
    # Batches planned before a crash come first, so that a new plan counts what is left after them.
    for batch in state.batches.values():
        if not batch.rewritten:
            return RewriteSlices(batch=batch.plan.batch)
    unfenced = to_be_fenced(spec, state)
    if unfenced:
        return FenceRequests(requests=tuple(r.request for r in unfenced))
    waiting = _waiting(state)
    if waiting and _is_due(spec, state, waiting, moment) and not _must_finish(spec, state, moment):
        return PlanBatch(requests=tuple(r.request for r in waiting))
    return None


def to_be_fenced(spec: Spec, state: RunState) -> list[Request]:
    """Open requests whose people a replica may still know: where the run keeps answering until it is rebuilt, those
    that are rebuilt."""
    waiting = [r for r in state.requests.values() if r.fenced_at is None]
    if spec.config.serving.fence == "keep-until-rebuilt":
        published = {name for name, batch in state.batches.items() if batch.published_at is not None}
        return [r for r in waiting if r.batch in published]
    return waiting


def _must_finish(spec: Spec, state: RunState, moment: Moment | None) -> bool:
    """Whether those who joined have delayed a batch for so long that it has to be published first."""
    since = [b.planned_at for b in state.batches.values() if b.published_at is None]
    if moment is None or not since or not state.generation:
        return False
    num_shards = spec.config.sisa.num_shards
    whole_s = predicted_rebuild_s(spec, state, num_subjects=num_shards, num_slots=moment.num_slots)
    return (moment.now - min(since)).total_seconds() > max(_JOIN_S, 2 * whole_s)


def wakes_at(spec: Spec, state: RunState, moment: Moment) -> datetime | None:
    """When :func:`step` may have something to do though nothing happened; None: only news can change that."""
    times = []
    waiting = _waiting(state)
    if waiting:
        start = _starts_at(spec, state, waiting, moment)
        times.append(start)
    if state.purge_trouble is not None:
        times.append(state.purge_trouble.retry_at)
    elif state.opened_payloads:
        times.append(min(state.opened_payloads.values()) + OPENED_FOR)
    return min(times, default=None)


def _waiting(state: RunState) -> list[Request]:
    return [r for r in state.requests.values() if r.batch is None]


def _is_due(spec: Spec, state: RunState, waiting: list[Request], moment: Moment | None) -> bool:
    return moment is None or _starts_at(spec, state, waiting, moment) <= moment.now


def _starts_at(spec: Spec, state: RunState, waiting: list[Request], moment: Moment) -> datetime:
    num_subjects = sum(len(r.tags) for r in waiting)  # whoever is named twice counts twice: an upper bound
    predicted_s = predicted_rebuild_s(spec, state, num_subjects=num_subjects, num_slots=moment.num_slots)
    return starts_at(waiting, spec.config.unlearning, now=moment.now, predicted_s=predicted_s)


def _settle(spec: Spec, state: RunState, moment: Moment | None) -> Decision | None:
    """Purge, close and certify, once everything is built."""
    trouble = state.purge_trouble
    backs_off = trouble is not None and moment is not None and moment.now < trouble.retry_at
    if not backs_off and (state.purge_due or unkept_shards(spec, state) or _holds_abandoned(state, moment)):
        for path, held in state.payloads.items():
            needed = state.needed_in(path)
            if needed and len(needed) < len(held):
                return RewritePayload(path=path, requests=needed)
        return Purge()
    if not backs_off:
        for batch in state.batches.values():
            return CloseBatch(batch=batch.plan.batch)
    for name in state.uncertified:
        return Certify(batch=name)
    return None


def _holds_abandoned(state: RunState, moment: Moment | None) -> bool:
    """Whether a payload was announced so long ago that nobody will commit it: it names people, and has to go."""
    now = state.entry.at if moment is None else moment.now
    return any(now - since > OPENED_FOR for since in state.opened_payloads.values())
