"""Purge: whatever the state does not name is deleted, and its absence verified."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from sisa_ray.core.errors import PurgeIncomplete
from sisa_ray.core.planner import named_paths, wanted_features, wanted_partials
from sisa_ray.core.records import CheckpointLost, Purged, PurgePlanned, Record
from sisa_ray.storage import layout
from sisa_ray.storage.objects import ObjectInfo
from sisa_ray.storage.run import Run

_NUM_TRIES = 4


def purge(run: Run, *, attempt: str, sleep: Callable[[float], None] = time.sleep) -> Purged:
    """Delete everything under the run that its state does not name; verify; commit.

    Must run while no actor of this attempt writes. The intent is committed first, so that a crash in the
    middle is finished by the next process.

    Raises:
        PurgeIncomplete: where something is still there after several tries. The run stays in need of a purge.
    """
    # Listed first: what is written from here on is none of this purge's business.
    listed = list(run.store.list("", all_versions=True))
    with run.lock:
        run.commit(
            *_forgotten_checkpoints(run),
            PurgePlanned(attempt=attempt, num_objects=len(_unnamed(run, listed))),
        )
        # The commit may have followed requests that others accepted since: their payloads are named now.
        doomed = _unnamed(run, listed)
    known = {info.path for info in doomed}
    left = doomed
    for tries in range(_NUM_TRIES):
        run.store.delete([info.path for info in left])
        left = [info for info in run.store.list("", all_versions=True) if info.path in known]
        if not left:
            break
        sleep(2.0**tries / 10)
    if left:
        raise PurgeIncomplete(
            f"{run.address}: {len(left)} object(s) are still there after deletion, the first is {left[0].path}; "
            "check the permission to delete (and object lock), then run the same command again"
        )
    done = Purged(attempt=attempt, num_objects=len(doomed), num_bytes=sum(info.size_bytes for info in doomed))
    run.commit(done)
    return done


def has_strays(run: Run) -> bool:
    """Whether anything lies under the run that its state does not name."""
    listed = list(run.store.list("", all_versions=True))
    with run.lock:
        return bool(_unnamed(run, listed))


def _forgotten_checkpoints(run: Run) -> list[Record]:
    """Records of the checkpoints that are not kept any more."""
    named = named_paths(run.spec, run.state)
    return [
        CheckpointLost(shard=ref.shard, stage=ref.stage, reason="retention")
        for ref in run.state.stages.values()
        if ref.path is not None and ref.path not in named
    ]


def _unnamed(run: Run, listed: Iterable[ObjectInfo]) -> list[ObjectInfo]:
    """Objects, noncurrent versions and unfinished uploads included, that neither the state nor open work names."""
    named = named_paths(run.spec, run.state) | run.in_flight
    # Derived objects have no record that names them: what they are of is in their names.
    partials = wanted_partials(run.spec, run.state)
    features = wanted_features(run.spec, run.state)
    doomed = []
    for info in listed:
        if info.path.startswith(layout.PERMANENT) or info.path in named:
            continue
        partial = layout.parse_partial(info.path)
        made = layout.parse_features(info.path)
        is_wanted = partial is not None and partial.key in partials
        is_wanted = is_wanted or (made is not None and made.key in features)
        if not is_wanted:
            doomed.append(info)
    return doomed
