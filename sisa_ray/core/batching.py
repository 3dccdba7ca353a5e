"""When waiting requests become a batch: pure, from the policy, the clock and a prediction."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from sisa_ray.core.config import UnlearningConfig
from sisa_ray.core.requests import Request


def starts_at(
    waiting: Collection[Request], policy: UnlearningConfig, *, now: datetime, predicted_s: float
) -> datetime:
    """When a batch of ``waiting`` starts at the latest, ``now`` or earlier meaning at once.

    A legal deadline comes before everything else: with any policy a batch starts no later than its earliest
    due date less the predicted rebuild and the safety margin. Urgent and overdue requests start at once.

    Args:
        waiting: requests that are in no batch; not empty.
        policy: the run's.
        now: the time on the coordinator's clock.
        predicted_s: seconds that forgetting all of them is predicted to take.
    """
    if any(r.priority == "urgent" or r.is_overdue for r in waiting):
        return now
    latest = min(r.due_at for r in waiting) - timedelta(seconds=predicted_s + policy.safety_margin_s)
    allowed = _allowed_at(waiting, policy, now)
    return latest if allowed is None else min(latest, allowed)


def _allowed_at(waiting: Collection[Request], policy: UnlearningConfig, now: datetime) -> datetime | None:
    """When the policy alone would start."""
    if policy.min_subjects > 1 and len({tag for r in waiting for tag in r.tags}) < policy.min_subjects:
        return None
    match policy.batching:
        case "at_once":
            return now
        case "size":
            return now if len(waiting) >= policy.batch_size else None
        case "window":
            return min(r.accepted_at for r in waiting) + timedelta(seconds=policy.window_s)
        case "deadline":
            return None
