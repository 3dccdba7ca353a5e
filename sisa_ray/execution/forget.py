"""Forgetting, on the data side: which slices hold the subjects of a batch, and those slices without them."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from sisa_ray.core.partition import candidates
from sisa_ray.core.places import Place
from sisa_ray.core.planner import layouts_of
from sisa_ray.core.records import BatchPlanned, SliceRef, SlicesRewritten
from sisa_ray.storage.payloads import read_each, read_subjects
from sisa_ray.storage.run import Run
from sisa_ray.storage.slices import count_records, load_slice, store_slice
from sisa_ray.storage.tables import erase_subjects, subjects

_NUM_READERS = 8


def route(run: Run, people: Sequence[str]) -> dict[Place, list[str]]:
    """The slices that each subject's records can be in, one for each ingest and stratum: no index, no reading."""
    routed: dict[Place, dict[str, None]] = defaultdict(dict)
    for layout in layouts_of(run.spec, run.state):
        for shards, slices in candidates(people, layout):
            for subject, shard, slice_ in zip(people, shards.tolist(), slices.tolist(), strict=True):
                # Two strata may have chosen the same one.
                routed[shard, slice_][subject] = None
    return {where: list(there) for where, there in routed.items()}


def places_of(run: Run, requests: Sequence[str]) -> dict[str, tuple[Place, ...]]:
    """For each of these open requests, where the records of its people may be."""
    with run.lock:
        still_open = [name for name in requests if name in run.state.requests]
    named = read_each(run, still_open)
    bare = [name for name in still_open if name not in named]
    people = {**named, **{name: _people(run, (name,)) for name in bare}}
    return {name: tuple(route(run, people[name])) for name in still_open}


def fenced_from(run: Run) -> dict[int, int]:
    """For each shard, the first slice that may hold somebody whom an open request names and no batch erased yet.

    Stages from there on must not answer any more.
    """
    with run.lock:
        waiting = tuple(
            name
            for name, request in run.state.requests.items()
            if request.batch is None or not run.state.batches[request.batch].rewritten
        )
    first: dict[int, int] = {}
    for shard, slice_ in route(run, _people(run, waiting)):
        first[shard] = min(slice_, first.get(shard, slice_))
    return first


def plan_batch(run: Run, requests: tuple[str, ...]) -> BatchPlanned:
    """What ``requests`` together touch; subjects that no slice holds are unknown."""
    people = _people(run, requests)
    routed = route(run, people)
    places = sorted(routed)
    with ThreadPoolExecutor(_NUM_READERS) as readers:
        held = list(readers.map(lambda p: _count(run, p, routed[p]), places))
    known: set[str] = set()
    affected: list[Place] = []
    num_records = 0
    for where, counts in zip(places, held, strict=True):
        known.update(counts)
        num_records += sum(counts.values())
        if counts:
            affected.append(where)
    unknown = [person for person in people if person not in known]
    held_tags = set(run.secret.tags(people))
    absent = [tag for tag in _bare_tags(run, requests) if tag not in held_tags]
    return BatchPlanned(
        batch=uuid.uuid4().hex,
        requests=requests,
        unknown=(*run.secret.tags(unknown), *absent),
        num_records=num_records,
        affected=tuple(affected),
    )


def _count(run: Run, where: Place, people: Sequence[str]) -> dict[str, int]:
    """Records of each subject in a slice. Before ingest nobody is known; ingest refuses them later."""
    ref = run.state.slices.get(where)
    return count_records(run.store, ref, people) if ref is not None else {}


def rewrite_slices(run: Run, batch: str, *, attempt: str) -> SlicesRewritten:
    """Write the affected slices of a batch without its subjects, under ``attempt``."""
    plan = run.state.batches[batch].plan
    routed = route(run, _people(run, plan.requests))

    def rewrite(where: Place) -> SliceRef:
        table = erase_subjects(load_slice(run.store, run.state.slices[where]), set(routed[where]))
        return store_slice(
            run.store,
            table,
            shard=where[0],
            slice_=where[1],
            attempt=attempt,
            content_key=run.secret.content_key,
            num_buckets=run.spec.config.sisa.order_buckets,
            seed=run.spec.config.sisa.seed,
        )

    with ThreadPoolExecutor(_NUM_READERS) as workers:
        slices = tuple(workers.map(rewrite, plan.affected))
    return SlicesRewritten(batch=batch, slices=slices)


def _people(run: Run, requests: Sequence[str]) -> list[str]:
    """The subjects of requests: named by payloads, or found by their tags where those are all that is known."""
    people = dict.fromkeys(read_subjects(run, requests))
    tags = set(_bare_tags(run, requests))
    if tags:
        people.update(dict.fromkeys(_find_by_tags(run, tags)))
    return list(people)


def _bare_tags(run: Run, requests: Sequence[str]) -> list[str]:
    """Tags of the requests that have no payload: suppressions replayed after a restore."""
    bare = [run.state.requests[name] for name in requests if not run.state.requests[name].payload]
    return list(dict.fromkeys(tag for request in bare for tag in request.tags))


def _find_by_tags(run: Run, tags: set[str]) -> list[str]:
    """Subjects in the run's slices that have one of ``tags``: every slice is read."""
    found: list[str] = []
    for ref in list(run.state.slices.values()):
        if ref.path is not None:
            people = list(dict.fromkeys(subjects(load_slice(run.store, ref)).to_pylist()))
            named = zip(people, run.secret.tags(people), strict=True)
            found += [person for person, tag in named if tag in tags]
    return found
