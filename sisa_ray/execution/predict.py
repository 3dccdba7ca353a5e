"""Prediction: every constituent on the shard actors, the ensemble's answer from their votes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sisa_ray.core.errors import RunConflict
from sisa_ray.core.planner import Lineage
from sisa_ray.core.records import StageRef
from sisa_ray.core.view import Voter
from sisa_ray.execution.actor import BuildJob
from sisa_ray.execution.events import Notice, OnEvent, PhaseStarted, ignore
from sisa_ray.execution.forget import fenced_from
from sisa_ray.execution.metrics import Mean, Score
from sisa_ray.execution.opening import Target, existing_run
from sisa_ray.execution.results import PredictResult
from sisa_ray.execution.workers import NewWorkers, Workers
from sisa_ray.learning.ensemble import Prediction, Rule, aggregate, rule_for
from sisa_ray.storage.mirror import check_mirror
from sisa_ray.storage.objects import ObjectStore
from sisa_ray.storage.output import TableWriter
from sisa_ray.storage.run import Run
from sisa_ray.storage.source import open_source

Floats = npt.NDArray[np.float64]

_BATCH_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The metric of the ensemble and of every constituent (None: no records, no vote) on a table."""

    metric: Literal["accuracy", "rmse"]
    ensemble: float
    constituents: tuple[float | None, ...]


def voters(run: Run) -> list[Voter]:
    """Who may answer now: no stage that saw somebody who is to be forgotten, no shard without records.

    Raises:
        RunConflict: where nothing is trained yet.
    """
    if run.state.ingested is None:
        raise RunConflict(f"{run.address}: nothing is trained yet; `sisa-ray train` comes first")
    lineage = Lineage(run.spec, run.state)
    fenced = fenced_from(run)
    found = []
    for shard in range(run.spec.config.sisa.num_shards):
        slices = lineage.slices(shard)
        ref = lineage.latest_clean(shard, before=fenced.get(shard))
        num_records = sum(s.num_records for s in slices[: ref.stage]) if ref is not None else 0
        if ref is not None and num_records:
            found.append(Voter(ref=ref, num_records=num_records, is_constituent=ref.stage == len(slices)))
    if not found:
        raise RunConflict(f"{run.address}: nothing is trained yet; `sisa-ray train` comes first")
    return found


def predict(
    target: Target,
    table: str,
    *,
    out: str,
    rule: str | None = None,
    on_event: OnEvent = ignore,
    new_workers: NewWorkers = Workers,
) -> PredictResult:
    """Ask the ensemble about every row of a Parquet table; write labels, probabilities and agreement.

    Args:
        target: a run's address or configuration.
        table: file, directory or glob with the feature columns; record ids and labels are used where present.
        out: the Parquet file to write.
        rule: majority, mean, median or size_weighted; default: the run's.
        on_event: receives progress.
        new_workers: how the command gets its shard actors.
    """
    run = existing_run(target)
    check_mirror(run)
    rule = rule_for(rule or run.spec.config.aggregation, run.spec.task)
    electorate = voters(run)
    warnings = []
    stale = len([v for v in electorate if not v.is_constituent])
    if stale or run.state.requests:
        warnings.append(
            f"{stale} shard(s) answer from an earlier checkpoint and {len(run.state.requests)} request(s) are open; "
            "`sisa-ray train` finishes them"
        )
        on_event(Notice(text=warnings[0]))
    source = open_source(run.spec.config.data, table, for_training=False)
    score = Score(run.spec.task)
    agreement = Mean()
    refs = [(run.store, v.ref) for v in electorate]
    weights = [v.num_records for v in electorate]
    num_rows = 0
    with new_workers() as workers, TableWriter(out) as writer:
        for batch in source.batches(_BATCH_ROWS):
            on_event(PhaseStarted(text=f"predicting, {num_rows} rows done"))
            votes = constituent_predictions(run, workers, refs, batch.columns)
            answer = aggregate(rule, np.stack(votes), weights, task=run.spec.task)
            writer.write(_answers(batch.record_ids, answer))
            num_rows += len(answer.values)
            agreement.add(answer.agreement)
            score.add(answer.values, batch.columns)
    return PredictResult(
        address=run.address,
        out=out,
        generation=run.state.generation,
        num_rows=num_rows,
        num_voters=len(electorate),
        rule=rule,
        mean_agreement=agreement.value,
        metric=score.metric if score.value is not None else None,
        value=score.value,
        warnings=tuple(warnings),
    )


