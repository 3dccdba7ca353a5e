"""Stand-ins for the operations behind the command line: they record how they were called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sisa_ray.core.records import StageRef
from sisa_ray.execution.events import (
    Notice,
    OnEvent,
    PhaseStarted,
    StageFinished,
    StageProgress,
    WorkPlanned,
    ignore,
)
from sisa_ray.execution.results import (
    BaselineResult,
    IngestResult,
    PredictResult,
    ShardSizes,
    StageStatus,
    StatusResult,
    TrainResult,
    UnlearnResult,
    UnlearnRow,
    VerifyResult,
)

ADDRESS = "/runs/mnist"
TAG = "0123456789abcdef" * 4

Outcome = Literal["forgotten", "unknown", "already forgotten"]
FORGOTTEN: Outcome = "forgotten"


def sizes(*shards: Sequence[int]) -> tuple[ShardSizes, ...]:
    return tuple(ShardSizes(shard=k, slices=tuple(s)) for k, s in enumerate(shards))


def stage_ref(shard: int, stage: int, num_steps: int) -> StageRef:
    return StageRef(
        shard=shard,
        stage=stage,
        key="k",
        path="p",
        file_digest="d",
        size_bytes=1,
        num_steps=num_steps,
        record_visits=num_steps * 16,
        seconds=1.0,
        platform={},
    )


def status_result(*shards: Sequence[int], **changes: Any) -> StatusResult:
    shards = shards or ((10, 11), (12, 13))
    result = StatusResult(
        address=ADDRESS,
        generation=1,
        num_records=sum(map(sum, shards)),
        num_suppressed=3,
        open_requests=0,
        purge_due=False,
        purge_trouble=None,
        device="cpu",
        num_log_entries=7,
        shards=sizes(*shards),
        stages=tuple(
            StageStatus(shard=k, stage=r, status="built", kept=True)
            for k, s in enumerate(shards)
            for r in range(1, len(s) + 1)
        ),
        last_verified=None,
        complete=True,
        next_step=None,
    )
    return result.model_copy(update=changes)


def unlearn_result(outcomes: Sequence[Outcome] = ("forgotten",), **changes: Any) -> UnlearnResult:
    result = UnlearnResult(
        request="r0",
        certificate="certificates/b0.json",
        address=ADDRESS,
        generation=2,
        num_subjects=len(outcomes),
        num_forgotten=outcomes.count("forgotten"),
        num_unknown=outcomes.count("unknown"),
        num_already_forgotten=outcomes.count("already forgotten"),
        num_records=4,
        slices_rewritten=1,
        shards_rebuilt=(1,),
        stages_rebuilt=2,
        record_visits=320,
        predicted_record_visits=320,
        full_retrain_record_visits=1600,
        objects_purged=5,
        seconds=1.5,
        rows=tuple(
            UnlearnRow(
                row=i,
                tag=f"{i:02d}{TAG[2:]}",
                outcome=outcome,
                shard=None if outcome == "unknown" else 1,
                slice=None if outcome == "unknown" else 2,
            )
            for i, outcome in enumerate(outcomes)
        ),
    )
    return result.model_copy(update=changes)


def verify_result(**changes: Any) -> VerifyResult:
    result = VerifyResult(
        address=ADDRESS,
        outcome="bit-identical",
        source="source tables",
        shards=(0, 1),
        num_slices=4,
        num_checkpoints=4,
        num_predictions=100,
        seconds=2.0,
    )
    return result.model_copy(update=changes)


def train_result(**changes: Any) -> TrainResult:
    result = TrainResult(
        address=ADDRESS,
        generation=1,
        num_shards=2,
        num_slices=2,
        num_records=46,
        stages_built=4,
        record_visits=1600,
        seconds=3.0,
        metric="accuracy",
        ensemble=0.9512,
        constituents=(0.91, None, 0.93),
    )
    return result.model_copy(update=changes)


@dataclass
class StandIns:
    """Takes the place of ``sisa_ray.execution.commands``. ``failure`` is raised by every command.

    ``during`` runs inside a command: what a library or a recipe might do.
    """

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    failure: BaseException | None = None
    during: Callable[[], None] = lambda: None
    verified: VerifyResult = field(default_factory=verify_result)
    outcomes: tuple[Outcome, ...] | None = None

    def _work(self, on_event: OnEvent, *call: object) -> None:
        self.calls.append(call)
        on_event(PhaseStarted(text="getting ready"))
        on_event(Notice(text="the disk is nearly full"))
        on_event(WorkPlanned(num_shards=1, num_stages=1, num_steps=10))
        on_event(StageProgress(shard=0, stage=1, step=5, num_steps=10))
        self.during()
        if self.failure is not None:
            raise self.failure
        on_event(StageFinished(ref=stage_ref(0, 1, 10)))

    def ingest(self, target: object, *, on_event: OnEvent = ignore) -> IngestResult:
        self._work(on_event, "ingest", target)
        return IngestResult(
            address=ADDRESS,
            already=False,
            num_rows=48,
            num_refused=2,
            num_records=46,
            shards=sizes((10, 11), (12, 13)),
        )

    def train(self, target: object, *, on_event: OnEvent = ignore) -> TrainResult:
        self._work(on_event, "train", target)
        return train_result()

    def unlearn(
        self, target: object, subjects: Sequence[str], *, on_event: OnEvent = ignore
    ) -> UnlearnResult:
        self._work(on_event, "unlearn", target, list(subjects))
        return unlearn_result(self.outcomes or (FORGOTTEN,) * len(subjects))

    def verify(
        self,
        target: object,
        *,
        shards: Sequence[int] | None = None,
        sample: int | None = None,
        on_event: OnEvent = ignore,
    ) -> VerifyResult:
        self._work(on_event, "verify", target, shards, sample)
        return self.verified

    def predict(
        self, target: object, table: str, *, out: str, rule: str | None = None, on_event: OnEvent = ignore
    ) -> PredictResult:
        self._work(on_event, "predict", target, table, out, rule)
        return PredictResult(
            address=ADDRESS,
            out=out,
            generation=1,
            num_rows=100,
            num_voters=2,
            rule="majority",
            mean_agreement=0.97,
            metric="accuracy",
            value=0.95,
        )

    def status(self, target: object) -> StatusResult:
        self._work(ignore, "status", target)
        return status_result()

    def baseline(
        self, target: object, kind: Literal["full", "one_shard"], *, on_event: OnEvent = ignore
    ) -> BaselineResult:
        self._work(on_event, "baseline", target, kind)
        return BaselineResult(
            address=ADDRESS,
            kind=kind,
            num_records=46,
            record_visits=1600,
            seconds=2.0,
            metric="accuracy",
            value=0.96,
        )
