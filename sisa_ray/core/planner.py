"""What a run should be, what of that is missing, and what nothing names any more.

Training is building what is missing; unlearning changes slices and builds what is missing; crash recovery
builds what is missing. :func:`sisa_ray.core.step.step` says what comes next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sisa_ray.core.identity import Spec
from sisa_ray.core.lineage import feature_key, stage_keys
from sisa_ray.core.partition import Layout
from sisa_ray.core.records import SliceRef, StageRef
from sisa_ray.core.retention import kept_stages, nearest_kept
from sisa_ray.core.schedule import record_visits, stage_steps
from sisa_ray.core.segments import Segment, segments
from sisa_ray.core.state import Place, RunState


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage to build, and whether its checkpoint is kept."""

    stage: int
    key: str
    num_steps: int
    num_stages: int
    keep: bool


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """Consecutive stages of one shard, to be built from ``start`` (None: from the initial state)."""

    shard: int
    slices: tuple[SliceRef, ...]
    start: StageRef | None
    stages: tuple[StagePlan, ...]

    @property
    def num_steps(self) -> int:
        """Steps of all of them."""
        return sum(s.num_steps for s in self.stages)


def segments_of(spec: Spec, state: RunState) -> tuple[Segment, ...]:
    """The segments that the run has now."""
    return segments(spec.config.sisa.num_slices, [a.num_slices for a in state.appended])


def layouts_of(spec: Spec, state: RunState) -> tuple[Layout, ...]:
    """Where each ingest placed its records: a person has one candidate slice in each."""
    sisa = spec.config.sisa
    return tuple(
        Layout(
            num_shards=sisa.num_shards,
            num_slices=segment.num_slices,
            seed=sisa.seed,
            first_slice=segment.first,
        )
        for segment in segments_of(spec, state)
    )


class Lineage:
    """The wanted stage keys and steps of every shard, as the slices of ``state`` have them now."""

    def __init__(self, spec: Spec, state: RunState) -> None:
        self._spec = spec
        self._state = state
        self._stage_digest = spec.stage_digest
        self.segments = segments_of(spec, state)
        self._epochs = spec.config.sisa.epochs_of(self.segments[-1].last)
        self._settle_at = {segment.last for segment in self.segments}
        self._appended = {
            stage: {"epochs": str(self._epochs[stage - 1]), "segment": [segment.first, segment.last]}
            for segment in self.segments[1:]
            for stage in range(segment.first, segment.last + 1)
        }
        self._keys: dict[int, list[str]] = {}

    def slices(self, shard: int) -> tuple[SliceRef, ...]:
        """Slices 1..R of a shard."""
        return tuple(self._state.slices[shard, r] for r in range(1, self.segments[-1].last + 1))

    def keys(self, shard: int) -> list[str]:
        """Wanted keys of stages 1..R of a shard."""
        if shard not in self._keys:
            contents = [s.content_digest for s in self.slices(shard)]
            self._keys[shard] = stage_keys(self._stage_digest, shard, contents, self._appended)
        return self._keys[shard]

    def steps(self, shard: int) -> list[int]:
        """Steps of stages 1..R of a shard."""
        sizes = [s.num_records for s in self.slices(shard)]
        return stage_steps(sizes, self._epochs, self._spec.batch_size, settle_at=self._settle_at)

    def num_stages(self, stage: int) -> int:
        """Stages that a run had when this one's slices came: what a learning-rate schedule is told."""
        return next(segment.last for segment in self.segments if stage <= segment.last)

    def is_clean(self, ref: StageRef) -> bool:
        """Whether a built stage is the one that the slices as they are now would give."""
        return self.keys(ref.shard)[ref.stage - 1] == ref.key

    def latest_clean(self, shard: int, *, before: int | None = None) -> StageRef | None:
        """The last clean stage of a shard whose checkpoint exists: what may answer for the shard now.

        ``before``: the first slice that holds somebody who must not be known any more.
        """
        last = len(self.keys(shard)) if before is None else before - 1
        for stage in range(last, 0, -1):
            ref = self._state.stages.get((shard, stage))
            if ref is not None and ref.path is not None and self.is_clean(ref):
                return ref
        return None


def wanted_checkpoints(spec: Spec, state: RunState) -> set[int]:
    """Stages whose checkpoints are to be kept."""
    config = spec.config
    sizes = [ref.total_bytes for ref in state.stages.values()]
    return kept_stages(
        config.keep_checkpoints,
        num_stages=segments_of(spec, state)[-1].last,
        num_shards=config.sisa.num_shards,
        checkpoint_bytes=max(sizes, default=None),
    )


