from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sisa_ray.core.protection import BucketProtection
from sisa_ray.core.records import (
    AttemptClosed,
    AttemptOpened,
    BatchClosed,
    BatchPlanned,
    CheckpointLost,
    GenerationPublished,
    Purged,
    PurgePlanned,
    Record,
    RunCreated,
    SelfChecked,
    SlicesRewritten,
    StageBuilt,
    StageRef,
    TableIngested,
    Verified,
)
from sisa_ray.core.state import RunState, fold
from tests.core.builders import accepted, make_slice, make_stage
from tests.core.test_records import ALL

INGESTED = TableIngested(
    attempt="a0",
    columns="00ff",
    slices=tuple(make_slice(k, r, [f"{k}{r}"]) for k in (0, 1) for r in (1, 2)),
    num_rows=4,
    num_refused=0,
)
ACCEPTED = accepted("r1", "ada", "eve")
PLANNED = BatchPlanned(batch="b1", requests=("r1",), unknown=("eve",), num_records=1, affected=((0, 1),))
REWRITTEN = SlicesRewritten(batch="b1", slices=(make_slice(0, 1, [], attempt="a1"),))
CLOSED = BatchClosed(
    batch="b1",
    stages_rebuilt=2,
    record_visits=24,
    full_retrain_record_visits=90,
    objects_purged=3,
    bytes_purged=0,
)
PURGED = Purged(attempt="a1", num_objects=3, num_bytes=300)


def built(shard: int, stage: int, *, key: str = "k", file_digest: str = "f0", visits: int = 12) -> StageBuilt:
    ref = make_stage(shard, stage, key=f"{key}{shard}{stage}", file_digest=file_digest, record_visits=visits)
    return StageBuilt(ref=ref)


def test_a_run_begins_with_nothing() -> None:
    assert fold([]) == RunState()
    assert RunState().created is None
    assert not RunState().purge_due


@given(st.integers(0, len(ALL)))
def test_folding_on_is_folding_whole(cut: int) -> None:
    log: list[Record] = [INGESTED, built(0, 1), *ALL]
    state = fold(log[:cut])
    for record in log[cut:]:
        state.apply(record)
    assert state == fold(log)


def test_folding_does_not_share_between_states() -> None:
    one, two = fold([INGESTED, ACCEPTED]), fold([INGESTED, ACCEPTED])
    two.apply(PLANNED)
    two.apply(built(0, 1))
    assert one == fold([INGESTED, ACCEPTED])


def test_creation_and_schema() -> None:
    created = RunCreated(spec_digest="d", secret_id="s", protection=BucketProtection())
    state = fold([created, INGESTED])
    assert state.created == created
    assert state.columns == "00ff"
    assert set(state.slices) == {(0, 1), (0, 2), (1, 1), (1, 2)}
    assert not state.purge_due


def test_what_is_not_a_record_is_refused() -> None:
    with pytest.raises(AssertionError, match="no rule for str"):
        RunState().apply("run_created")


class TestAttempts:
    def test_closing_leaves_nothing_to_sweep(self) -> None:
        state = fold([AttemptOpened(attempt="a", command="train"), AttemptClosed(attempt="a")])
        assert state.attempt is None
        state.apply(AttemptOpened(attempt="b", command="train"))
        assert not state.purge_due

    def test_a_successor_of_one_that_did_not_close_sweeps(self) -> None:
        state = fold(
            [AttemptOpened(attempt="a", command="train"), AttemptOpened(attempt="b", command="train")]
        )
        assert state.attempt == "b"
        assert state.purge_due

    def test_only_the_last_can_close(self) -> None:
        state = fold([AttemptOpened(attempt="a", command="x"), AttemptOpened(attempt="b", command="x")])
        state.apply(AttemptClosed(attempt="a"))
        assert state.attempt == "b"


class TestRequests:
    def test_suppressed_from_acceptance_on_and_for_good(self) -> None:
        state = fold([INGESTED, ACCEPTED])
        assert state.suppressed == {"ada": "r1", "eve": "r1"}
        for record in (PLANNED, REWRITTEN, PURGED, CLOSED):
            state.apply(record)
            assert state.suppressed == {"ada": "r1", "eve": "r1"}

    def test_life_of_a_request(self) -> None:
        state = fold([INGESTED, ACCEPTED])
        assert state.requests["r1"].batch is None
        assert state.requests["r1"].payload == "requests/r1"
        state = fold([INGESTED, ACCEPTED, PLANNED])
        assert state.requests["r1"].batch == "b1"
        assert not state.batches["b1"].rewritten
        assert state.unknown == {"eve"}
        assert not state.purge_due
        state = fold([INGESTED, ACCEPTED, PLANNED, REWRITTEN])
        assert state.batches["b1"].rewritten
        assert state.slices[0, 1].num_records == 0
        assert state.slices[0, 2] == INGESTED.slices[1]
        assert state.purge_due
        state = fold([INGESTED, ACCEPTED, PLANNED, REWRITTEN, PURGED, CLOSED])
        assert not state.requests
        assert not state.batches
        assert state.closed_batches["b1"].plan == PLANNED
        assert state.closed_batches["b1"].closed == CLOSED

    def test_a_second_request_does_not_take_over_the_first(self) -> None:
        again = accepted("r2", "ada", "joe")
        state = fold([INGESTED, ACCEPTED, again])
        assert state.suppressed == {"ada": "r1", "eve": "r1", "joe": "r2"}

    def test_who_was_forgotten_is_not_unknown_when_asked_for_again(self) -> None:
        again = accepted("r2", "ada", "joe")
        plan = BatchPlanned(batch="b2", requests=("r2",), unknown=("ada", "joe"), num_records=0, affected=())
        state = fold([INGESTED, ACCEPTED, PLANNED, REWRITTEN, PURGED, CLOSED, again, plan])
        assert state.unknown == {"eve", "joe"}

    def test_a_closed_batch_leaves_other_requests_open(self) -> None:
        other = accepted("r2", "joe")
        state = fold([INGESTED, ACCEPTED, PLANNED, other, REWRITTEN, PURGED, CLOSED])
        assert list(state.requests) == ["r2"]


