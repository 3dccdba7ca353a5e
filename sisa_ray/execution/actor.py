"""The shard actor: owns a shard while there is work for it and trains its stages, one after the other."""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sisa_ray.core.errors import IntegrityError
from sisa_ray.core.identity import Spec
from sisa_ray.core.keys import file_digest
from sisa_ray.core.planner import ShardPlan, StagePlan
from sisa_ray.core.records import SliceRef, StageRef
from sisa_ray.execution.embedding import embedded_slices, embedded_table
from sisa_ray.execution.events import CheckpointBroken, ShardEvent, StageFinished, StageProgress
from sisa_ray.execution.logs import shard_log
from sisa_ray.learning.arithmetic import platform_fingerprint
from sisa_ray.learning.backbone import Backbone, EmbeddedSlice, check_backbone
from sisa_ray.learning.ensemble import predict_constituent
from sisa_ray.learning.loader import Loader, make_loader
from sisa_ray.learning.parts import read_constituent
from sisa_ray.learning.recipe import Batch, RecipeFactory, RecipeSpec
from sisa_ray.learning.selfcheck import AloneHalf, ChainHalf, self_check_alone, self_check_chain
from sisa_ray.learning.team import Team
from sisa_ray.learning.trainer import Partial, StageResult, StageTask, train_stage
from sisa_ray.storage import layout
from sisa_ray.storage.checkpoints import PartialStore, read_checked
from sisa_ray.storage.objects import ObjectStore
from sisa_ray.storage.slices import open_slice
from sisa_ray.storage.tables import SliceFile

Floats = npt.NDArray[np.float64]

Emit = Callable[[ShardEvent], object]

_STOP_S = 60.0


@dataclass(frozen=True, kw_only=True)
class ActorContext:
    """What an actor is made for: the spec, and where the recipe's code is found."""

    spec: Spec
    search_path: tuple[str, ...]
    gang: Gang | None = None
    """How several workers are started; without it the actor trains by itself."""


