"""Views, over histories of a run: who votes never knows somebody who is to be forgotten."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sisa_ray.core.config import FencePolicy
from sisa_ray.core.state import RunState
from sisa_ray.core.view import next_view
from tests.core.view_world import EMPTY, KEPT, NUM_SHARDS, NUM_SLICES, World

POLICIES: tuple[FencePolicy, ...] = get_args(FencePolicy)
HISTORIES = st.lists(st.integers(0, 10_000), max_size=40)
CLEAN = ("rollback", "exclude")

Check = Callable[[World], None]


def follow(policy: FencePolicy, keep: object, history: list[int], check: Check) -> None:
    world = World(policy, keep)
    check(world)
    for number in history:
        world.act(number)
        check(world)


def no_voter_knows_somebody(world: World) -> None:
    assert world.view is not None
    assert not [v for v in world.view.voters if world.knows_somebody(v)]
    # And of earlier views that replicas may still answer from, those who do are to be dropped.
    for view in world.shown[-6:]:
        stay = [v for v in view.voters if v.ref.shard not in world.must_drop(view)]
        assert not [v for v in stay if world.knows_somebody(v)]


def voters_are_whole(world: World) -> None:
    """Each has a checkpoint, that of a shard with records, one a shard, in order, with the weight of what it saw."""
    view = world.view
    assert view is not None
    shards = [v.ref.shard for v in view.voters]
    assert shards == sorted(set(shards))
    assert EMPTY not in shards
    for voter in view.voters:
        assert voter.ref.path is not None
        assert voter.num_records > 0
        # What its slices held before they were rewritten is not known to a coordinator that takes over then.
        if world.lineage.is_clean(voter.ref):
            assert voter.num_records == len(world.saw[voter.ref.path])
        assert voter.is_constituent == (voter.ref.stage == NUM_SLICES)
        assert (voter.ref.shard in view.fenced) == (not voter.is_constituent)


def one_generation(world: World) -> None:
    """A constituent votes under the generation alone that published it."""
    view = world.view
    assert view is not None
    published = world.published[view.generation]
    constituents = [v for v in view.voters if v.is_constituent]
    assert all(v.ref.key == published[v.ref.shard] for v in constituents)


def versions_tell_voters(world: World) -> None:
    view, before = world.view, world.before
    assert view is not None
    assert view.position == world.state.entry.seq >= view.version
    assert view.generation == world.state.generation
    if before is None:
        return
    assert view.position >= before.position
    is_same = (view.voters, view.generation) == (before.voters, before.generation)
    assert (view.version == before.version) == is_same
    assert is_same or view.version == view.position


def voters_stay(world: World) -> None:
    """Within a generation a shard changes its voter only where that one may not answer, or the published can again."""
    view, before = world.view, world.before
    if view is None or before is None or view.generation != before.generation:
        return
    for voter in before.voters:
        now = world.voter(voter.ref.shard)
        if now == voter:
            continue
        is_gone = world.state.stages[voter.ref.shard, voter.ref.stage].path != voter.ref.path
        may_not = world.must_drop(before) | (set(world.fenced_from) if not voter.is_constituent else set())
        assert is_gone or voter.ref.shard in may_not or (now is not None and now.is_constituent)


@pytest.mark.parametrize("policy", CLEAN)
@given(keep=st.sampled_from(KEPT), history=HISTORIES)
def test_no_voter_knows_whoever_is_to_be_forgotten(
    policy: FencePolicy, keep: object, history: list[int]
) -> None:
    follow(policy, keep, history, no_voter_knows_somebody)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("check", [voters_are_whole, one_generation, versions_tell_voters, voters_stay])
@given(keep=st.sampled_from(KEPT), history=HISTORIES)
def test_views(policy: FencePolicy, check: Check, keep: object, history: list[int]) -> None:
    follow(policy, keep, history, check)


@given(keep=st.sampled_from(KEPT), history=HISTORIES)
def test_constituents_are_kept_until_the_next_is_published(keep: object, history: list[int]) -> None:
    def check(world: World) -> None:
        view, before = world.view, world.before
        assert view is not None
        assert not world.must_drop(view)
        if before is not None and view.generation == before.generation:
            kept = {v.ref.shard: v for v in before.voters if v.is_constituent}
            assert all(world.voter(shard) == voter for shard, voter in kept.items())

    follow("keep-until-rebuilt", keep, history, check)


@given(keep=st.sampled_from(KEPT), history=HISTORIES, policy=st.sampled_from(POLICIES))
def test_once_nothing_is_left_to_do_every_constituent_votes(
    policy: FencePolicy, keep: object, history: list[int]
) -> None:
    world = World(policy, keep)
    for number in history:
        world.act(number)
    world.erase()
    world.build_all()
    world.publish()
    world.show()
    assert world.view is not None
    assert [v.ref.shard for v in world.view.voters if v.is_constituent] == [
        k for k in range(NUM_SHARDS) if any(world.people[k, r] for r in range(1, NUM_SLICES + 1))
    ]


def test_nobody_votes_before_something_is_published() -> None:
    world = World("rollback")
    assert next_view(world.spec, RunState(), {}) is None


def test_rollback_passes_over_checkpoints_that_are_not_kept() -> None:
    world = World("rollback", keep=[1, 4])
    world.apply_fence("p030")
    voter = world.voter(0)
    assert voter is not None
    assert voter.ref.stage == 1


def test_exclude_leaves_the_shard_out() -> None:
    world = World("exclude")
    world.apply_fence("p040")
    assert world.voter(0) is None
    assert world.voter(1) is not None


def test_a_shard_answers_again_once_somebody_unknown_was_looked_for() -> None:
    world = World("rollback")
    world.ask_for_somebody_unknown(0)
    world.show()
    assert world.view is not None
    assert 0 in world.view.fenced
    world.erase()
    world.show()
    assert world.view.fenced == (EMPTY,)


def test_what_is_rebuilt_waits_for_its_generation_also_under_a_new_coordinator() -> None:
    world = World("keep-until-rebuilt")
    world.apply_fence("p040")
    world.erase()
    world.build_all()
    world.restart()
    world.show()
    one_generation(world)
