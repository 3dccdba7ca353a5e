from __future__ import annotations

import pytest

from sisa_ray.core.planner import (
    Lineage,
    full_retrain_visits,
    missing_stages,
)
from sisa_ray.core.records import (
    BatchCertified,
    BatchClosed,
    GenerationPublished,
    RequestsFenced,
    SlicesRewritten,
    StageBuilt,
)
from sisa_ray.core.schedule import stage_steps
from sisa_ray.core.state import RunState, fold
from sisa_ray.core.step import (
    BuildStages,
    Certify,
    CloseBatch,
    FenceRequests,
    PlanBatch,
    Publish,
    Purge,
    RewriteSlices,
    step,
)
from tests.core.builders import accepted, make_slice, make_stage
from tests.core.planner_states import (
    ACCEPTED,
    FENCED,
    NUM_SHARDS,
    NUM_SLICES,
    PURGED,
    SIZES,
    built,
    ingested,
    lose,
    missing,
    planned,
    rewritten,
    spec_of,
    stages_of,
    trained,
)


class TestDecide:
    def test_nothing_to_do_before_ingest(self) -> None:
        assert step(spec_of(), RunState(), train=True) is None
        assert step(spec_of(), RunState(), train=False) is None

    def test_training_is_building_what_is_missing(self) -> None:
        decision = step(spec_of(), fold([ingested()]), train=True)
        assert isinstance(decision, BuildStages)
        assert stages_of(decision.shards) == {0: [1, 2, 3, 4, 5], 1: [1, 2, 3, 4, 5]}

    def test_ingest_alone_builds_nothing(self) -> None:
        assert step(spec_of(), fold([ingested()]), train=False) is None

    def test_what_is_complete_is_published_then_purged(self) -> None:
        spec, state = spec_of(), fold([ingested()])
        for record in built(spec, state):
            state.apply(record)
        lineage = Lineage(spec, state)
        keys = (lineage.keys(0)[-1], lineage.keys(1)[-1])
        assert step(spec, state, train=True) == Publish(generation=1, keys=keys)
        state.apply(GenerationPublished(generation=1, keys=keys))
        assert step(spec, state, train=True) == Purge()
        state.apply(PURGED)
        assert step(spec, state, train=True) is None
        assert step(spec, state, train=False) is None

    def test_a_requests_way(self) -> None:
        spec, state = spec_of(), trained(spec_of())
        state.apply(ACCEPTED)
        assert step(spec, state, train=False) == FenceRequests(requests=("r1",))
        state.apply(FENCED)
        assert step(spec, state, train=False) == PlanBatch(requests=("r1",))
        state.apply(planned((1, 3), (1, 4)))
        assert step(spec, state, train=False) == RewriteSlices(batch="b1")
        state.apply(rewritten((1, 3), (1, 4)))
        decision = step(spec, state, train=False)
        assert isinstance(decision, BuildStages)
        assert stages_of(decision.shards) == {1: [3, 4, 5]}
        assert decision.shards[0].start == state.stages[1, 2]
        assert decision.shards[0].num_steps == sum(Lineage(spec, state).steps(1)[2:])
        for record in built(spec, state, [(1, 3), (1, 4), (1, 5)]):
            state.apply(record)
        decision = step(spec, state, train=False)
        assert isinstance(decision, Publish)
        assert decision.generation == 2
        assert decision.keys[0] == state.published_keys[0]
        assert decision.keys[1] != state.published_keys[1]
        state.apply(GenerationPublished(generation=2, keys=decision.keys))
        assert step(spec, state, train=False) == Purge()
        state.apply(PURGED)
        assert step(spec, state, train=False) == CloseBatch(batch="b1")

    def test_a_batch_that_touches_nothing_is_purged_and_closed(self) -> None:
        """The payload names people, known or not."""
        spec, state = spec_of(), trained(spec_of())
        for record in (ACCEPTED, FENCED, planned(), SlicesRewritten(batch="b1", slices=())):
            state.apply(record)
        assert step(spec, state, train=False) == Purge()
        state.apply(PURGED)
        assert step(spec, state, train=False) == CloseBatch(batch="b1")

    def test_requests_are_batched_together(self) -> None:
        spec, state = spec_of(), trained(spec_of())
        state.apply(ACCEPTED)
        state.apply(accepted("r2", "joe"))
        state.apply(RequestsFenced(requests=("r1", "r2")))
        assert step(spec, state, train=False) == PlanBatch(requests=("r1", "r2"))

    def test_a_batch_planned_before_a_crash_is_rewritten_before_the_next_is_planned(self) -> None:
        spec, state = spec_of(), trained(spec_of())
        for record in (ACCEPTED, FENCED, planned((0, 1)), accepted("r2", "joe", payload="p")):
            state.apply(record)
        assert step(spec, state, train=False) == RewriteSlices(batch="b1")
        state.apply(rewritten((0, 1)))
        assert step(spec, state, train=False) == FenceRequests(requests=("r2",))
        state.apply(RequestsFenced(requests=("r2",)))
        assert step(spec, state, train=False) == PlanBatch(requests=("r2",))

    def test_an_unfinished_training_is_not_finished_by_a_request(self) -> None:
        spec, state = spec_of(), fold([ingested()])
        for record in [
            *built(spec, state, [(0, 1), (0, 2)]),
            ACCEPTED,
            FENCED,
            planned((0, 2)),
            rewritten((0, 2)),
        ]:
            state.apply(record)
        assert step(spec, state, train=False) == Purge()
        lose(state, (0, 2)).apply(PURGED)
        assert step(spec, state, train=False) == CloseBatch(batch="b1")
        state.apply(
            BatchClosed(
                batch="b1",
                stages_rebuilt=0,
                record_visits=0,
                full_retrain_record_visits=0,
                objects_purged=0,
                bytes_purged=0,
            )
        )
        assert step(spec, state, train=False) == Certify(batch="b1")
        state.apply(BatchCertified(batch="b1", path="certificates/b1.json", digest="d"))
        assert step(spec, state, train=False) is None
        decision = step(spec, state, train=True)
        assert isinstance(decision, BuildStages)
        assert stages_of(decision.shards) == {0: [2, 3, 4, 5], 1: [1, 2, 3, 4, 5]}

    def test_requests_before_ingest_are_kept_and_closed(self) -> None:
        spec = spec_of()
        state = fold([ACCEPTED, FENCED, planned(), SlicesRewritten(batch="b1", slices=()), PURGED])
        assert step(spec, state, train=False) == CloseBatch(batch="b1")
        assert full_retrain_visits(spec, state) == 0

    def test_the_same_keys_with_other_bits_are_published_anew(self) -> None:
        spec, state = spec_of(), lose(trained(spec_of()), (1, 5))
        key = state.stages[1, 5].key
        state.apply(StageBuilt(ref=make_stage(1, 5, key=key, file_digest="other")))
        decision = step(spec, state, train=True)
        assert isinstance(decision, Publish)
        assert decision.generation == 2

    def test_a_configuration_that_keeps_fewer_is_followed(self) -> None:
        spec, state = spec_of(keep=[2]), trained(spec_of())
        assert step(spec, state, train=False) == Purge()
        lose(state, *((k, r) for k, r in SIZES if r not in (2, 5)))
        state.apply(PURGED)
        assert step(spec, state, train=False) is None


