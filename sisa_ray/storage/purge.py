"""Purge: whatever the state does not name is deleted, and its absence verified."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable

from sisa_ray.core.errors import PurgeIncomplete
from sisa_ray.core.planner import named_paths, unkept_shards, wanted_features, wanted_partials
from sisa_ray.core.records import CheckpointLost, Purged, PurgePlanned, Record
from sisa_ray.storage import layout
from sisa_ray.storage.objects import ObjectInfo
from sisa_ray.storage.run import Run

_NUM_TRIES = 4
_MANY = 4
_BESIDE_SHARDS = (layout.REQUESTS, layout.SCRATCH, layout.TEMPORARY)
"""Where things lie that are of no shard, and not permanent."""


def purge(
    run: Run, *, attempt: str, everywhere: bool = False, sleep: Callable[[float], None] = time.sleep
) -> Purged:
    """Delete what the run's state does not name; verify; commit.

    It looks below the shards that have changed since the last purge. Must run while no actor of this attempt writes.
    The intent is committed first, so that a crash in the middle is finished by the next process.

    Args:
        run: this process has taken it.
        attempt: of this process.
        everywhere: look everywhere; so it does where another process may have left something.
        sleep: between two tries.

    Raises:
        PurgeIncomplete: where something is still there after several tries. The run stays in need of a purge.
    """
    with run.lock:
        shards = None if everywhere else _shards_to_purge(run)
    # Listed first: what is written from here on is none of this purge's business.
    listed = _listed(run, shards)
    with run.lock:
        run.commit(
            *_forgotten_checkpoints(run, shards),
            PurgePlanned(attempt=attempt, num_objects=len(_unnamed(run, listed, shards))),
        )
        # The commit may have followed requests that others accepted since: their payloads are named now.
        doomed = _unnamed(run, listed, shards)
    known = {info.path for info in doomed}
    left = doomed
    for tries in range(_NUM_TRIES):
        run.store.delete([info.path for info in left])
        left = [info for info in _listed(run, shards) if info.path in known]
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
    listed = _listed(run, None)
    with run.lock:
        return bool(_unnamed(run, listed, None))


def _shards_to_purge(run: Run) -> frozenset[int] | None:
    """Shards below which anything unnamed lies; None: it may be anywhere."""
    changed = run.state.purge_shards
    if changed is None:
        return None
    shards = changed.union(unkept_shards(run.spec, run.state))
    # Each costs a few listings; the whole run, one object after the other.
    return frozenset(shards) if _MANY * len(shards) < run.spec.config.sisa.num_shards else None


def _listed(run: Run, shards: Collection[int] | None) -> list[ObjectInfo]:
    """Objects, noncurrent versions and unfinished uploads: all of them, or those below some shards and beside them."""
    prefixes = [""]
    if shards is not None:
        prefixes = [*_BESIDE_SHARDS, *(prefix for shard in shards for prefix in layout.shard_prefixes(shard))]
    return [info for prefix in prefixes for info in run.store.list(prefix, all_versions=True)]


def _forgotten_checkpoints(run: Run, shards: Collection[int] | None) -> list[Record]:
    """Records of the checkpoints that are not kept any more."""
    state = run.state
    named = named_paths(run.spec, state, shards)
    return [
        CheckpointLost(shard=shard, stage=ref.stage, reason="retention")
        for shard in (state.stages.shards if shards is None else shards)
        for ref in state.stages.of(shard).values()
        if ref.path is not None and ref.path not in named
    ]


def _unnamed(run: Run, listed: Iterable[ObjectInfo], shards: Collection[int] | None) -> list[ObjectInfo]:
    """Those that neither the state nor open work names."""
    named = named_paths(run.spec, run.state, shards) | run.in_flight
    # Derived objects have no record that names them: what they are of is in their names.
    partials = wanted_partials(run.spec, run.state)
    features = wanted_features(run.spec, run.state, shards)
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