def missing_stages(
    spec: Spec, state: RunState, lineage: Lineage, shards: range | tuple[int, ...] | None = None
) -> tuple[ShardPlan, ...]:
    """What must be built so that every wanted stage is built and every kept checkpoint exists.

    One plan a shard: its first hole. A checkpoint that is missing beyond one that exists is a hole of its
    own, planned once the first is filled, so that the stages between them are not built again.
    """
    kept = wanted_checkpoints(spec, state)
    plans: list[ShardPlan] = []
    for shard in range(spec.config.sisa.num_shards) if shards is None else shards:
        keys = lineage.keys(shard)
        refs = [state.stages.get((shard, r)) for r in range(1, len(keys) + 1)]
        clean = [ref is not None and ref.key == key for ref, key in zip(refs, keys, strict=True)]
        present = {ref.stage for ref, ok in zip(refs, clean, strict=True) if ok and ref and ref.path}
        needed = [r for r in range(1, len(keys) + 1) if not clean[r - 1] or (r in kept and r not in present)]
        if not needed:
            continue
        steps = lineage.steps(shard)
        first = nearest_kept(present, needed[0]) + 1
        last = max(r for r in needed if nearest_kept(present, r) < needed[0])
        plans.append(
            ShardPlan(
                shard=shard,
                slices=lineage.slices(shard),
                start=refs[first - 2] if first > 1 else None,
                stages=tuple(
                    StagePlan(
                        stage=r,
                        key=keys[r - 1],
                        num_steps=steps[r - 1],
                        num_stages=lineage.num_stages(r),
                        keep=r in kept,
                    )
                    for r in range(first, last + 1)
                ),
            )
        )
    return tuple(plans)


def rebuild_visits(spec: Spec, state: RunState, affected: Iterable[Place]) -> int:
    """Record-visits that a batch which rewrote the slices ``affected`` costs, from their sizes alone.

    Each shard is rebuilt from the kept checkpoint before its first affected slice (none of them being lost).
    """
    lineage = Lineage(spec, state)
    kept = wanted_checkpoints(spec, state)
    first: dict[int, int] = {}
    for shard, slice_ in affected:
        first[shard] = min(slice_, first.get(shard, slice_))
    return sum(
        record_visits(lineage.steps(shard), spec.batch_size, nearest_kept(kept, slice_) + 1)
        for shard, slice_ in first.items()
    )


def predicted_rebuild_s(spec: Spec, state: RunState, *, num_subjects: int, num_slots: int) -> float:
    """Seconds that forgetting so many people may take, from the run's own stage times.

    An upper bound: each in a shard of their own, which is rebuilt from its first slice, ``num_slots`` at a time.
    Zero for a run that has trained nothing.
    """
    num_steps = sum(ref.num_steps for ref in state.stages.values())
    if not num_steps:
        return 0.0
    per_step = sum(ref.seconds for ref in state.stages.values()) / num_steps
    lineage = Lineage(spec, state)
    num_shards = spec.config.sisa.num_shards
    longest = max(sum(lineage.steps(shard)) for shard in range(num_shards))
    waves = -(-min(num_shards, num_subjects) // max(1, num_slots))
    return waves * longest * per_step


def full_retrain_visits(spec: Spec, state: RunState) -> int:
    """Record-visits of training every shard from scratch on the slices as they are now."""
    if state.ingested is None:
        return 0
    lineage = Lineage(spec, state)
    shards = range(spec.config.sisa.num_shards)
    return sum(record_visits(lineage.steps(k), spec.batch_size) for k in shards)


def named_paths(spec: Spec, state: RunState) -> set[str]:
    """Objects that the state names: everything else under the run is to be purged (log and spec aside)."""
    lineage = Lineage(spec, state)
    kept = wanted_checkpoints(spec, state)
    named = {s.path for s in state.slices.values() if s.path}
    for ref in state.stages.values():
        if ref.path and ref.stage in kept and lineage.is_clean(ref):
            named.update(ref.objects)
    # Once the slices are rewritten nobody needs to know who asked.
    named.update(path for path in state.payloads if state.needed_in(path))
    named.update(state.opened_payloads)
    return named


def holds_unkept(spec: Spec, state: RunState) -> bool:
    """Whether a checkpoint exists that is not kept any more: the configuration may now ask for fewer."""
    named = named_paths(spec, state)
    return any(ref.path is not None and ref.path not in named for ref in state.stages.values())


def wanted_partials(spec: Spec, state: RunState) -> set[str]:
    """Keys of stages still to be built, or built again: their mid-stage checkpoints may stay."""
    if state.ingested is None:
        return set()
    plans = missing_stages(spec, state, Lineage(spec, state))
    return {stage.key for plan in plans for stage in plan.stages}


def wanted_features(spec: Spec, state: RunState) -> set[str]:
    """Keys of the slices that there are: what a backbone made of them may stay, as long as they do."""
    if spec.backbone is None:
        return set()
    return {feature_key(spec.stage_digest, ref.content_digest) for ref in state.slices.values()}
