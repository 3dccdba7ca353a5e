"""When waiting requests become a batch, and when a purge that failed is tried again."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sisa_ray.core.batching import starts_at
from sisa_ray.core.config import UnlearningConfig
from sisa_ray.core.identity import Spec
from sisa_ray.core.planner import Lineage, predicted_rebuild_s
from sisa_ray.core.records import Purged, PurgeFailed, RequestsFenced, SlicesRewritten
from sisa_ray.core.requests import EntryMark, Request
from sisa_ray.core.state import RunState, fold
from sisa_ray.core.step import (
    BuildStages,
    CloseBatch,
    Decision,
    FenceRequests,
    Moment,
    PlanBatch,
    Publish,
    Purge,
    step,
    wakes_at,
)
from tests.core.builders import RECEIVED, accepted, make_slice, make_spec
from tests.core.planner_states import NUM_SHARDS, NUM_SLICES, built, ingested, planned, trained

NOW = RECEIVED + timedelta(hours=5)
HOUR = timedelta(hours=1)


def policy(**fields: Any) -> UnlearningConfig:
    return UnlearningConfig.model_validate({"safety_margin_s": 3600.0, **fields})


def asked(*tags: str, hours_ago: float = 1, due: datetime | None = None, priority: Any = "normal") -> Request:
    at = NOW - hours_ago * HOUR
    return Request(
        request="-".join(tags),
        tags=tags,
        payload="p",
        received_at=at,
        accepted_at=at,
        due_at=at + timedelta(days=31) if due is None else due,
        basis="gdpr",
        priority=priority,
    )


def start(waiting: list[Request], predicted_s: float = 0.0, **fields: Any) -> datetime:
    return starts_at(waiting, policy(**fields), now=NOW, predicted_s=predicted_s)


def latest(due: datetime, predicted_s: float = 0.0, margin_s: float = 3600.0) -> datetime:
    return due - timedelta(seconds=predicted_s + margin_s)


class TestPolicies:
    def test_at_once(self) -> None:
        assert start([asked("a")], batching="at_once") == NOW

    @pytest.mark.parametrize(("num", "is_due"), [(1, False), (2, False), (3, True), (4, True)])
    def test_size_waits_for_so_many_requests(self, num: int, is_due: bool) -> None:
        waiting = [asked(f"t{i}") for i in range(num)]
        expected = NOW if is_due else latest(min(r.due_at for r in waiting))
        assert start(waiting, batching="size", batch_size=3) == expected

    def test_size_counts_requests_and_not_people(self) -> None:
        assert start([asked("a", "b", "c", "d")], batching="size", batch_size=2) > NOW

    def test_a_window_opens_with_the_first_request(self) -> None:
        waiting = [asked("a", hours_ago=1), asked("b", hours_ago=3), asked("c", hours_ago=2)]
        assert start(waiting, batching="window", window_s=4 * 3600.0) == NOW + HOUR
        assert start(waiting, batching="window", window_s=3600.0) < NOW

    def test_deadline_waits_as_long_as_the_law_allows(self) -> None:
        due = NOW + timedelta(days=9)
        waiting = [asked("a"), asked("b", due=due)]
        assert start(waiting, batching="deadline", predicted_s=7200.0) == due - 3 * HOUR
        assert start(waiting, batching="deadline", predicted_s=0.0, safety_margin_s=60.0) == due - HOUR / 60

    @pytest.mark.parametrize("batching", ["at_once", "size", "window"])
    def test_few_people_wait_for_company(self, batching: str) -> None:
        fields: dict[str, Any] = {"batching": batching, "min_subjects": 3, "batch_size": 1, "window_s": 1.0}
        twice = [asked("a", "b"), asked("b", "a")]
        assert start(twice, **fields) == latest(min(r.due_at for r in twice))
        assert start([*twice, asked("c")], **fields) <= NOW


class TestTheLawComesFirst:
    @pytest.mark.parametrize("batching", ["at_once", "size", "window", "deadline"])
    @given(
        hours=st.lists(st.floats(-10, 1000), min_size=1, max_size=6),
        predicted_s=st.floats(0, 1e6),
        margin_s=st.floats(1, 1e6),
        min_subjects=st.integers(1, 5),
    )
    def test_no_policy_starts_later_than_the_deadline_allows(
        self, batching: str, hours: list[float], predicted_s: float, margin_s: float, min_subjects: int
    ) -> None:
        waiting = [asked(f"t{i}", due=NOW + h * HOUR) for i, h in enumerate(hours)]
        fields: dict[str, Any] = {
            "batching": batching,
            "min_subjects": min_subjects,
            "safety_margin_s": margin_s,
        }
        start_at = start(waiting, predicted_s, window_s=1e7, **fields)
        if any(r.is_overdue for r in waiting):
            assert start_at == NOW
        else:
            assert start_at <= latest(NOW + min(hours) * HOUR, predicted_s, margin_s) + timedelta(
                milliseconds=1
            )

    @pytest.mark.parametrize("batching", ["size", "window", "deadline"])
    def test_urgent_ones_take_all_others_along_at_once(self, batching: str) -> None:
        fields: dict[str, Any] = {"batching": batching, "min_subjects": 100, "batch_size": 100}
        assert start([asked("a"), asked("b")], **fields) > NOW
        assert start([asked("a"), asked("b", priority="urgent")], **fields) == NOW

    @pytest.mark.parametrize("batching", ["size", "window", "deadline"])
    def test_what_was_late_when_it_was_accepted_starts_at_once(self, batching: str) -> None:
        late = asked("a", hours_ago=1, due=NOW - 2 * HOUR)
        assert late.is_overdue
        assert start([late, asked("b")], batching=batching, min_subjects=100) == NOW

    def test_what_became_late_while_it_waited_starts_at_once(self) -> None:
        waited = asked("a", hours_ago=100, due=NOW - HOUR)
        assert not waited.is_overdue
        assert start([waited], batching="deadline") < NOW


def run_spec(**unlearning: Any) -> Spec:
    sisa = {"num_shards": NUM_SHARDS, "num_slices": NUM_SLICES, "epochs": 4}
    return make_spec(sisa=sisa, unlearning={"safety_margin_s": 3600.0, **unlearning})


def asked_for(spec: Spec, *tags: str, days: float = 10, **changes: Any) -> RunState:
    """A trained run of which ``tags`` have been fenced, each in a request that was received just now."""
    state = trained(spec)
    for tag in tags:
        state.entry = EntryMark(seq=state.entry.seq + 1, digest="", at=NOW)
        state.apply(accepted(f"for-{tag}", tag, received_at=NOW, days=days, **changes))
    state.apply(RequestsFenced(requests=tuple(f"for-{tag}" for tag in tags)))
    return state


def decided(spec: Spec, state: RunState, now: datetime, num_slots: int = 1) -> Decision | None:
    return step(spec, state, train=False, moment=Moment(now=now, num_slots=num_slots))


class TestStep:
    def test_waits_and_then_plans(self) -> None:
        spec = run_spec(batching="window", window_s=600.0)
        state = asked_for(spec, "ada", "joe")
        wake = wakes_at(spec, state, Moment(now=NOW))
        assert wake == NOW + timedelta(seconds=600)
        assert decided(spec, state, wake - timedelta(microseconds=1)) is None
        for now in (wake, wake + HOUR):
            assert decided(spec, state, now) == PlanBatch(requests=("for-ada", "for-joe"))

    def test_fences_before_it_waits(self) -> None:
        spec = run_spec(batching="deadline")
        state = trained(spec)
        state.apply(accepted("r1", "ada", received_at=NOW))
        assert decided(spec, state, NOW) == FenceRequests(requests=("r1",))

    def test_waits_for_nothing_where_no_clock_is_given(self) -> None:
        spec = run_spec(batching="deadline")
        assert step(spec, asked_for(spec, "ada"), train=False) == PlanBatch(requests=("for-ada",))

    def test_a_deadline_leaves_room_for_the_prediction_and_the_margin(self) -> None:
        spec = run_spec(batching="deadline", safety_margin_s=86_400.0)
        state = asked_for(spec, "ada", days=10)
        predicted = predicted_rebuild_s(spec, state, num_subjects=1, num_slots=1)
        assert predicted > 0
        due = NOW + timedelta(days=9) - timedelta(seconds=predicted)
        assert wakes_at(spec, state, Moment(now=NOW)) == due
        assert decided(spec, state, due - timedelta(seconds=1)) is None
        assert decided(spec, state, due) == PlanBatch(requests=("for-ada",))

    def test_more_people_and_fewer_slots_start_earlier(self) -> None:
        spec = run_spec(batching="deadline")
        one, two = asked_for(spec, "ada"), asked_for(spec, "ada", "joe")
        alone = wakes_at(spec, one, Moment(now=NOW, num_slots=1))
        together = wakes_at(spec, two, Moment(now=NOW, num_slots=1))
        side_by_side = wakes_at(spec, two, Moment(now=NOW, num_slots=2))
        assert alone is not None
        assert together is not None
        assert together < alone == side_by_side

    def test_wakes_for_news_alone_where_nothing_waits(self) -> None:
        spec = run_spec(batching="window")
        assert wakes_at(spec, trained(spec), Moment(now=NOW)) is None

    def test_an_urgent_request_is_planned_at_once(self) -> None:
        spec = run_spec(batching="deadline", min_subjects=50)
        state = asked_for(spec, "ada", priority="urgent")
        assert decided(spec, state, NOW) == PlanBatch(requests=("for-ada",))


class TestPrediction:
    def test_is_nothing_for_a_run_that_trained_nothing(self) -> None:
        spec = run_spec()
        assert predicted_rebuild_s(spec, RunState(), num_subjects=3, num_slots=1) == 0
        assert predicted_rebuild_s(spec, fold([ingested()]), num_subjects=3, num_slots=1) == 0

    def test_is_every_touched_shard_whole_in_the_runs_own_time(self) -> None:
        spec = run_spec()
        state = trained(spec)
        per_step = sum(r.seconds for r in state.stages.values()) / sum(
            r.num_steps for r in state.stages.values()
        )
        longest = max(sum(Lineage(spec, state).steps(k)) for k in range(NUM_SHARDS))
        for num_subjects, num_slots, waves in [
            (1, 1, 1),
            (2, 1, 2),
            (9, 1, 2),
            (2, 2, 1),
            (9, 7, 1),
            (9, 0, 2),
        ]:
            seconds = predicted_rebuild_s(spec, state, num_subjects=num_subjects, num_slots=num_slots)
            assert seconds == pytest.approx(waves * longest * per_step), (num_subjects, num_slots)


def in_trouble(spec: Spec, retry_at: datetime) -> RunState:
    """A run whose batch is rebuilt and published, and whose purge has failed."""
    state = asked_for(spec, "ada")
    state.apply(planned((0, 2), batch="b1", request="for-ada"))
    state.apply(SlicesRewritten(batch="b1", slices=(make_slice(0, 2, ["left"], attempt="a1"),)))
    for record in built(spec, state, [(0, r) for r in range(2, NUM_SLICES + 1)]):
        state.apply(record)
    publish = step(spec, state, train=False)
    assert isinstance(publish, Publish)
    state.published_keys = publish.keys
    state.apply(PurgeFailed(problem="still there", retry_at=retry_at))
    return state


class TestPurgeThatFailed:
    def test_is_tried_again_at_its_time_and_nothing_is_closed_before(self) -> None:
        spec = run_spec()
        retry_at = NOW + timedelta(seconds=30)
        state = in_trouble(spec, retry_at)
        assert wakes_at(spec, state, Moment(now=NOW)) == retry_at
        assert decided(spec, state, NOW) is None
        assert decided(spec, state, retry_at - timedelta(microseconds=1)) is None
        assert decided(spec, state, retry_at) == Purge()
        state.apply(Purged(attempt="a1", num_objects=1, num_bytes=1))
        assert state.purge_trouble is None
        assert decided(spec, state, NOW) == CloseBatch(batch="b1")
        assert wakes_at(spec, state, Moment(now=NOW)) is None

    def test_is_tried_at_once_by_a_command(self) -> None:
        spec = run_spec()
        assert step(spec, in_trouble(spec, NOW + 1000 * HOUR), train=False) == Purge()

    def test_counts_its_tries_since_the_first(self) -> None:
        spec = run_spec()
        state = in_trouble(spec, NOW)
        since = state.entry.at
        state.entry = EntryMark(seq=99, digest="", at=NOW + HOUR)
        state.apply(PurgeFailed(problem="denied", retry_at=NOW + 2 * HOUR))
        trouble = state.purge_trouble
        assert trouble is not None
        assert (trouble.num_tries, trouble.since, trouble.problem) == (2, since, "denied")
        assert trouble.retry_at == NOW + 2 * HOUR

    def test_holds_no_other_request_up(self) -> None:
        spec = run_spec()
        state = in_trouble(spec, NOW + HOUR)
        state.apply(accepted("r2", "joe", received_at=NOW))
        assert decided(spec, state, NOW) == FenceRequests(requests=("r2",))
        state.apply(RequestsFenced(requests=("r2",)))
        assert decided(spec, state, NOW) == PlanBatch(requests=("r2",))
        assert wakes_at(spec, state, Moment(now=NOW)) == NOW


class TestJoining:
    @pytest.mark.parametrize(("minutes", "joins"), [(0, True), (0.9, True), (1.1, False), (600, False)])
    def test_a_batch_is_joined_for_a_while_and_then_published_first(
        self, minutes: float, joins: bool
    ) -> None:
        """Else a run that is asked more often than it can be rebuilt would never publish."""
        spec = run_spec(batching="at_once")
        state = asked_for(spec, "t1")
        state.entry = EntryMark(seq=90, digest="d", at=NOW)
        first = tuple(state.requests)
        state.apply(RequestsFenced(requests=first))
        state.apply(planned((0, 2), request=first[0]))
        state.apply(SlicesRewritten(batch="b1", slices=(make_slice(0, 2, ["x"], attempt="a9"),)))
        state.apply(accepted("late", "t2"))
        state.apply(RequestsFenced(requests=("late",)))
        decision = decided(spec, state, NOW + minutes * timedelta(minutes=1))
        assert isinstance(decision, PlanBatch if joins else BuildStages)
        assert isinstance(step(spec, state, train=False), PlanBatch), "a command waits for nothing"
