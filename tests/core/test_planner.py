from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sisa_ray.core.identity import Spec
from sisa_ray.core.planner import (
    BuildStages,
    CloseBatch,
    Lineage,
    PlanBatch,
    Publish,
    Purge,
    RewriteSlices,
    ShardPlan,
    decide,
    full_retrain_visits,
    missing_stages,
    named_paths,
    rebuild_visits,
    wanted_checkpoints,
    wanted_partials,
)
from sisa_ray.core.records import (
    BatchClosed,
    BatchPlanned,
    CheckpointLost,
    GenerationPublished,
    Purged,
    Record,
    RequestAccepted,
    SlicesRewritten,
    StageBuilt,
    TableIngested,
)
from sisa_ray.core.schedule import stage_steps
from sisa_ray.core.state import Place, RunState, fold
from tests.core.builders import make_slice, make_spec, make_stage
from tests.core.simulation import SIZE_BYTES, Crash, World

NUM_SHARDS, NUM_SLICES = 2, 5
SIZES = {(k, r): 3 + k + r for k in range(NUM_SHARDS) for r in range(1, NUM_SLICES + 1)}
ACCEPTED = RequestAccepted(request="r1", tags=("ada",), payload="requests/r1")
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
    assert decide(spec, state, train=True) is None
    return state


def lose(state: RunState, *places: Place) -> RunState:
    for k, r in places:
        state.apply(CheckpointLost(shard=k, stage=r, reason="missing"))
    return state


def stages_of(plans: Sequence[ShardPlan]) -> dict[int, list[int]]:
    return {plan.shard: [s.stage for s in plan.stages] for plan in plans}


def missing(spec: Spec, state: RunState) -> tuple[ShardPlan, ...]:
    return missing_stages(spec, state, Lineage(spec, state))