class TestCosts:
    def test_counts_what_is_built_after_the_rewriting(self) -> None:
        state = fold([INGESTED, built(0, 1), ACCEPTED, PLANNED, built(1, 1)])
        assert state.batches["b1"].stages_rebuilt == 0
        for record in (REWRITTEN, built(0, 1, key="n", visits=8), built(0, 2, key="n", visits=16), PURGED):
            state.apply(record)
        batch = state.batches["b1"]
        assert (batch.stages_rebuilt, batch.record_visits, batch.objects_purged) == (2, 24, 3)

    def test_a_batch_pays_for_its_own_shards_alone(self) -> None:
        state = fold([INGESTED, ACCEPTED, PLANNED, REWRITTEN, built(1, 1)])
        assert state.batches["b1"].stages_rebuilt == 0
        state.apply(built(0, 2))
        assert state.batches["b1"].stages_rebuilt == 1


class TestStages:
    def test_the_last_build_counts(self) -> None:
        state = fold([INGESTED, built(0, 1), built(0, 1, key="n")])
        assert state.stages[0, 1].key == "n01"
        assert state.purge_due

    def test_a_first_build_leaves_nothing_to_purge(self) -> None:
        assert not fold([INGESTED, built(0, 1), built(0, 2), built(1, 1)]).purge_due

    def test_a_lost_checkpoint_keeps_its_digests(self) -> None:
        state = fold([INGESTED, built(0, 1), CheckpointLost(shard=0, stage=1, reason="missing")])
        assert state.stages[0, 1] == make_stage(0, 1, key="k01", kept=False)
        assert state.purge_due

    def test_the_same_bits_again_leave_the_rest(self) -> None:
        state = fold([INGESTED, built(0, 1), built(0, 2), built(0, 1)])
        assert set(state.stages) == {(0, 1), (0, 2)}

    def test_other_contents_leave_the_rest_to_their_keys(self) -> None:
        """Later stages have other keys then anyway, and are rebuilt one by one."""
        state = fold([INGESTED, built(0, 1), built(0, 2), built(0, 1, key="n", file_digest="f1")])
        assert set(state.stages) == {(0, 1), (0, 2)}

    def test_other_bits_for_the_same_key_drop_all_that_descends(self) -> None:
        stages = [built(k, r) for k in (0, 1) for r in (1, 2, 3)]
        published = GenerationPublished(generation=1, keys=("k03", "k13"))
        lost = CheckpointLost(shard=0, stage=2, reason="digest")
        state = fold([INGESTED, *stages, published, lost, built(0, 2, file_digest="f1")])
        assert set(state.stages) == {(0, 1), (0, 2), (1, 1), (1, 2), (1, 3)}
        assert state.stages[0, 2].file_digest == "f1"
        # The keys are the same, yet the ensemble that will be rebuilt is not the published one.
        assert state.generation == 1
        assert state.published_keys == ()
        assert state.purge_due

    def test_other_bits_of_a_constituent_are_another_ensemble(self) -> None:
        published = GenerationPublished(generation=1, keys=("k01",))
        state = fold([INGESTED, built(0, 1), published, built(0, 1, file_digest="f1")])
        assert set(state.stages) == {(0, 1)}
        assert state.published_keys == ()


class TestPurge:
    @pytest.mark.parametrize(
        "record",
        [
            REWRITTEN,
            CheckpointLost(shard=0, stage=1, reason="retention"),
            GenerationPublished(generation=1, keys=()),
            PurgePlanned(attempt="a", num_objects=1),
            built(0, 1, key="n"),
            INGESTED.model_copy(update={"attempt": "a9"}),
        ],
        ids=lambda r: r.type,
    )
    def test_is_due_after_what_leaves_objects_behind(self, record: Record) -> None:
        state = fold([INGESTED, built(0, 1), ACCEPTED, PLANNED])
        assert not state.purge_due
        state = fold([INGESTED, built(0, 1), ACCEPTED, PLANNED, record])
        assert state.purge_due
        state = fold([INGESTED, built(0, 1), ACCEPTED, PLANNED, record, PURGED])
        assert not state.purge_due

    @pytest.mark.parametrize(
        "record",
        [ACCEPTED, SelfChecked(platform={}), Verified(shards=(), source="slices", outcome="different")],
        ids=lambda r: r.type,
    )
    def test_is_not_due_after_the_rest(self, record: Record) -> None:
        state = fold([INGESTED])
        state.apply(record)
        assert not state.purge_due


def test_platforms_and_verdicts_are_remembered() -> None:
    verdict = Verified(shards=(0,), source="slices", outcome="bit-identical")
    state = fold([SelfChecked(platform={"a": "1"}), SelfChecked(platform={"a": "2"}), verdict])
    assert state.self_checked == [{"a": "1"}, {"a": "2"}]
    assert state.last_verified == verdict


def test_references_are_values() -> None:
    """States share them, so nothing may change one in place."""
    ref: StageRef = make_stage(0, 1, key="k")
    state = fold([INGESTED, StageBuilt(ref=ref), CheckpointLost(shard=0, stage=1, reason="digest")])
    assert ref.path is not None
    assert state.stages[0, 1].path is None
