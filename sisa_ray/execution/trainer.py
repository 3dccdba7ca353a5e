"""The Python interface: one object for one run, in the manner of Ray's trainers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import fsspec
import ray.train
from pyarrow.fs import FSSpecHandler, PyFileSystem

from sisa_ray.core.planner import segments_of
from sisa_ray.execution import commands
from sisa_ray.execution.events import OnEvent, ignore
from sisa_ray.execution.opening import Target, existing_run
from sisa_ray.execution.predict import predict
from sisa_ray.execution.results import (
    AppendResult,
    PredictResult,
    StatusResult,
    TrainResult,
    UnlearnResult,
    VerifyResult,
)
from sisa_ray.execution.verify import verify
from sisa_ray.execution.workers import NewWorkers, Workers
from sisa_ray.storage.run import Run


@dataclass(frozen=True, kw_only=True)
class TrainedEnsemble:
    """What :meth:`SisaTrainer.fit` returns.

    Attributes:
        address: where the run lives.
        metrics: ``accuracy`` or ``rmse`` of the ensemble (where there is a test table), ``record_visits`` …
        constituents: one checkpoint a shard, each a directory with ``state.safetensors``. They point into the
            run, so that nothing is copied out of its reach; unlearning replaces them.
        result: all figures.
    """

    address: str
    metrics: dict[str, float]
    constituents: tuple[ray.train.Checkpoint, ...]
    result: TrainResult


def _constituents(run: Run) -> tuple[ray.train.Checkpoint, ...]:
    fs, root = fsspec.core.url_to_fs(run.address)
    filesystem = PyFileSystem(FSSpecHandler(fs))
    last = segments_of(run.spec, run.state)[-1].last
    paths = [run.state.stages[shard, last].path or "" for shard in range(run.spec.config.sisa.num_shards)]
    return tuple(
        ray.train.Checkpoint(path=f"{root}/{path.rpartition('/')[0]}", filesystem=filesystem)
        for path in paths
    )


class SisaTrainer:
    """Train, unlearn, verify and predict with one run.

    Every call starts shard actors and releases them. In a ``with`` block they stay from call to call, with their
    slots and GPUs, which saves their start, until the block is left or a call fails.

    >>> trainer = SisaTrainer(SisaConfig.from_yaml("mnist.yaml"))  # doctest: +SKIP
    >>> trainer.fit().metrics["accuracy"]  # doctest: +SKIP
    0.9461
    """

    def __init__(self, config: Target, *, on_event: OnEvent = ignore) -> None:
        self._target = config
        self._on_event = on_event
        self._workers: Workers | None = None

    def __enter__(self) -> SisaTrainer:
        self._workers = Workers()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._workers is not None:
            self._workers.release()
            self._workers = None

    @property
    def _new_workers(self) -> NewWorkers:
        return Workers if self._workers is None else self._workers.kept

    def fit(self) -> TrainedEnsemble:
        """Ingest and train what is missing; publish the ensemble."""
        result = commands.train(self._target, on_event=self._on_event, new_workers=self._new_workers)
        metrics: dict[str, float] = {
            "record_visits": float(result.record_visits),
            "num_records": float(result.num_records),
            "generation": float(result.generation),
        }
        if result.metric is not None and result.ensemble is not None:
            metrics[result.metric] = result.ensemble
        constituents = _constituents(existing_run(self._target, check_code=False))
        return TrainedEnsemble(
            address=result.address, metrics=metrics, constituents=constituents, result=result
        )

    def append(self, table: str, *, num_slices: int = 1) -> AppendResult:
        """Bring further records into the run as new slices, and train the new stages alone."""
        return commands.append(
            self._target,
            table,
            num_slices=num_slices,
            on_event=self._on_event,
            new_workers=self._new_workers,
        )

    def unlearn(self, subjects: Sequence[str]) -> UnlearnResult:
        """Forget subjects, named by their canonical keys."""
        return commands.unlearn(
            self._target, subjects, on_event=self._on_event, new_workers=self._new_workers
        )

    def verify(self, *, shards: Sequence[int] | None = None, sample: int | None = None) -> VerifyResult:
        """Train from scratch without everybody forgotten, and compare the bits."""
        return verify(
            self._target,
            shards=shards,
            sample=sample,
            on_event=self._on_event,
            new_workers=self._new_workers,
        )

    def predict(self, table: str, *, out: str, rule: str | None = None) -> PredictResult:
        """Write the ensemble's answers for a Parquet table."""
        return predict(
            self._target,
            table,
            out=out,
            rule=rule,
            on_event=self._on_event,
            new_workers=self._new_workers,
        )

    def status(self) -> StatusResult:
        """The run at a glance."""
        return commands.status(self._target)