class TestDecide:
    def test_nothing_to_do_before_ingest(self) -> None:
        assert decide(spec_of(), RunState(), train=True) is None
        assert decide(spec_of(), RunState(), train=False) is None

    def test_training_is_building_what_is_missing(self) -> None:
        decision = decide(spec_of(), fold([ingested()]), train=True)
        assert isinstance(decision, BuildStages)
        assert stages_of(decision.shards) == {0: [1, 2, 3, 4, 5], 1: [1, 2, 3, 4, 5]}

    def test_ingest_alone_builds_nothing(self) -> None:
        assert decide(spec_of(), fold([ingested()]), train=False) is None

    def test_what_is_complete_is_published_then_purged(self) -> None:
        spec, state = spec_of(), fold([ingested()])
        for record in built(spec, state):
            state.apply(record)
        lineage = Lineage(spec, state)
        keys = (lineage.keys(0)[-1], lineage.keys(1)[-1])
        assert decide(spec, state, train=True) == Publish(generation=1, keys=keys)
        state.apply(GenerationPublished(generation=1, keys=keys))
        assert decide(spec, state, train=True) == Purge()
        state.apply(PURGED)
        assert decide(spec, state, train=True) is None
        assert decide(spec, state, train=False) is None

    def test_a_requests_way(self) -> None:
        spec, state = spec_of(), trained(spec_of())
        state.apply(ACCEPTED)
        assert decide(spec, state, train=False) == PlanBatch(requests=("r1",))
        state.apply(planned((1, 3), (1, 4)))
        assert decide(spec, state, train=False) == RewriteSlices(batch="b1")
        state.apply(rewritten((1, 3), (1, 4)))
        decision = decide(spec, state, train=False)
        assert isinstance(decision, BuildStages)
        assert stages_of(decision.shards) == {1: [3, 4, 5]}
        assert decision.shards[0].start == state.stages[1, 2]
        assert decision.shards[0].num_steps == sum(Lineage(spec, state).steps(1)[2:])
        for record in built(spec, state, [(1, 3), (1, 4), (1, 5)]):
            state.apply(record)
        decision = decide(spec, state, train=False)
        assert isinstance(decision, Publish)
        assert decision.generation == 2
        assert decision.keys[0] == state.published_keys[0]
        assert decision.keys[1] != state.published_keys[1]
        state.apply(GenerationPublished(generation=2, keys=decision.keys))
        assert decide(spec, state, train=False) == Purge()
        state.apply(PURGED)
        assert decide(spec, state, train=False) == CloseBatch(batch="b1")

    def test_a_batch_that_touches_nothing_is_purged_and_closed(self) -> None:
        """The payload names people, known or not."""
        spec, state = spec_of(), trained(spec_of())
        for record in (ACCEPTED, planned(), SlicesRewritten(batch="b1", slices=())):
            state.apply(record)
        assert decide(spec, state, train=False) == Purge()
        state.apply(PURGED)
        assert decide(spec, state, train=False) == CloseBatch(batch="b1")

    def test_requests_are_batched_together(self) -> None:
        spec, state = spec_of(), trained(spec_of())
        state.apply(ACCEPTED)
        state.apply(RequestAccepted(request="r2", tags=("joe",), payload="requests/r2"))
        assert decide(spec, state, train=False) == PlanBatch(requests=("r1", "r2"))

    def test_a_batch_planned_before_a_crash_is_rewritten_before_the_next_is_planned(self) -> None:
        spec, state = spec_of(), trained(spec_of())
        for record in (ACCEPTED, planned((0, 1)), RequestAccepted(request="r2", tags=("joe",), payload="p")):
            state.apply(record)
        assert decide(spec, state, train=False) == RewriteSlices(batch="b1")
        state.apply(rewritten((0, 1)))
        assert decide(spec, state, train=False) == PlanBatch(requests=("r2",))

    def test_an_unfinished_training_is_not_finished_by_a_request(self) -> None:
        spec, state = spec_of(), fold([ingested()])
        for record in [*built(spec, state, [(0, 1), (0, 2)]), ACCEPTED, planned((0, 2)), rewritten((0, 2))]:
            state.apply(record)
        assert decide(spec, state, train=False) == Purge()
        lose(state, (0, 2)).apply(PURGED)
        assert decide(spec, state, train=False) == CloseBatch(batch="b1")
        state.apply(
            BatchClosed(
                batch="b1", stages_rebuilt=0, record_visits=0, full_retrain_record_visits=0, objects_purged=0
            )
        )
        decision = decide(spec, state, train=True)
        assert isinstance(decision, BuildStages)
        assert stages_of(decision.shards) == {0: [2, 3, 4, 5], 1: [1, 2, 3, 4, 5]}

    def test_requests_before_ingest_are_kept_and_closed(self) -> None:
        spec = spec_of()
        state = fold([ACCEPTED, planned(), SlicesRewritten(batch="b1", slices=()), PURGED])
        assert decide(spec, state, train=False) == CloseBatch(batch="b1")
        assert full_retrain_visits(spec, state) == 0

    def test_the_same_keys_with_other_bits_are_published_anew(self) -> None:
        spec, state = spec_of(), lose(trained(spec_of()), (1, 5))
        key = state.stages[1, 5].key
        state.apply(StageBuilt(ref=make_stage(1, 5, key=key, file_digest="other")))
        decision = decide(spec, state, train=True)
        assert isinstance(decision, Publish)
        assert decision.generation == 2

    def test_a_configuration_that_keeps_fewer_is_followed(self) -> None:
        spec, state = spec_of(keep=[2]), trained(spec_of())
        assert decide(spec, state, train=False) == Purge()
        lose(state, *((k, r) for k, r in SIZES if r not in (2, 5)))
        state.apply(PURGED)
        assert decide(spec, state, train=False) is None


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
        assert [s.expected_digest for s in plan.stages] == [None] * NUM_SLICES

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
        assert [s.expected_digest for s in plans[0].stages] == ["f0", "f0", None]

    def test_a_lost_checkpoint_alone_is_rebuilt_alone(self) -> None:
        (plan,) = missing(spec_of(), lose(trained(spec_of()), (0, 3)))
        assert stages_of([plan]) == {0: [3]}
        assert plan.start is not None
        assert plan.start.stage == 2
        assert plan.stages[0].expected_digest == "f0"

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


