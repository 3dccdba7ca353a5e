"""Forgetting, on the data side: which slices hold the subjects of a batch, and those slices without them."""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from sisa_ray.core.errors import IntegrityError
from sisa_ray.core.partition import Layout, place
from sisa_ray.core.records import BatchPlanned, SliceRef, SlicesRewritten
from sisa_ray.core.state import Place
from sisa_ray.storage.run import Run
from sisa_ray.storage.slices import count_records, load_slice, store_slice
from sisa_ray.storage.tables import erase_subjects

_NUM_READERS = 8


def route(run: Run, subjects: Sequence[str]) -> dict[Place, list[str]]:
    """The one slice that each subject's records can be in: no index, no reading."""
    sisa = run.spec.config.sisa
    layout = Layout(num_shards=sisa.num_shards, num_slices=sisa.num_slices, seed=sisa.seed)
    shards, slices = place(subjects, layout)
    routed: dict[Place, list[str]] = defaultdict(list)
    for subject, shard, slice_ in zip(subjects, shards.tolist(), slices.tolist(), strict=True):
        routed[shard, slice_].append(subject)
    return dict(routed)


def plan_batch(run: Run, requests: tuple[str, ...]) -> BatchPlanned:
    """What ``requests`` together touch; subjects that no slice holds are unknown."""
    routed = route(run, _subjects_of(run, requests))
    places = sorted(routed)
    with ThreadPoolExecutor(_NUM_READERS) as readers:
        held = list(readers.map(lambda p: _count(run, p, routed[p]), places))
    unknown: list[str] = []
    affected: list[Place] = []
    num_records = 0
    for where, counts in zip(places, held, strict=True):
        hits = [counts[s] for s in routed[where] if s in counts]
        unknown += [s for s in routed[where] if s not in counts]
        num_records += sum(hits)
        if hits:
            affected.append(where)
    return BatchPlanned(
        batch=uuid.uuid4().hex,
        requests=requests,
        unknown=tuple(run.secret.tags(unknown)),
        num_records=num_records,
        affected=tuple(affected),
    )


def _count(run: Run, where: Place, subjects: Sequence[str]) -> dict[str, int]:
    """Records of each subject in a slice. Before ingest nobody is known; ingest refuses them later."""
    ref = run.state.slices.get(where)
    return count_records(run.store, ref, subjects) if ref is not None else {}


def rewrite_slices(run: Run, batch: str, *, attempt: str) -> SlicesRewritten:
    """Write the affected slices of a batch without its subjects, under ``attempt``."""
    plan = run.state.batches[batch].plan
    routed = route(run, _subjects_of(run, plan.requests))

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


def _subjects_of(run: Run, requests: Sequence[str]) -> list[str]:
    subjects: dict[str, None] = {}
    for request in requests:
        path = run.state.requests[request].payload
        payload = json.loads(run.store.get(path))["subjects"]
        if tuple(run.secret.tags(payload)) != run.state.requests[request].tags:
            raise IntegrityError(
                f"{run.address}/{path}: does not name the people that were accepted; restore this object"
            )
        subjects.update(dict.fromkeys(payload))
    return list(subjects)