class TestMissingStages:
    def test_nothing(self) -> None:
        assert missing(spec_of(), trained(spec_of())) == ()

    def test_plans_carry_what_building_needs(self) -> None:
        spec, state = spec_of(keep=[2]), fold([ingested()])
        plan = missing(spec, state)[1]
        sizes = [SIZES[1, r] for r in range(1, NUM_SLICES + 1)]
        assert plan.shard == 1
        assert [s.num_records for s in plan.slices] == sizes
        assert plan.start is None
        assert [s.num_steps for s in plan.stages] == stage_steps(
            sizes, spec.config.sisa.stage_epochs, spec.batch_size
        )
        assert [s.keep for s in plan.stages] == [False, True, False, False, True]
        assert [s.key for s in plan.stages] == Lineage(spec, state).keys(1)

    def test_some_shards(self) -> None:
        spec, state = spec_of(), fold([ingested()])
        assert [p.shard for p in missing_stages(spec, state, Lineage(spec, state), (1,))] == [1]

    @pytest.mark.parametrize("slice_", range(1, NUM_SLICES + 1))
    @pytest.mark.parametrize("shard", range(NUM_SHARDS))
    def test_any_slice_rebuilds_from_itself_on(self, shard: int, slice_: int) -> None:
        spec, state = spec_of(), trained(spec_of())
        for record in (ACCEPTED, planned((shard, slice_)), rewritten((shard, slice_))):
            state.apply(record)
        (plan,) = missing(spec, state)
        assert stages_of([plan]) == {shard: list(range(slice_, NUM_SLICES + 1))}
        assert plan.start == (state.stages[shard, slice_ - 1] if slice_ > 1 else None)

    def test_a_rebuild_starts_from_the_nearest_kept_checkpoint(self) -> None:
        spec, state = spec_of(keep=[2]), trained(spec_of(keep=[2]))
        for record in (ACCEPTED, planned((0, 5), (1, 2)), rewritten((0, 5), (1, 2))):
            state.apply(record)
        plans = missing(spec, state)
        assert stages_of(plans) == {0: [3, 4, 5], 1: [1, 2, 3, 4, 5]}
        assert plans[0].start == state.stages[0, 2]
        # What is built again on the way must give the bits that were logged.

    def test_a_lost_checkpoint_alone_is_rebuilt_alone(self) -> None:
        (plan,) = missing(spec_of(), lose(trained(spec_of()), (0, 3)))
        assert stages_of([plan]) == {0: [3]}
        assert plan.start is not None
        assert plan.start.stage == 2

    def test_checkpoints_that_are_not_kept_may_be_lost(self) -> None:
        assert missing(spec_of(keep=[2]), lose(trained(spec_of()), (0, 1), (0, 3), (1, 4))) == ()

    def test_a_lost_start_is_looked_for_further_back(self) -> None:
        state = lose(trained(spec_of()), (0, 2), (0, 3))
        for record in (ACCEPTED, planned((0, 4)), rewritten((0, 4))):
            state.apply(record)
        (plan,) = missing(spec_of(), state)
        assert stages_of([plan]) == {0: [2, 3, 4, 5]}

    def test_holes_apart_are_filled_one_by_one(self) -> None:
        """Stages between them that exist are not built again."""
        spec, state = spec_of(), lose(trained(spec_of()), (0, 1), (0, 2), (0, 4), (1, 5))
        assert stages_of(missing(spec, state)) == {0: [1, 2], 1: [5]}
        for record in built(spec, state, [(0, 1), (0, 2)]):
            state.apply(record)
        assert stages_of(missing(spec, state)) == {0: [4], 1: [5]}

    def test_holes_with_only_dropped_stages_between_are_one(self) -> None:
        spec, state = spec_of(keep=[1, 3]), lose(trained(spec_of(keep=[1, 3])), (0, 1), (0, 3))
        assert stages_of(missing(spec, state)) == {0: [1, 2, 3]}

    def test_other_bits_of_a_rebuilt_stage_rebuild_all_after_it(self) -> None:
        spec, state = spec_of(), lose(trained(spec_of()), (0, 2))
        state.apply(StageBuilt(ref=make_stage(0, 2, key=state.stages[0, 2].key, file_digest="other")))
        assert stages_of(missing(spec, state)) == {0: [3, 4, 5]}

    def test_empty_shards_are_built_too(self) -> None:
        """In no steps: their constituent is the initial state, and it does not vote."""
        empty = tuple(make_slice(*where, []) for where in SIZES)
        state = fold([ingested().model_copy(update={"slices": empty})])
        plans = missing(spec_of(), state)
        assert stages_of(plans) == {0: [1, 2, 3, 4, 5], 1: [1, 2, 3, 4, 5]}
        assert sum(p.num_steps for p in plans) == 0


class TestLineage:
    def test_latest_clean_is_what_may_answer_for_a_shard(self) -> None:
        spec, state = spec_of(), trained(spec_of())
        assert Lineage(spec, state).latest_clean(1) == state.stages[1, 5]
        for record in (ACCEPTED, planned((1, 4)), rewritten((1, 4))):
            state.apply(record)
        assert Lineage(spec, state).latest_clean(0) == state.stages[0, 5]
        assert Lineage(spec, state).latest_clean(1) == state.stages[1, 3]
        lose(state, (1, 3), (1, 2))
        assert Lineage(spec, state).latest_clean(1) == state.stages[1, 1]
        lose(state, (1, 1))
        assert Lineage(spec, state).latest_clean(1) is None