class TestNamedPaths:
    def test_everything_of_a_finished_run(self) -> None:
        spec, state = spec_of(), trained(spec_of())
        slices, stages = state.slices.values(), state.stages.values()
        assert named_paths(spec, state) == {s.path for s in slices} | {s.path for s in stages}
        assert len(named_paths(spec, state)) == 2 * len(SIZES)

    def test_what_is_tainted_goes_with_the_rewriting(self) -> None:
        spec, state = spec_of(), trained(spec_of())
        before = named_paths(spec, state)
        state.apply(ACCEPTED)
        assert named_paths(spec, state) == before | {"requests/r1"}
        state.apply(planned((0, 4), (1, 5)))
        assert named_paths(spec, state) == before | {"requests/r1"}
        state.apply(rewritten((0, 4), (1, 5)))
        stale = {
            "data/0/4/a0",
            "data/1/5/a0",
            "checkpoints/0/4/a0",
            "checkpoints/0/5/a0",
            "checkpoints/1/5/a0",
        }
        assert named_paths(spec, state) == before - stale | {"data/0/4/a1", "data/1/5/a1"}

    def test_a_slice_that_became_empty_names_nothing(self) -> None:
        spec, state = spec_of(), trained(spec_of())
        for record in (
            ACCEPTED,
            planned((0, 1)),
            SlicesRewritten(batch="b1", slices=(make_slice(0, 1, []),)),
        ):
            state.apply(record)
        assert not [
            path for path in named_paths(spec, state) if path.startswith(("data/0/1/", "checkpoints/0"))
        ]

    def test_only_kept_checkpoints(self) -> None:
        state = trained(spec_of())
        named = named_paths(spec_of(keep=[2]), state)
        assert {p for p in named if p.startswith("checkpoints")} == {
            f"checkpoints/{k}/{r}/a0" for k in range(NUM_SHARDS) for r in (2, 5)
        }

    def test_a_budget_in_bytes_is_kept(self) -> None:
        state = trained(spec_of())
        for affordable in range(1, NUM_SLICES + 1):
            spec = spec_of(keep=affordable * NUM_SHARDS * 100)
            named = {p for p in named_paths(spec, state) if p.startswith("checkpoints")}
            assert len(named) == affordable * NUM_SHARDS

    def test_before_ingest(self) -> None:
        assert named_paths(spec_of(), fold([ACCEPTED])) == {"requests/r1"}


class TestWantedPartials:
    def test_of_what_is_still_to_be_built(self) -> None:
        spec, state = spec_of(), fold([ingested()])
        keys = {key for k in range(NUM_SHARDS) for key in Lineage(spec, state).keys(k)}
        assert wanted_partials(spec, state) == keys
        for record in built(spec, state, [(0, 1), (0, 2)]):
            state.apply(record)
        assert wanted_partials(spec, state) == keys - set(Lineage(spec, state).keys(0)[:2])

    def test_none_of_a_finished_run_or_of_none(self) -> None:
        assert wanted_partials(spec_of(), trained(spec_of())) == set()
        assert wanted_partials(spec_of(), RunState()) == set()

    def test_tainted_ones_are_not_wanted(self) -> None:
        spec, state = spec_of(), fold([ingested()])
        before = wanted_partials(spec, state)
        for record in (ACCEPTED, planned((0, 1), (1, 1)), rewritten((0, 1), (1, 1))):
            state.apply(record)
        assert not wanted_partials(spec, state) & before

    def test_a_checkpoint_that_is_built_again_may_use_its_partials(self) -> None:
        spec, state = spec_of(), lose(trained(spec_of()), (0, 3))
        assert wanted_partials(spec, state) == {state.stages[0, 3].key}


