"""Whole simulated runs: crashes, lost checkpoints and changed configurations end in the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sisa_ray.core.planner import full_retrain_visits, rebuild_visits
from tests.core.builders import make_spec
from tests.core.simulation import SIZE_BYTES, Crash, World

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
            assert closed.closed.record_visits == rebuild_visits(
                world.spec, world.state, closed.plan.affected
            )
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