@dataclass(frozen=True, kw_only=True)
class BuildJob:
    """Where the shards of a job live: the run's store, the role columns' schema (hex), the writer's attempt."""

    store: ObjectStore
    columns: str
    attempt: str

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the role columns."""
        return pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(self.columns)))


Gang = Callable[[ActorContext, BuildJob, ShardPlan, Emit, threading.Event], None]
"""Builds a plan with several workers; ended early once the event is set."""


class ShardActor:
    """Runs in a process of its own, with a shard's CPUs and GPU to itself."""

    def __init__(self, context: ActorContext) -> None:
        self._context = context
        self._spec = context.spec
        self._stopping = threading.Event()
        self._worker: threading.Thread | None = None
        self._backbone: Backbone | None = None
        # Only what is not there yet: the order of the worker's own path stays.
        sys.path.extend(p for p in context.search_path if p not in sys.path)

    @property
    def _recipe(self) -> RecipeSpec:
        recipe = self._spec.config.recipe
        return RecipeSpec(
            class_path=recipe.class_path,
            args=recipe.args,
            search_dirs=self._spec.code_dirs,
            code=self._spec.code,
        )

    def ready(self) -> dict[str, str]:
        """Load what training needs; the platform of this process.

        Raises:
            RunConflict: where this node has other recipe code than the run's spec.
        """
        self._recipe.load()
        if self._context.gang is not None:
            return {}  # its workers compute, and may be elsewhere
        return platform_fingerprint(self._spec.config.arithmetic)

    def build(self, job: BuildJob, plan: ShardPlan) -> Iterator[ShardEvent]:
        """Build the stages of ``plan``; events are yielded as things happen, a finished stage once durable."""
        events: queue.SimpleQueue[ShardEvent | BaseException | None] = queue.SimpleQueue()
        # The trainer blocks, so it has a thread of its own, and this one hands its events on.
        worker = threading.Thread(target=self._build_and_report, args=(job, plan, events.put), daemon=True)
        self._worker = worker
        worker.start()
        while (event := events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event
        worker.join()

    def stop(self) -> None:
        """Give up the build in progress, if its workers are others than this: they end before it returns."""
        self._stopping.set()
        if self._worker is not None:
            self._worker.join(_STOP_S)

    def self_check_chain(self, job: BuildJob, slices: Sequence[SliceRef]) -> ChainHalf:
        """The half of the self-check that goes through two stages in this process."""
        config = self._spec.config
        factory = self._recipe.factory(job.schema)
        tables = self._tables(job, slices)
        return self_check_chain(
            recipe=factory,
            tables=tables,
            sources=self._embedded(job, slices, factory) or tables,
            arithmetic=config.arithmetic,
            seed=config.sisa.seed,
            num_stages=config.sisa.num_slices,
            warm_start=config.sisa.warm_start,
            shard=slices[0].shard,
        )

    def self_check_alone(self, job: BuildJob, slices: Sequence[SliceRef], between: bytes) -> AloneHalf:
        """The half of the self-check that needs a process which has trained nothing yet."""
        config = self._spec.config
        factory = self._recipe.factory(job.schema)
        tables, embedded = self._tables(job, slices), self._embedded(job, slices, factory)
        if self._backbone is not None:
            check_backbone(factory, self._backbone, config.arithmetic, zip(tables, embedded, strict=True))
        return self_check_alone(
            recipe=factory,
            sources=embedded or tables,
            arithmetic=config.arithmetic,
            seed=config.sisa.seed,
            num_stages=config.sisa.num_slices,
            warm_start=config.sisa.warm_start,
            shard=slices[0].shard,
            between=between,
        )

    def predict(self, job: BuildJob, ref: StageRef, rows: pa.Table | Batch) -> Floats:
        """What one constituent says about each of ``rows``: role columns, or what :meth:`embed` made of them."""
        state = read_constituent(job.store, ref)
        return predict_constituent(
            self._recipe.factory(job.schema), state, rows, self._spec.config.arithmetic
        )

    def embed(self, job: BuildJob, table: pa.Table) -> Batch:
        """What the recipe's backbone makes of each row of ``table`` (role columns)."""
        backbone = self._shared(self._recipe.factory(job.schema))
        assert backbone is not None, "the run's recipe has a backbone"
        return embedded_table(self._spec, backbone, table)

    def _build_and_report(
        self, job: BuildJob, plan: ShardPlan, emit: Callable[[ShardEvent | BaseException | None], None]
    ) -> None:
        try:
            if self._context.gang is not None:
                self._context.gang(self._context, job, plan, emit, self._stopping)
                emit(None)
                return
            with shard_log(self._spec.config.name, plan.shard) as logger:
                logger.info("building stages %d to %d", plan.stages[0].stage, plan.stages[-1].stage)
                self._build(job, plan, emit, logger)
        except BaseException as error:  # whatever it is, the caller must see it
            emit(error)
        else:
            emit(None)

    def _build(self, job: BuildJob, plan: ShardPlan, emit: Emit, logger: logging.Logger) -> None:
        state: bytes | None = None
        if plan.start is not None:
            try:
                state = read_checked(job.store, plan.start)
            except IntegrityError as error:
                emit(CheckpointBroken(shard=plan.shard, stage=plan.start.stage, problem=str(error)))
                return
        last = plan.stages[-1].stage
        factory = self._recipe.factory(job.schema)
        loader = self._loader(job, plan.slices[:last], factory)
        platform = platform_fingerprint(self._spec.config.arithmetic)
        pending: Future[None] | None = None
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint") as writer:
            for number, stage in enumerate(plan.stages):
                started = time.monotonic()
                partials = PartialStore(
                    job.store, shard=plan.shard, stage=stage.stage, key=stage.key, attempt=job.attempt
                )
                # Only the first stage of a plan can have been cut short by a crash.
                stored = partials.latest() if number == 0 else None
                resume = Partial(step=stored.step, data=stored.data) if stored else None
                state = self._train(plan.shard, stage, factory, loader, state, partials, resume, emit).state
                seconds = time.monotonic() - started
                rate = stage.num_steps / max(seconds, 1e-9)
                logger.info(
                    "stage %d: %d steps in %.3f s, %.0f a second", stage.stage, stage.num_steps, seconds, rate
                )
                if pending is not None:
                    pending.result()  # at most one checkpoint waits: memory stays bounded
                ref = StageRef(
                    shard=plan.shard,
                    stage=stage.stage,
                    key=stage.key,
                    path=_path(plan.shard, stage, job.attempt),
                    file_digest=file_digest(state),
                    size_bytes=len(state),
                    num_steps=stage.num_steps,
                    record_visits=stage.num_steps * self._spec.batch_size,
                    seconds=round(seconds, 3),
                    platform=platform,
                )
                pending = writer.submit(_store_checkpoint, job.store, ref, state, partials, emit)
            if pending is not None:
                pending.result()

    def _train(
        self,
        shard: int,
        stage: StagePlan,
        factory: RecipeFactory,
        loader: Loader,
        start: bytes | None,
        partials: PartialStore,
        resume: Partial | None,
        emit: Emit,
        *,
        team: Team | None = None,
    ) -> StageResult:
        save: Callable[[int, bytes], None] | None = partials.save
        if team is not None:
            save = _save_together(team, partials)

        def report(step: int) -> None:
            emit(StageProgress(shard=shard, stage=stage.stage, step=step, num_steps=stage.num_steps))

        return train_stage(
            recipe=factory,
            data=loader,
            arithmetic=self._spec.config.arithmetic,
            task=StageTask(
                seed=self._spec.config.sisa.seed,
                shard=shard,
                stage=stage.stage,
                num_stages=stage.num_stages,
                num_steps=stage.num_steps,
                warm_start=self._spec.config.sisa.warm_start,
            ),
            start=start,
            resume=resume,
            on_partial=save,
            partial_every_s=self._spec.config.partial_checkpoint_every_s,
            on_progress=report,
            team=team,
        )

    def _shared(self, factory: RecipeFactory) -> Backbone | None:
        """The run's backbone, built once in this process; None where the recipe has none.

        Raises:
            RunConflict: where this node has another one.
        """
        if self._backbone is None and self._spec.backbone is not None:
            backbone = Backbone.build(factory, self._spec.config.arithmetic)
            if backbone is not None:
                backbone.require(self._spec.backbone)
            self._backbone = backbone
        return self._backbone

    def _embedded(
        self, job: BuildJob, slices: Sequence[SliceRef], factory: RecipeFactory
    ) -> list[EmbeddedSlice]:
        """What the backbone makes of each slice; nothing where there is none."""
        backbone = self._shared(factory)
        if backbone is None:
            return []
        return embedded_slices(self._spec, backbone, job.store, slices, attempt=job.attempt)

    def _tables(self, job: BuildJob, slices: Sequence[SliceRef]) -> list[SliceFile]:
        num_buckets = self._spec.config.sisa.order_buckets
        return [open_slice(job.store, ref, num_buckets=num_buckets) for ref in slices]

    def _loader(self, job: BuildJob, slices: Sequence[SliceRef], factory: RecipeFactory) -> Loader:
        config = self._spec.config
        return make_loader(
            self._embedded(job, slices, factory) or self._tables(job, slices),
            recipe=factory,
            seed=config.sisa.seed,
            arithmetic=config.arithmetic,
            mode=config.resources.loader,
        )


def _save_together(team: Team, partials: PartialStore) -> Callable[[int, bytes], None] | None:
    """How a mid-stage state is saved by one of several workers: each its part, or worker 0 the whole."""
    if team.shares_out:
        return partial(partials.save, together=partial(team.gather, None))
    return partials.save if team.rank == 0 else None


def _path(shard: int, stage: StagePlan, attempt: str) -> str | None:
    return layout.checkpoint_path(shard, stage.stage, attempt, stage.key) if stage.keep else None


def _store_checkpoint(
    store: ObjectStore, ref: StageRef, state: bytes, partials: PartialStore, emit: Emit
) -> None:
    """Payload first, then the event that has it committed."""
    if ref.path is not None:
        store.put(ref.path, state)
    emit(StageFinished(ref=ref))
    partials.clear()