class TestVisits:
    def test_full_retraining(self) -> None:
        spec, state = spec_of(), trained(spec_of())
        steps = sum(sum(Lineage(spec, state).steps(k)) for k in range(NUM_SHARDS))
        assert full_retrain_visits(spec, state) == steps * spec.batch_size

    @pytest.mark.parametrize("keep", ["all", [2], [1, 4], []])
    @pytest.mark.parametrize(
        "affected", [[], [(0, 1)], [(1, 3)], [(0, 5), (0, 2), (0, 4)], [(0, 4), (1, 5), (1, 1)]]
    )
    def test_a_batch_costs_what_its_slices_predict(self, keep: object, affected: list[Place]) -> None:
        spec, state = spec_of(keep=keep), trained(spec_of(keep=keep))
        for record in (ACCEPTED, planned(*affected), rewritten(*affected)):
            state.apply(record)
        # Slow: the steps of every stage from the kept one before the first affected slice on.
        kept = {0, *wanted_checkpoints(spec, state)}
        slow = 0
        for shard in {k for k, _ in affected}:
            first = min(r for k, r in affected if k == shard)
            start = max(r for r in kept if r < first)
            slow += sum(Lineage(spec, state).steps(shard)[start:]) * spec.batch_size
        assert rebuild_visits(spec, state, affected) == slow
        assert sum(p.num_steps for p in missing(spec, state)) * spec.batch_size == slow


KEEPS: list[object] = ["all", [], [1], [2, 3], 2 * SIZE_BYTES * 2, 1]


def make_world(
    table: dict[str, str], *, keep: object = "all", num_shards: int = 2, num_slices: int = 3
) -> World:
    spec = make_spec(
        sisa={"num_shards": num_shards, "num_slices": num_slices, "epochs": 3},
        keep_checkpoints=keep,
        batch_size=2,
    )
    return World(spec, table)


def table_of(num_subjects: int) -> dict[str, str]:
    """Every third subject has two records."""
    table = {f"r{i}": f"s{i}" for i in range(num_subjects)}
    return table | {f"x{i}": f"s{i}" for i in range(0, num_subjects, 3)}


Script = list[Callable[[World], None]]


def script_of(*batches: Sequence[str]) -> Script:
    return [World.train, *((lambda w, b=batch: w.unlearn(b)) for batch in batches)]


def run(world: World, script: Script, crashes: Iterable[int] = ()) -> World:
    """Run a script of commands. After each crash the same command is given again, as a user would."""
    left = iter(crashes)
    world.crash_in = next(left, None)
    for command in script:
        while True:
            try:
                command(world)
            except Crash:
                world.crash()
                world.crash_in = next(left, None)
            else:
                break
    return world


def never_known(world: World, forgotten: Iterable[str]) -> World:
    """A run from scratch on the table without the ``forgotten``."""
    rest = {record: subject for record, subject in world.table.items() if subject not in set(forgotten)}
    return run(World(world.spec, rest), [World.train])


def contents(world: World) -> tuple[object, object]:
    """What the contract says is bit for bit the same."""
    summary = world.summary()
    return summary["slices"], summary["stages"]


BATCHES = (["s1", "s4", "nobody"], ["s1", "s2"], ["s0", "s3", "s5", "s6", "s7"])


