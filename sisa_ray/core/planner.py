"""What a run should be, what of that is missing, and what nothing names any more.

Training is building what is missing; unlearning changes slices and builds what is missing; crash recovery
builds what is missing. :func:`sisa_ray.core.step.step` says what comes next.

All of it is asked for again after every entry of the log, of which each touches a few shards. So what follows from a
shard's slices and stages is kept with them (:meth:`~sisa_ray.core.places.Places.derived`) until they change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate

from sisa_ray.core.identity import Spec
from sisa_ray.core.lineage import feature_key, stage_keys
from sisa_ray.core.partition import Layout
from sisa_ray.core.places import Place
from sisa_ray.core.records import SliceRef, StageRef
from sisa_ray.core.retention import kept_stages, nearest_kept
from sisa_ray.core.schedule import record_visits, stage_steps
from sisa_ray.core.segments import Segment, segments
from sisa_ray.core.state import RunState


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
    first, *appended = segments_of(spec, state)
    assert first.num_slices == spec.config.sisa.num_slices
    return (
        spec.layout(),
        *(spec.layout(num_slices=s.num_slices, first_slice=s.first) for s in appended),
    )


class Lineage:
    """The wanted stage keys and steps of every shard, as the slices of ``state`` have them now."""

    def __init__(self, spec: Spec, state: RunState) -> None:
        self._spec = spec
        self._state = state
        self._stage_digest = _stage_digest(spec)
        self.segments = segments_of(spec, state)
        self._name = (self._stage_digest, spec.batch_size, self.segments[-1].last)

    @cached_property
    def _epochs(self) -> list[Fraction]:
        return self._spec.config.sisa.epochs_of(self.segments[-1].last)

    @cached_property
    def _appended(self) -> dict[int, dict[str, object]]:
        return {
            stage: {"epochs": str(self._epochs[stage - 1]), "segment": [segment.first, segment.last]}
            for segment in self.segments[1:]
            for stage in range(segment.first, segment.last + 1)
        }

    def slices(self, shard: int) -> tuple[SliceRef, ...]:
        """Slices 1..R of a shard."""
        rows = self._state.slices.of(shard)
        return tuple(rows[r] for r in range(1, self.segments[-1].last + 1))

    def keys(self, shard: int) -> Sequence[str]:
        """Wanted keys of stages 1..R of a shard."""
        derived = self._state.slices.derived(shard)
        name = ("keys", self._name)
        if name not in derived:
            contents = [s.content_digest for s in self.slices(shard)]
            derived[name] = stage_keys(self._stage_digest, shard, contents, self._appended)
        keys: Sequence[str] = derived[name]
        return keys

    def steps(self, shard: int) -> Sequence[int]:
        """Steps of stages 1..R of a shard."""
        derived = self._state.slices.derived(shard)
        name = ("steps", self._name)
        if name not in derived:
            sizes = [s.num_records for s in self.slices(shard)]
            settle_at = {segment.last for segment in self.segments}
            derived[name] = stage_steps(sizes, self._epochs, self._spec.batch_size, settle_at=settle_at)
        steps: Sequence[int] = derived[name]
        return steps

    def num_steps(self, shard: int) -> int:
        """Steps of all stages of a shard."""
        derived = self._state.slices.derived(shard)
        name = ("num_steps", self._name)
        if name not in derived:
            derived[name] = sum(self.steps(shard))
        num_steps: int = derived[name]
        return num_steps

    def num_records(self, shard: int, last: int) -> int:
        """Records in slices 1..``last`` of a shard."""
        derived = self._state.slices.derived(shard)
        if "records" not in derived:
            rows = self._state.slices.of(shard)
            derived["records"] = [0, *accumulate(rows[r].num_records for r in sorted(rows))]
        records: Sequence[int] = derived["records"]
        return records[last]

    @property
    def last_stage(self) -> int:
        """R, with all appends."""
        return self.segments[-1].last

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


_DIGESTS: dict[int, tuple[Spec, str]] = {}
_MOST_DIGESTS = 8


def _stage_digest(spec: Spec) -> str:
    """:attr:`Spec.stage_digest`, of the same object worked out once: it takes milliseconds."""
    known = _DIGESTS.get(id(spec))
    if known is None or known[0] is not spec:
        if len(_DIGESTS) >= _MOST_DIGESTS:
            _DIGESTS.clear()
        known = _DIGESTS[id(spec)] = (spec, spec.stage_digest)
    return known[1]


@dataclass(frozen=True, kw_only=True)
class _Built:
    """What the stages of a shard add up to."""

    num_steps: int
    seconds: float
    largest_bytes: int | None


def _built(state: RunState, shard: int) -> _Built:
    derived = state.stages.derived(shard)
    if "built" not in derived:
        refs = state.stages.of(shard).values()
        derived["built"] = _Built(
            num_steps=sum(ref.num_steps for ref in refs),
            seconds=sum(ref.seconds for ref in refs),
            largest_bytes=max((ref.total_bytes for ref in refs), default=None),
        )
    built: _Built = derived["built"]
    return built


def wanted_checkpoints(spec: Spec, state: RunState) -> frozenset[int]:
    """Stages whose checkpoints are to be kept."""
    config = spec.config
    checkpoint_bytes = None
    if isinstance(config.keep_checkpoints, int):
        sizes = [_built(state, shard).largest_bytes for shard in state.stages.shards]
        checkpoint_bytes = max((size for size in sizes if size is not None), default=None)
    return frozenset(
        kept_stages(
            config.keep_checkpoints,
            num_stages=segments_of(spec, state)[-1].last,
            num_shards=config.sisa.num_shards,
            checkpoint_bytes=checkpoint_bytes,
        )
    )


def missing_stages(
    spec: Spec, state: RunState, lineage: Lineage, shards: range | tuple[int, ...] | None = None
) -> tuple[ShardPlan, ...]:
    """What must be built so that every wanted stage is built and every kept checkpoint exists.

    One plan a shard: its first hole. A checkpoint that is missing beyond one that exists is a hole of its
    own, planned once the first is filled, so that the stages between them are not built again.
    """
    kept = wanted_checkpoints(spec, state)
    chosen = range(spec.config.sisa.num_shards) if shards is None else shards
    plans = (_shard_status(state, lineage, shard, kept).plan for shard in chosen)
    return tuple(plan for plan in plans if plan is not None)


@dataclass(frozen=True, kw_only=True)
class _ShardStatus:
    """What a shard lacks, and whether it has a checkpoint that is not kept, by these keys and kept stages."""

    keys: Sequence[str]
    kept: frozenset[int]
    plan: ShardPlan | None
    holds_unkept: bool


def _shard_status(state: RunState, lineage: Lineage, shard: int, kept: frozenset[int]) -> _ShardStatus:
    derived = state.stages.derived(shard)
    keys = lineage.keys(shard)
    known: _ShardStatus | None = derived.get("status")
    if known is None or known.keys is not keys or known.kept != kept:
        known = derived["status"] = _ShardStatus(
            keys=keys,
            kept=kept,
            plan=_shard_plan(state, lineage, shard, kept),
            holds_unkept=any(
                ref.path is not None and not (r in kept and ref.key == keys[r - 1])
                for r, ref in state.stages.of(shard).items()
            ),
        )
    return known


def _shard_plan(state: RunState, lineage: Lineage, shard: int, kept: frozenset[int]) -> ShardPlan | None:
    keys = lineage.keys(shard)
    rows = state.stages.of(shard)
    refs = [rows.get(r) for r in range(1, len(keys) + 1)]
    clean = [ref is not None and ref.key == key for ref, key in zip(refs, keys, strict=True)]
    present = {ref.stage for ref, ok in zip(refs, clean, strict=True) if ok and ref and ref.path}
    needed = [r for r in range(1, len(keys) + 1) if not clean[r - 1] or (r in kept and r not in present)]
    if not needed:
        return None
    steps = lineage.steps(shard)
    first = nearest_kept(present, needed[0]) + 1
    last = max(r for r in needed if nearest_kept(present, r) < needed[0])
    return ShardPlan(
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
    built = [_built(state, shard) for shard in state.stages.shards]
    num_steps = sum(shard.num_steps for shard in built)
    if not num_steps:
        return 0.0
    per_step = sum(shard.seconds for shard in built) / num_steps
    lineage = Lineage(spec, state)
    num_shards = spec.config.sisa.num_shards
    longest = max(lineage.num_steps(shard) for shard in range(num_shards))
    waves = -(-min(num_shards, num_subjects) // max(1, num_slots))
    return waves * longest * per_step


def full_retrain_visits(spec: Spec, state: RunState) -> int:
    """Record-visits of training every shard from scratch on the slices as they are now."""
    if state.ingested is None:
        return 0
    lineage = Lineage(spec, state)
    return spec.batch_size * sum(lineage.num_steps(k) for k in range(spec.config.sisa.num_shards))


def named_paths(spec: Spec, state: RunState, shards: Iterable[int] | None = None) -> set[str]:
    """Objects that the state names: everything else under the run is to be purged (log and spec aside).

    ``shards``: of slices and checkpoints, only those of these shards.
    """
    lineage = Lineage(spec, state)
    kept = wanted_checkpoints(spec, state)
    chosen = {*state.slices.shards, *state.stages.shards} if shards is None else shards
    named = {s.path for shard in chosen for s in state.slices.of(shard).values() if s.path}
    for ref in (ref for shard in chosen for ref in state.stages.of(shard).values()):
        if ref.path and ref.stage in kept and lineage.is_clean(ref):
            named.update(ref.objects)
    # Once the slices are rewritten nobody needs to know who asked.
    named.update(path for path in state.payloads if state.needed_in(path))
    named.update(state.opened_payloads)
    return named


def unkept_shards(spec: Spec, state: RunState) -> list[int]:
    """Shards of which a checkpoint exists that is not kept any more: the configuration may now ask for fewer."""
    lineage, kept = Lineage(spec, state), wanted_checkpoints(spec, state)
    shards = state.stages.shards
    return [shard for shard in shards if _shard_status(state, lineage, shard, kept).holds_unkept]


def wanted_partials(spec: Spec, state: RunState) -> set[str]:
    """Keys of stages still to be built, or built again: their mid-stage checkpoints may stay."""
    if state.ingested is None:
        return set()
    plans = missing_stages(spec, state, Lineage(spec, state))
    return {stage.key for plan in plans for stage in plan.stages}


def wanted_features(spec: Spec, state: RunState, shards: Iterable[int] | None = None) -> set[str]:
    """Keys of the slices that there are: what a backbone made of them may stay, as long as they do.

    ``shards``: only those of these shards.
    """
    if spec.backbone is None:
        return set()
    digest = _stage_digest(spec)
    refs = (
        ref
        for k in (state.slices.shards if shards is None else shards)
        for ref in state.slices.of(k).values()
    )
    return {feature_key(digest, ref.content_digest) for ref in refs}
