from __future__ import annotations

import pytest

from sisa_ray.core.places import Place
from sisa_ray.core.planner import (
    Lineage,
    full_retrain_visits,
    named_paths,
    rebuild_visits,
    wanted_checkpoints,
    wanted_partials,
)
from sisa_ray.core.records import (
    SlicesRewritten,
)
from sisa_ray.core.state import RunState, fold
from tests.core.builders import make_slice
from tests.core.planner_states import (
    ACCEPTED,
    NUM_SHARDS,
    NUM_SLICES,
    SIZES,
    built,
    ingested,
    lose,
    missing,
    planned,
    rewritten,
    spec_of,
    trained,
)


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
