"""A run as whoever serves it sees it: its state for those who may know, and its privacy budget."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction

from sisa_ray.core.records import PrivacySpent
from sisa_ray.execution.fence import Fence
from sisa_ray.storage.run import Run


@dataclass(frozen=True, kw_only=True)
class ServedRun:
    """What ``GET /v1/run`` says, and what the metrics are made of.

    Attributes:
        position: the log entry that this is of.
        fenced: shards that do not answer from their constituent.
        requests_by_state: how many requests are in each state; closed ones are left out.
        oldest_accepted_at: of the open requests.
        epsilon_spent: by answers in private mode, as an exact fraction.
        record_visits: of all batches so far, and what retraining without slices would have cost.
    """

    name: str
    position: int
    generation: int
    num_shards: int
    num_voters: int
    num_replicas: int
    fenced: tuple[int, ...]
    requests_by_state: dict[str, int]
    num_closed: int
    oldest_accepted_at: datetime | None
    last_fence_s: float | None
    last_erase_s: float | None
    purge_trouble: str | None
    epsilon_spent: str
    epsilon_budget: str | None
    record_visits: int
    full_retrain_record_visits: int


def describe(run: Run, fence: Fence) -> ServedRun:
    """The run as its coordinator knows it."""
    with run.lock:
        state, view = run.state, fence.view
        counts: dict[str, int] = {}
        for request in state.requests.values():
            name = state.request_state(request)
            counts[name] = counts.get(name, 0) + 1
        closed = list(state.closed_requests.values())
        fenced = [r for r in (*state.requests.values(), *closed) if r.fenced_at is not None]
        last_fenced = max(fenced, key=lambda r: r.fenced_at or r.accepted_at, default=None)
        erased = [r for r in closed if not r.is_rejected]
        last_erased = max(erased, key=lambda r: r.closed_at or r.accepted_at, default=None)
        budget = run.spec.config.serving.epsilon_budget
        batches = [b.closed for b in state.closed_batches.values()]
        return ServedRun(
            name=run.spec.config.name,
            position=state.entry.seq,
            generation=state.generation,
            num_shards=run.spec.config.sisa.num_shards,
            num_voters=0 if view is None else len(view.voters),
            num_replicas=fence.num_replicas,
            fenced=() if view is None else view.fenced,
            requests_by_state=counts,
            num_closed=len(closed),
            oldest_accepted_at=min((r.accepted_at for r in state.requests.values()), default=None),
            last_fence_s=None
            if last_fenced is None
            else seconds(last_fenced.accepted_at, last_fenced.fenced_at),
            last_erase_s=None
            if last_erased is None
            else seconds(last_erased.accepted_at, last_erased.closed_at),
            purge_trouble=state.purge_trouble.problem if state.purge_trouble else None,
            epsilon_spent=state.epsilon_spent,
            epsilon_budget=None if budget is None else str(budget),
            record_visits=sum(b.record_visits for b in batches),
            full_retrain_record_visits=sum(b.full_retrain_record_visits for b in batches),
        )


def seconds(start: datetime, end: datetime | None) -> float | None:
    """Seconds between two times; None where the second is not yet."""
    return None if end is None else (end - start).total_seconds()


def spend(run: Run, wanted: int) -> int:
    """Take answers in private mode from the run's budget; how many were granted, 0 where none is left.

    They count as spent from here on: what a replica does not use is lost with it.
    """
    policy = run.spec.config.serving
    if policy.epsilon_budget is None:
        return 0
    with run.lock:
        left = policy.epsilon_budget - Fraction(run.state.epsilon_spent)
        granted = max(0, min(wanted, left // policy.epsilon_per_answer))
        if granted:
            run.commit(PrivacySpent(num_answers=granted, epsilon=str(policy.epsilon_per_answer)))
    return int(granted)
