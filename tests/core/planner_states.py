"""States of a small run, for the planner's tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sisa_ray.core.identity import Spec
from sisa_ray.core.places import Place
from sisa_ray.core.planner import (
    Lineage,
    ShardPlan,
    missing_stages,
    wanted_checkpoints,
)
from sisa_ray.core.records import (
    BatchPlanned,
    CheckpointLost,
    GenerationPublished,
    Purged,
    Record,
    RequestsFenced,
    SlicesRewritten,
    StageBuilt,
    TableIngested,
)
from sisa_ray.core.state import RunState, fold
from sisa_ray.core.step import (
    step,
)
from tests.core.builders import accepted, make_slice, make_spec, make_stage

NUM_SHARDS, NUM_SLICES = 2, 5
SIZES = {(k, r): 3 + k + r for k in range(NUM_SHARDS) for r in range(1, NUM_SLICES + 1)}
ACCEPTED = accepted("r1", "ada")
FENCED = RequestsFenced(requests=("r1",))
PURGED = Purged(attempt="a0", num_objects=1, num_bytes=1)


def spec_of(keep: object = "all") -> Spec:
    sisa = {"num_shards": NUM_SHARDS, "num_slices": NUM_SLICES, "epochs": 4}
    return make_spec(sisa=sisa, keep_checkpoints=keep)


def ingested() -> TableIngested:
    slices = tuple(make_slice(*where, [f"{where}{i}" for i in range(n)]) for where, n in SIZES.items())
    return TableIngested(attempt="a0", columns="", slices=slices, num_rows=sum(SIZES.values()), num_refused=0)


def planned(*affected: Place, batch: str = "b1", request: str = "r1") -> BatchPlanned:
    return BatchPlanned(batch=batch, requests=(request,), unknown=(), num_records=1, affected=affected)


def rewritten(*affected: Place, batch: str = "b1") -> SlicesRewritten:
    """The slices without their first record."""
    slices = (make_slice(*w, [f"{w}{i}" for i in range(1, SIZES[w])], attempt="a1") for w in affected)
    return SlicesRewritten(batch=batch, slices=tuple(slices))


def built(spec: Spec, state: RunState, places: Iterable[Place] | None = None) -> list[Record]:
    """Records of the stages that ``state`` wants, built."""
    lineage, kept = Lineage(spec, state), wanted_checkpoints(spec, state)
    return [
        StageBuilt(
            ref=make_stage(
                k, r, key=lineage.keys(k)[r - 1], kept=r in kept, num_steps=lineage.steps(k)[r - 1]
            )
        )
        for k, r in (SIZES if places is None else places)
    ]


def trained(spec: Spec) -> RunState:
    """A run that has nothing left to do."""
    state = fold([ingested()])
    for record in built(spec, state):
        state.apply(record)
    lineage = Lineage(spec, state)
    state.apply(GenerationPublished(generation=1, keys=tuple(lineage.keys(k)[-1] for k in range(NUM_SHARDS))))
    state.apply(PURGED)
    assert step(spec, state, train=True) is None
    return state


def lose(state: RunState, *places: Place) -> RunState:
    for k, r in places:
        state.apply(CheckpointLost(shard=k, stage=r, reason="missing"))
    return state


def stages_of(plans: Sequence[ShardPlan]) -> dict[int, list[int]]:
    return {plan.shard: [s.stage for s in plan.stages] for plan in plans}


def missing(spec: Spec, state: RunState) -> tuple[ShardPlan, ...]:
    return missing_stages(spec, state, Lineage(spec, state))