def _answers(record_ids: pa.Array | None, answer: Prediction) -> pa.Table:
    """One row a record: its id where the table has one, the answer, probabilities and agreement."""
    columns: dict[str, pa.Array] = {} if record_ids is None else {"record_id": record_ids}
    if answer.probabilities is None:
        values = np.asarray(answer.values)
        columns["prediction"] = pa.array(values) if values.ndim == 1 else _rows(values)
    else:
        columns["label"] = pa.array(answer.values)
        columns["probabilities"] = _rows(answer.probabilities)
        columns["agreement"] = pa.array(answer.agreement)
    return pa.table(columns)


def _rows(values: npt.NDArray[Any]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def evaluate(run: Run, workers: Workers, *, on_event: OnEvent = ignore) -> Quality | None:
    """Measure the ensemble and its constituents on the test table; None where the run has none."""
    if run.spec.config.data.test is None:
        return None
    on_event(PhaseStarted(text="measuring on the test table"))
    electorate = voters(run)
    rule = rule_for(run.spec.config.aggregation, run.spec.task)
    weights = [v.num_records for v in electorate]
    measured = measure(run, workers, [(run.store, v.ref) for v in electorate], (rule, weights))
    if measured is None:
        return None
    by_shard = dict(zip((v.ref.shard for v in electorate), measured.values[:-1], strict=True))
    return Quality(
        metric=measured.metric,
        ensemble=measured.values[-1],
        constituents=tuple(by_shard.get(k) for k in range(run.spec.config.sisa.num_shards)),
    )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A metric of several models; of their ensemble, too, as the last one, where a rule was given."""

    metric: Literal["accuracy", "rmse"]
    values: tuple[float, ...]


def measure(
    run: Run,
    workers: Workers,
    refs: Sequence[tuple[ObjectStore, StageRef]],
    ensemble: tuple[Rule, Sequence[int]] | None = None,
) -> Measured | None:
    """Measure models, and their ensemble under (rule, weights), on the test table; None without labels."""
    data = run.spec.config.data
    if data.test is None:
        return None
    task = run.spec.task
    scores = [Score(task) for _ in range(len(refs) + (ensemble is not None))]
    for batch in open_source(data, data.test, for_training=False).batches(_BATCH_ROWS):
        votes = constituent_predictions(run, workers, refs, batch.columns)
        answers = [aggregate("mean", vote[None], [1], task=task) for vote in votes]
        if ensemble is not None:
            answers.append(aggregate(ensemble[0], np.stack(votes), ensemble[1], task=task))
        for score, answer in zip(scores, answers, strict=True):
            score.add(answer.values, batch.columns)
    values = [score.value for score in scores if score.value is not None]
    return Measured(metric=scores[0].metric, values=tuple(values)) if len(values) == len(scores) else None


def constituent_predictions(
    run: Run, workers: Workers, refs: Sequence[tuple[ObjectStore, StageRef]], table: pa.Table
) -> list[Floats]:
    """What each constituent says about each row of ``table`` (role columns): ``(N, C)`` or ``(N, D)`` each."""
    pool = workers.pool(run.spec, ignore)
    workers.require_reach(run.address)
    shared = pool.share(table)
    calls = [
        (BuildJob(store=store, columns=run.state.columns, attempt=""), ref, shared) for store, ref in refs
    ]
    return pool.map("predict", calls)