class TestCrashes:
    @pytest.mark.parametrize("keep", ["all", [1], 2 * SIZE_BYTES * 2], ids=str)
    def test_a_crash_at_any_step_ends_in_the_same_run(self, keep: object) -> None:
        script = script_of(*BATCHES)
        whole = run(make_world(table_of(9), keep=keep), script)
        whole.check_finished()
        assert contents(whole) == contents(never_known(whole, {s for b in BATCHES for s in b}))
        for step in range(whole.num_actions):
            crashed = run(make_world(table_of(9), keep=keep), script, [step])
            crashed.check_finished()
            assert crashed.summary() == whole.summary()
            if keep == "all":  # then no stage that was committed is built again, and costs are the same
                assert crashed.stages_rebuilt == whole.stages_rebuilt
                assert crashed.costs() == whole.costs()

    @given(st.data())
    @settings(max_examples=40, deadline=None)
    def test_crashes_upon_crashes(self, data: st.DataObject) -> None:
        num_subjects = data.draw(st.integers(0, 10))
        subjects = [f"s{i}" for i in range(num_subjects + 2)]
        batches = data.draw(st.lists(st.lists(st.sampled_from(subjects), unique=True), max_size=3))
        keep = data.draw(st.sampled_from(KEEPS))
        shape = {"num_shards": data.draw(st.integers(1, 3)), "num_slices": data.draw(st.integers(3, 4))}
        script = script_of(*batches)
        whole = run(make_world(table_of(num_subjects), keep=keep, **shape), script)
        whole.check_finished()
        crashes = data.draw(st.lists(st.integers(0, 25), max_size=8))
        crashed = run(make_world(table_of(num_subjects), keep=keep, **shape), script, crashes)
        crashed.check_finished()
        assert crashed.summary() == whole.summary()
        assert contents(whole) == contents(never_known(whole, {s for batch in batches for s in batch}))


class TestForgetting:
    @given(st.lists(st.sampled_from([f"s{i}" for i in range(12)]), unique=True), st.sampled_from(KEEPS))
    @settings(max_examples=30, deadline=None)
    def test_a_batch_costs_what_is_predicted_to_the_record(self, batch: list[str], keep: object) -> None:
        world = run(make_world(table_of(12), keep=keep), [World.train])
        before = len(world.stages_rebuilt)
        world.unlearn(batch)
        world.check_finished()
        if batch:
            closed = list(world.state.closed_batches.values())[-1]
            assert closed.closed.record_visits == world.predicted_visits()
            assert closed.closed.full_retrain_record_visits == full_retrain_visits(world.spec, world.state)
            assert closed.closed.stages_rebuilt == len(world.stages_rebuilt) - before

    @given(st.sets(st.sampled_from([f"s{i}" for i in range(10)])), st.data())
    @settings(max_examples=30, deadline=None)
    def test_two_ways_to_forget_the_same_people_end_the_same(
        self, people: set[str], data: st.DataObject
    ) -> None:
        def cut() -> list[list[str]]:
            order = data.draw(st.permutations(sorted(people)))
            at = sorted(data.draw(st.lists(st.integers(0, len(order)), max_size=3)))
            return [list(order[a:b]) for a, b in zip([0, *at], [*at, len(order)], strict=True)]

        one = run(make_world(table_of(10)), script_of(*cut()))
        two = run(make_world(table_of(10)), script_of(*cut()))
        assert contents(one) == contents(two) == contents(never_known(one, people))

    def test_everybody(self) -> None:
        world = run(make_world(table_of(9)), script_of([f"s{i}" for i in range(9)]))
        world.check_finished()
        assert sum(s.num_records for s in world.state.slices.values()) == 0
        assert not [path for path, held in world.objects.items() if held]
        assert contents(world) == contents(never_known(world, [f"s{i}" for i in range(9)]))

    def test_the_same_request_twice_is_no_work(self) -> None:
        world = run(make_world(table_of(9)), script_of(["s1", "s2"]))
        stages, generation = len(world.stages_rebuilt), world.state.generation
        world.unlearn(["s2", "s1"])
        assert (len(world.stages_rebuilt), world.state.generation) == (stages, generation)
        assert len(world.state.closed_batches) == 1

    def test_the_unknown_are_recorded_and_cost_nothing(self) -> None:
        world = run(make_world(table_of(9)), [World.train])
        stages, generation = len(world.stages_rebuilt), world.state.generation
        world.unlearn(["nobody", "no one"])
        assert (len(world.stages_rebuilt), world.state.generation) == (stages, generation)
        assert world.state.unknown == {"tag nobody", "tag no one"}
        (batch,) = world.state.closed_batches.values()
        assert (batch.closed.record_visits, batch.plan.num_records) == (0, 0)

    def test_between_ingest_and_training(self) -> None:
        forget: Script = [World.ingest, lambda w: w.unlearn(["s1", "s2"]), World.train]
        world = run(make_world(table_of(9)), forget)
        world.check_finished()
        assert contents(world) == contents(never_known(world, ["s1", "s2"]))

    def test_before_ingest(self) -> None:
        """Whoever asked first is refused at the door."""
        forget: Script = [lambda w: w.unlearn(["s1", "s2"]), World.train]
        world = run(make_world(table_of(9)), forget)
        world.check_finished()
        assert world.state.ingested is not None
        assert world.state.ingested.num_refused == 2
        assert contents(world) == contents(never_known(world, ["s1", "s2"]))

    def test_in_the_middle_of_training(self) -> None:
        """Partial checkpoints of what is tainted go; those of other shards may stay."""
        for step in range(run(make_world(table_of(9)), [World.train]).num_actions):
            world = make_world(table_of(9))
            world.crash_in = step
            with pytest.raises(Crash):
                world.train()
            world.crash()
            world.unlearn(["s1"])
            assert not [path for path, held in world.objects.items() if "s1" in held]
            world.train()
            world.check_finished()
            assert contents(world) == contents(never_known(world, ["s1"]))


