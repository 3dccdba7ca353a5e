"""Forgetting, as a command: accept a request, see it done, and say what it took."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sisa_ray.core.places import Place
from sisa_ray.core.planner import rebuild_visits
from sisa_ray.core.requests import ClosedBatch
from sisa_ray.core.state import RunState
from sisa_ray.execution import opening
from sisa_ray.execution.acceptance import Submission, checked_subjects
from sisa_ray.execution.client import find_coordinator
from sisa_ray.execution.events import OnEvent, PhaseStarted, ignore
from sisa_ray.execution.forget import route
from sisa_ray.execution.opening import Target
from sisa_ray.execution.results import Outcome, UnlearnResult, UnlearnRow
from sisa_ray.execution.session import Session
from sisa_ray.execution.workers import NewWorkers, Workers
from sisa_ray.storage.run import Run


def unlearn(
    target: Target,
    subjects: Sequence[str],
    *,
    on_event: OnEvent = ignore,
    new_workers: NewWorkers = Workers,
) -> UnlearnResult:
    """Forget ``subjects`` (canonical keys). Unknown ones are reported; those forgotten before cost nothing.

    Where a coordinator runs, it does the work, when its batching policy says; otherwise it is done here and now.
    """
    started = time.monotonic()
    distinct = checked_subjects(subjects)
    run = opening.existing_run(target)
    tags = dict(zip(distinct, run.secret.tags(distinct), strict=True))
    before = set(run.state.suppressed)
    new = tuple(s for s in distinct if tags[s] not in before)
    coordinator = find_coordinator(run.address)
    request = None
    if coordinator is not None:
        if new:
            request = coordinator.submit([Submission(subjects=new)])[0].request
            on_event(PhaseStarted(text="waiting for the coordinator"))
            coordinator.wait([request], on_event=on_event)
        run.refresh()
    else:
        with (
            new_workers() as workers,
            Session(run, workers, command="unlearn", on_event=on_event) as session,
        ):
            request = session.accept(Submission(subjects=new)) if new else None
            session.reconcile(train=False)
    batch = _batch_of(run.state, request)
    outcomes = {s: _outcome(tags[s], before, run.state.unknown) for s in distinct}
    affected = batch.plan.affected if batch else ()
    return UnlearnResult(
        address=run.address,
        request=request,
        certificate=batch.certificate if batch else None,
        generation=run.state.generation,
        num_subjects=len(distinct),
        num_forgotten=sum(o == "forgotten" for o in outcomes.values()),
        num_unknown=sum(o == "unknown" for o in outcomes.values()),
        num_already_forgotten=sum(o == "already forgotten" for o in outcomes.values()),
        num_records=batch.plan.num_records if batch else 0,
        slices_rewritten=len(affected),
        shards_rebuilt=tuple(sorted({shard for shard, _ in affected})) if run.state.generation else (),
        stages_rebuilt=batch.closed.stages_rebuilt if batch else 0,
        record_visits=batch.closed.record_visits if batch else 0,
        predicted_record_visits=rebuild_visits(run.spec, run.state, affected) if run.state.generation else 0,
        full_retrain_record_visits=batch.closed.full_retrain_record_visits if batch else 0,
        objects_purged=batch.closed.objects_purged if batch else 0,
        seconds=time.monotonic() - started,
        rows=_rows(run, subjects, tags, outcomes, affected),
    )


def _batch_of(state: RunState, request: str | None) -> ClosedBatch | None:
    found = state.find_request(request or "")
    return None if found is None else state.closed_batches.get(found.batch or "")


def _outcome(tag: str, before: set[str], unknown: set[str]) -> Outcome:
    if tag in unknown:
        return "unknown"
    return "already forgotten" if tag in before else "forgotten"


def _rows(
    run: Run,
    subjects: Sequence[str],
    tags: dict[str, str],
    outcomes: dict[str, Outcome],
    affected: Sequence[Place],
) -> tuple[UnlearnRow, ...]:
    # A shard is one person's for good; of the slices, where there were appends, the first that the batch rewrote.
    places: dict[str, list[Place]] = {}
    for where, people in sorted(route(run, list(dict.fromkeys(subjects))).items()):
        for person in people:
            places.setdefault(person, []).append(where)
    touched = set(affected)
    rows = []
    for row, subject in enumerate(subjects):
        candidates = places[subject]
        known = outcomes[subject] != "unknown"
        shard, slice_ = next((p for p in candidates if p in touched), candidates[0])
        rows.append(
            UnlearnRow(
                row=row,
                tag=tags[subject],
                outcome=outcomes[subject],
                shard=shard if known else None,
                slice=slice_ if known else None,
            )
        )
    return tuple(rows)
