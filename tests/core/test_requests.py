"""Requests on their way through the state of a run."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sisa_ray.core.identity import Spec
from sisa_ray.core.planner import named_paths
from sisa_ray.core.records import (
    BatchCertified,
    BatchClosed,
    BatchPlanned,
    GenerationPublished,
    PayloadOpened,
    PayloadRewritten,
    Purged,
    PurgePlanned,
    Record,
    RequestExtended,
    RequestRejected,
    RequestsFenced,
    SlicesRewritten,
    StageBuilt,
    SuppressionLifted,
    TableAppended,
    TableIngested,
)
from sisa_ray.core.requests import EntryMark, RequestState, refs_of
from sisa_ray.core.state import OPENED_FOR, RunState, fold
from sisa_ray.core.step import Decision, Moment, Purge, RewritePayload, step
from tests.core.builders import RECEIVED, accepted, make_slice, make_spec, make_stage

SHARED = "requests/shared"
SLICES = tuple(make_slice(k, r, [f"{k}{r}a", f"{k}{r}b"]) for k in (0, 1) for r in (1, 2))
INGESTED: Record = TableIngested(attempt="a0", columns="00ff", slices=SLICES, num_rows=8, num_refused=0)
PURGED: Record = Purged(attempt="a1", num_objects=3, num_bytes=300)


def planned(batch: str, *requests: str, unknown: tuple[str, ...] = ()) -> Record:
    return BatchPlanned(batch=batch, requests=requests, unknown=unknown, num_records=1, affected=((0, 1),))


def rewritten(batch: str) -> Record:
    return SlicesRewritten(batch=batch, slices=(make_slice(0, 1, ["01b"], attempt=batch),))


def closed(batch: str) -> Record:
    figures = {
        "stages_rebuilt": 2,
        "record_visits": 24,
        "full_retrain_record_visits": 90,
        "objects_purged": 3,
        "bytes_purged": 300,
    }
    return BatchClosed.model_validate({"batch": batch, **figures})


def certified(batch: str) -> Record:
    return BatchCertified(batch=batch, path=f"certificates/{batch}.json", digest="d" * 64)


def published(generation: int) -> Record:
    return GenerationPublished(generation=generation, keys=(f"k{generation}", "l"))


def at(minutes: float) -> datetime:
    return RECEIVED + timedelta(minutes=minutes)


def apply(state: RunState, records: Iterable[Record], *, minutes: float | None = None) -> RunState:
    """Apply records, one entry each, a minute apart or all at one time."""
    for record in records:
        seq = state.entry.seq + 1
        when = at(seq if minutes is None else minutes)
        state.entry = EntryMark(seq=seq, digest=f"{seq:064x}", at=when)
        state.apply(record)
    return state


def spec_of(**changes: Any) -> Spec:
    return make_spec(sisa={"num_shards": 2, "num_slices": 2, "epochs": 2}, **changes)


WAY: list[tuple[Record, RequestState]] = [
    (accepted("r1", "ada", "eve"), "accepted"),
    (RequestsFenced(requests=("r1",)), "fenced"),
    (planned("b1", "r1", unknown=("eve",)), "batched"),
    (rewritten("b1"), "rebuilding"),
    (StageBuilt(ref=make_stage(0, 1, key="n")), "rebuilding"),
    (published(1), "published"),
    (PurgePlanned(attempt="a", num_objects=1), "purging"),
    (PURGED, "purging"),
    (closed("b1"), "purging"),
    (certified("b1"), "certified"),
]


class TestStates:
    def test_every_state_on_the_way(self) -> None:
        state = fold([INGESTED])
        seen = []
        for record, expected in WAY:
            apply(state, [record])
            request = state.find_request("r1")
            assert request is not None
            assert state.request_state(request) == expected, record
            seen.append(state.entry.at)
        done = state.closed_requests["r1"]
        assert (done.accepted_at, done.fenced_at, done.closed_at) == (seen[0], seen[1], seen[8])
        batch = state.closed_batches["b1"]
        assert (batch.planned_at, batch.closed_at) == (seen[2], seen[8])
        assert "r1" not in state.requests

    def test_a_batch_that_waits_while_another_is_published_is_only_batched(self) -> None:
        state = fold(
            [INGESTED, *(record for record, _ in WAY[:5]), accepted("r2", "joe"), planned("b2", "r2")]
        )
        apply(state, [published(1), PurgePlanned(attempt="a", num_objects=1)])
        assert state.request_state(state.requests["r1"]) == "purging"
        assert state.request_state(state.requests["r2"]) == "batched"
        assert state.batches["b2"].published_at is None

    def test_one_without_anybody_whom_the_run_held_ends_unknown(self) -> None:
        both = (
            accepted("r1", "ada", "eve"),
            accepted("r2", "eve"),
            planned("b1", "r1", "r2", unknown=("eve",)),
        )
        state = fold([INGESTED, *both, rewritten("b1"), PURGED, closed("b1")])
        assert state.request_state(state.closed_requests["r2"]) == "purging"
        apply(state, [certified("b1")])
        assert state.request_state(state.closed_requests["r1"]) == "certified"
        assert state.request_state(state.closed_requests["r2"]) == "unknown"

    def test_who_was_forgotten_before_does_not_end_unknown(self) -> None:
        again = [accepted("r2", "ada"), planned("b2", "r2", unknown=("ada",)), rewritten("b2"), PURGED]
        state = fold([INGESTED, *(record for record, _ in WAY), *again, closed("b2"), certified("b2")])
        assert state.closed_batches["b2"].unknown == ()
        assert state.request_state(state.closed_requests["r2"]) == "certified"

    def test_evidence_is_kept_until_it_is_signed(self) -> None:
        state = fold([INGESTED, StageBuilt(ref=make_stage(0, 1, key="k"))])
        apply(state, [record for record, _ in WAY[:9]])
        evidence = state.closed_batches["b1"].evidence
        assert evidence is not None
        assert refs_of(evidence.before) == (make_stage(0, 1, key="k"),)
        assert refs_of(evidence.after) == (make_stage(0, 1, key="n"),)
        assert evidence.entry == state.entry
        assert (evidence.published_at, evidence.verified_at) == (at(5), at(7))
        assert state.uncertified == ["b1"]
        apply(state, [certified("b1")])
        assert state.closed_batches["b1"].evidence is None
        assert state.closed_batches["b1"].certificate == "certificates/b1.json"
        assert state.uncertified == []

    def test_evidence_leaves_out_what_was_built_of_rewritten_slices(self) -> None:
        stages = [StageBuilt(ref=make_stage(k, r, key=f"{k}{r}")) for k in (0, 1) for r in (1, 2)]
        state = fold([INGESTED, *stages, accepted("r1", "ada"), planned("b1", "r1"), rewritten("b1"), PURGED])
        apply(state, [closed("b1")])
        evidence = state.closed_batches["b1"].evidence
        assert evidence is not None
        assert [(s.shard, s.stage) for s in refs_of(evidence.before)] == [(0, 1), (0, 2), (1, 1), (1, 2)]
        assert [(s.shard, s.stage) for s in refs_of(evidence.after)] == [(1, 1), (1, 2)]


class TestRejection:
    def test_ends_a_request_and_lifts_whom_only_it_named(self) -> None:
        state = fold([INGESTED, accepted("r1", "ada", "eve"), accepted("r2", "eve", "joe")])
        assert not state.purge_due
        apply(state, [RequestRejected(request="r1", reason="withdrawn")], minutes=7)
        assert state.suppressed == {"eve": "r2", "joe": "r2"}
        rejected = state.closed_requests["r1"]
        assert state.request_state(rejected) == "rejected"
        assert (rejected.is_rejected, rejected.closed_at) == (True, at(7))
        assert list(state.requests) == ["r2"]
        assert state.purge_due  # its payload names people

    def test_leaves_those_suppressed_whom_an_earlier_request_named(self) -> None:
        state = fold([INGESTED, accepted("r1", "ada"), accepted("r2", "ada", "joe")])
        apply(state, [RequestRejected(request="r2", reason="identity-not-verified")])
        assert state.suppressed == {"ada": "r1"}

    def test_leaves_those_suppressed_whom_a_closed_request_named(self) -> None:
        again: list[Record] = [accepted("r2", "ada"), RequestRejected(request="r2", reason="withdrawn")]
        state = fold([INGESTED, *(record for record, _ in WAY), *again])
        assert state.suppressed == {"ada": "r1", "eve": "r1"}

    def test_leaves_those_suppressed_whom_a_later_and_faster_request_named(self) -> None:
        both: list[Record] = [accepted("r1", "ada", "joe"), accepted("r2", "ada"), planned("b1", "r2")]
        state = apply(RunState(), [INGESTED, *both, rewritten("b1"), PURGED, closed("b1"), certified("b1")])
        apply(state, [RequestRejected(request="r1", reason="withdrawn")])
        assert state.suppressed == {"ada": "r2"}

    def test_does_not_bring_back_what_was_lifted(self) -> None:
        lifted = SuppressionLifted(tags=("ada",), reason="consent-renewed", key_id="k", signature="00")
        state = apply(RunState(), [INGESTED, *(record for record, _ in WAY), lifted, accepted("r2", "ada")])
        apply(state, [RequestRejected(request="r2", reason="withdrawn")])
        assert state.suppressed == {"eve": "r1"}

    def test_of_both_leaves_nobody(self) -> None:
        state = fold([INGESTED, accepted("r1", "ada"), accepted("r2", "ada", "joe")])
        for name in ("r1", "r2"):
            apply(state, [RequestRejected(request=name, reason="legal-obligation")])
        assert state.suppressed == {}
        assert set(state.closed_requests) == {"r1", "r2"}

    @given(st.lists(st.frozensets(st.sampled_from("abcde"), min_size=1), min_size=1, max_size=6), st.data())
    def test_suppressed_is_whoever_a_request_that_counts_has_named(
        self, people: list[frozenset[str]], data: st.DataObject
    ) -> None:
        state = fold([INGESTED, *(accepted(f"r{i}", *sorted(tags)) for i, tags in enumerate(people))])
        rejected = data.draw(st.permutations(range(len(people))))[: data.draw(st.integers(0, len(people)))]
        for i in rejected:
            apply(state, [RequestRejected(request=f"r{i}", reason="withdrawn")])
        left = [tags for i, tags in enumerate(people) if i not in rejected]
        assert state.suppressed.keys() == set().union(*left)
        assert all(tag in people[int(name[1:])] for tag, name in state.suppressed.items())


def test_an_extension_moves_the_due_date_once_and_for_good() -> None:
    state = fold([INGESTED, accepted("r1", "ada")])
    due_at = RECEIVED + timedelta(days=92)
    apply(state, [RequestExtended(request="r1", due_at=due_at, reason="complexity")])
    request = state.requests["r1"]
    assert (request.due_at, request.is_extended) == (due_at, True)


def test_lifted_people_may_be_learned_from_again_and_asked_for_again() -> None:
    state = fold([INGESTED, *(record for record, _ in WAY)])
    lifted = SuppressionLifted(tags=("eve", "nobody"), reason="consent-renewed", key_id="k", signature="00")
    apply(state, [lifted])
    assert state.suppressed == {"ada": "r1"}
    assert state.unknown == set()
    apply(state, [accepted("r2", "eve")])
    assert state.suppressed == {"ada": "r1", "eve": "r2"}


def appended(slice_: int) -> Record:
    slices = tuple(make_slice(k, slice_, [f"{k}{slice_}"]) for k in (0, 1))
    return TableAppended(
        attempt="a1", source="t.parquet", num_slices=1, slices=slices, num_rows=2, num_refused=0
    )


class TestLeftOut:
    """What an ingest is without stays so, whoever may be learned from again later."""

    def test_lifted_people_are_left_out_of_every_ingest_before(self) -> None:
        state = fold([INGESTED, *(record for record, _ in WAY), appended(3)])
        lifted = SuppressionLifted(tags=("ada",), reason="consent-renewed", key_id="k", signature="00")
        apply(state, [lifted, appended(4)])
        assert [state.absent_from(i) for i in range(3)] == [{"ada", "eve"}, {"ada", "eve"}, {"eve"}]

    def test_rejected_people_are_left_out_of_ingests_while_they_were_suppressed(self) -> None:
        rejections: list[Record] = [RequestRejected(request=f"r{i}", reason="withdrawn") for i in (1, 2)]
        state = fold([INGESTED, appended(3), accepted("r1", "ada"), appended(4), accepted("r2", "ada")])
        apply(state, [rejections[0], appended(5), rejections[1], appended(6)])
        assert [state.absent_from(i) for i in range(5)] == [set(), set(), {"ada"}, {"ada"}, set()]

    def test_before_the_first_ingest_there_is_nothing_to_be_left_out_of(self) -> None:
        state = fold([accepted("r1", "ada"), RequestRejected(request="r1", reason="withdrawn"), INGESTED])
        assert state.absent_from(0) == set()
        state = fold([accepted("r1", "ada"), INGESTED, RequestRejected(request="r1", reason="withdrawn")])
        assert state.absent_from(0) == {"ada"}


class TestPayloads:
    @pytest.fixture
    def state(self) -> RunState:
        """Three requests in one object; the first of them is planned."""
        requests = [accepted(f"r{i}", f"t{i}", payload=SHARED) for i in (1, 2, 3)]
        return apply(RunState(), [INGESTED, *requests, planned("b1", "r1")])

    def test_are_needed_until_the_slices_are_rewritten(self, state: RunState) -> None:
        assert state.needed_in(SHARED) == ("r1", "r2", "r3")
        apply(state, [rewritten("b1")])
        assert state.needed_in(SHARED) == ("r2", "r3")
        apply(state, [RequestRejected(request="r3", reason="withdrawn")])
        assert state.needed_in(SHARED) == ("r2",)
        apply(state, [planned("b2", "r2"), rewritten("b2")])
        assert state.needed_in(SHARED) == ()

    def test_are_named_as_long_as_somebody_needs_them(self, state: RunState) -> None:
        spec = spec_of()
        assert SHARED in named_paths(spec, state)
        apply(state, [rewritten("b1")])
        assert SHARED in named_paths(spec, state)
        apply(state, [planned("b2", "r2", "r3"), rewritten("b2")])
        assert SHARED not in named_paths(spec, state)
        assert SHARED in state.payloads  # it may still be there
        apply(state, [PURGED])
        assert state.payloads == {}

    def test_are_written_again_before_a_purge_for_those_who_still_need_them(self, state: RunState) -> None:
        spec = spec_of(unlearning={"batching": "deadline"})

        def decide() -> Decision | None:
            return step(spec, state, train=False, moment=Moment(now=RECEIVED))

        apply(state, [RequestsFenced(requests=("r1", "r2", "r3")), rewritten("b1")])
        apply(state, [RequestRejected(request="r3", reason="withdrawn")])
        assert decide() == RewritePayload(path=SHARED, requests=("r2",))
        apply(state, [PayloadRewritten(before=SHARED, path="requests/new", requests=("r2",))])
        assert state.payloads == {"requests/new": ["r2"]}
        assert state.requests["r2"].payload == "requests/new"
        assert {SHARED, "requests/new"} & named_paths(spec, state) == {"requests/new"}
        assert decide() == Purge()
        apply(state, [PURGED])
        assert state.payloads == {"requests/new": ["r2"]}

    def test_have_no_object_where_only_tags_are_known(self) -> None:
        assert fold([INGESTED, accepted("r1", "ada", payload="")]).payloads == {}


class TestOpenedPayloads:
    def test_are_named_from_their_announcement_to_their_requests(self) -> None:
        state = apply(fold([INGESTED]), [PayloadOpened(path=SHARED)], minutes=3)
        assert state.opened_payloads == {SHARED: at(3)}
        assert SHARED in named_paths(spec_of(), state)
        apply(state, [accepted("r1", "ada", payload=SHARED)])
        assert state.opened_payloads == {}
        assert SHARED in named_paths(spec_of(), state)

    @pytest.mark.parametrize(("minutes", "is_there"), [(0.0, True), (60.0, True), (60.1, False)])
    def test_expire_when_a_purge_finds_them_old(self, minutes: float, is_there: bool) -> None:
        state = apply(fold([INGESTED]), [PayloadOpened(path=SHARED)], minutes=0)
        apply(state, [PurgePlanned(attempt="a", num_objects=0)], minutes=minutes)
        assert timedelta(minutes=60) == OPENED_FOR
        assert (SHARED in named_paths(spec_of(), state)) == is_there

    def test_that_expired_can_be_committed_after_all(self) -> None:
        """Whoever wrote it finds that another entry was faster, and announces and writes it again."""
        state = apply(fold([INGESTED]), [PayloadOpened(path=SHARED)], minutes=0)
        apply(state, [PurgePlanned(attempt="a", num_objects=0)], minutes=61)
        apply(state, [PayloadOpened(path=SHARED), accepted("r1", "ada", payload=SHARED)])
        assert state.payloads == {SHARED: ["r1"]}


class TestIdempotencyKeys:
    def test_of_two_processes_that_accept_one_key_the_first_counts(self) -> None:
        state = fold([INGESTED, PayloadOpened(path="requests/r1"), PayloadOpened(path="requests/r2")])
        apply(state, [accepted("r1", "ada", key="k"), accepted("r2", "ada", key="k")])
        assert list(state.requests) == ["r1"]
        assert state.keys == {"k": "r1"}
        assert state.suppressed == {"ada": "r1"}
        assert state.opened_payloads == {}

    def test_the_payload_of_the_second_goes(self) -> None:
        state = fold([INGESTED, accepted("r1", "ada", key="k"), accepted("r2", "joe", key="k")])
        assert state.payloads == {"requests/r1": ["r1"]}
        assert "requests/r2" not in named_paths(spec_of(), state)
        assert state.purge_due
        assert "joe" not in state.suppressed

    def test_stand_for_their_request_when_it_is_done(self) -> None:
        state = fold([INGESTED, accepted("r1", "ada", key="k"), accepted("r3", "joe", key="other")])
        apply(state, [planned("b1", "r1"), rewritten("b1"), PURGED, closed("b1"), certified("b1")])
        apply(state, [RequestRejected(request="r3", reason="withdrawn")])
        assert state.keys == {"k": "r1", "other": "r3"}
        for name in ("r1", "r3"):
            assert state.find_request(name) is state.closed_requests[name]
        assert state.find_request("nobody") is None