class TestLostCheckpoints:
    @given(st.data())
    @settings(max_examples=60, deadline=None)
    def test_are_rebuilt_in_the_same_bits(self, data: st.DataObject) -> None:
        keep = data.draw(st.sampled_from(KEEPS))
        world = run(make_world(table_of(9), keep=keep, num_slices=4), [World.train])
        whole = world.summary()
        self.destroy_some(world, data)
        world.train()
        world.check_finished()
        # The generation does not change: nobody was forgotten, and the bits are what they were.
        assert world.summary() == whole

    @given(st.data())
    @settings(max_examples=60, deadline=None)
    def test_are_made_up_for_when_forgetting_on_any_platform(self, data: st.DataObject) -> None:
        keep = data.draw(st.sampled_from(KEEPS))
        world = run(make_world(table_of(9), keep=keep, num_slices=4), [World.train])
        self.destroy_some(world, data)
        world.platform = data.draw(st.sampled_from(["cpu", "gpu"]))
        run(world, [lambda w: w.unlearn(["s1", "s5"])], data.draw(st.lists(st.integers(0, 25), max_size=3)))
        # Every stage descends from the bytes that the log names, and nothing holds the forgotten.
        world.check_finished()
        assert contents(world)[0] == contents(never_known(world, ["s1", "s5"]))[0]

    def test_on_another_platform_the_whole_tail_is_rebuilt_and_published(self) -> None:
        world = run(make_world(table_of(9), num_slices=4), [World.train])
        for path in [p for p in world.objects if p.startswith("checkpoints/0/2/")]:
            world.destroy(path)
        world.platform = "gpu"
        built_before = len(world.stages_rebuilt)
        world.train()
        world.check_finished()
        assert world.stages_rebuilt[built_before:] == [(0, 2), (0, 3), (0, 4)]
        assert world.state.generation == 2

    @staticmethod
    def destroy_some(world: World, data: st.DataObject) -> None:
        checkpoints = sorted(path for path in world.objects if path.startswith("checkpoints/"))
        for path in data.draw(st.sets(st.sampled_from(checkpoints))):
            world.destroy(path)


class TestRetentionChanges:
    @pytest.mark.parametrize("before", KEEPS, ids=str)
    @pytest.mark.parametrize("after", KEEPS, ids=str)
    def test_are_followed_by_the_next_command(self, before: object, after: object) -> None:
        world = run(make_world(table_of(9), keep=before), [World.train])
        world.spec = make_world({}, keep=after).spec
        world.train()
        world.check_finished()
        assert contents(world) == contents(run(make_world(table_of(9), keep=after), [World.train]))
