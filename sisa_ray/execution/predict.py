"""Prediction: every constituent on the shard actors, the ensemble's answer from their votes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sisa_ray.core.errors import RunConflict
from sisa_ray.core.planner import Lineage
from sisa_ray.core.records import StageRef
from sisa_ray.execution.actor import BuildJob
from sisa_ray.execution.events import Notice, OnEvent, PhaseStarted, ignore
from sisa_ray.execution.metrics import Mean, Score
from sisa_ray.execution.opening import Target, existing_run
from sisa_ray.execution.results import PredictResult
from sisa_ray.execution.workers import NewWorkers, Workers
from sisa_ray.learning.ensemble import Prediction, aggregate, rule_for
from sisa_ray.storage.objects import ObjectStore
from sisa_ray.storage.output import TableWriter
from sisa_ray.storage.run import Run
from sisa_ray.storage.source import open_source

Floats = npt.NDArray[np.float64]

_BATCH_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class Voter:
    """What answers for a shard: its last clean stage, and the weight of its records."""

    ref: StageRef
    num_records: int
    is_constituent: bool


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
    found = []
    for shard in range(run.spec.config.sisa.num_shards):
        slices = lineage.slices(shard)
        ref = lineage.latest_clean(shard)
        if ref is not None and sum(s.num_records for s in slices[: ref.stage]):
            found.append(
                Voter(
                    ref=ref,
                    num_records=sum(s.num_records for s in slices[: ref.stage]),
                    is_constituent=ref.stage == len(slices),
                )
            )
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
    rule = rule_for(rule or run.spec.config.aggregation, run.spec.task)
    electorate = voters(run)
    warnings = []
    stale = sum(not v.is_constituent for v in electorate)
    if stale or run.state.requests:
        warnings.append(
            f"{stale} shard(s) answer from an earlier checkpoint and {len(run.state.requests)} request(s) are open; "
            "`sisa-ray train` finishes them"
        )
        on_event(Notice(text=warnings[0]))
    source = open_source(run.spec.config.data, table, for_training=False)
    score = Score(run.spec.task)
    agreement = Mean()
    num_rows = 0
    with new_workers() as workers, TableWriter(out) as writer:
        for batch in source.batches(_BATCH_ROWS):
            on_event(PhaseStarted(text=f"predicting, {num_rows} rows done"))
            votes = _ask(run, workers, batch.columns, electorate)
            answer = aggregate(rule, votes, [v.num_records for v in electorate], task=run.spec.task)
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


def _rows(values: Floats) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def evaluate(run: Run, workers: Workers, *, on_event: OnEvent = ignore) -> Quality | None:
    """Measure the ensemble and its constituents on the test table; None where the run has none."""
    if run.spec.config.data.test is None:
        return None
    electorate = voters(run)
    on_event(PhaseStarted(text="measuring on the test table"))
    source = open_source(run.spec.config.data, run.spec.config.data.test, for_training=False)
    rule = rule_for(run.spec.config.aggregation, run.spec.task)
    weights = [v.num_records for v in electorate]
    total = Score(run.spec.task)
    each = [Score(run.spec.task) for _ in electorate]
    for batch in source.batches(_BATCH_ROWS):
        votes = _ask(run, workers, batch.columns, electorate)
        total.add(aggregate(rule, votes, weights, task=run.spec.task).values, batch.columns)
        for score, vote in zip(each, votes, strict=True):
            score.add(aggregate("mean", vote[None], [1], task=run.spec.task).values, batch.columns)
    by_shard = {v.ref.shard: score.value for v, score in zip(electorate, each, strict=True)}
    if total.value is None:
        return None
    return Quality(
        metric=total.metric,
        ensemble=total.value,
        constituents=tuple(by_shard.get(k) for k in range(run.spec.config.sisa.num_shards)),
    )


def constituent_predictions(
    run: Run, workers: Workers, refs: Sequence[tuple[ObjectStore, StageRef]], table: pa.Table
) -> list[Floats]:
    """What each constituent says about each row of ``table`` (role columns): ``(N, C)`` or ``(N, D)`` each."""
    pool = workers.pool(run.spec, ignore)
    shared = pool.share(table)
    calls = [
        (BuildJob(store=store, columns=run.state.columns, attempt=""), ref, shared) for store, ref in refs
    ]
    return pool.map("predict", calls)


def _ask(run: Run, workers: Workers, table: pa.Table, electorate: Sequence[Voter]) -> Floats:
    """Predictions of all voters, shape ``(voters, N, C)``."""
    return np.stack(constituent_predictions(run, workers, [(run.store, v.ref) for v in electorate], table))
