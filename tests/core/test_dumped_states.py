"""States of a run as snapshots have them: what is loaded is what was dumped, and the log goes on from there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from sisa_ray.core.dumped import dump_state, load_state, state_form
from sisa_ray.core.planner import named_paths
from sisa_ray.core.protection import BucketProtection
from sisa_ray.core.records import (
    AttemptClosed,
    AttemptOpened,
    CheckpointLost,
    PayloadOpened,
    PayloadRewritten,
    PrivacySpent,
    PurgeFailed,
    PurgePlanned,
    Record,
    RequestExtended,
    RequestRejected,
    RequestsFenced,
    RunCreated,
    SelfChecked,
    ServingClosed,
    ServingOpened,
    StageBuilt,
    SuppressionLifted,
    TableAppended,
    Verified,
)
from sisa_ray.core.requests import EntryMark
from sisa_ray.core.state import RunState
from tests.core.builders import RECEIVED, accepted, make_slice, make_stage
from tests.core.test_records import ALL
from tests.core.test_requests import (
    INGESTED,
    PURGED,
    SHARED,
    apply,
    certified,
    closed,
    planned,
    published,
    rewritten,
    spec_of,
)

HISTORY: list[Record] = [
    RunCreated(
        spec_digest="d", secret_id="s", protection=BucketProtection(versioning=True, lifecycle=("x",))
    ),
    AttemptOpened(attempt="a0", command="train"),
    INGESTED,
    SelfChecked(platform={"torch": "2", "device": "cpu"}),
    *(StageBuilt(ref=make_stage(k, r, key=f"{k}{r}")) for k in (0, 1) for r in (1, 2)),
    published(1),
    Verified(shards=(0, 1), source="slices", outcome="bit-identical"),
    AttemptClosed(attempt="a0"),
    ServingOpened(lease_s=4.0),
    PrivacySpent(num_answers=7, epsilon="1/10"),
    PayloadOpened(path=SHARED),
    accepted("r1", "ada", "eve", payload=SHARED, key="k1", priority="urgent"),
    accepted("r2", "joe", payload=SHARED, basis="ccpa"),
    accepted("r3", "ada", "kim", received_at=RECEIVED.astimezone(timezone(timedelta(hours=9)))),
    PayloadOpened(path="requests/given-up"),
    AttemptOpened(attempt="a1", command="unlearn"),
    accepted("r4", "ada", key="k1"),
    RequestExtended(request="r2", due_at=RECEIVED + timedelta(days=90), reason="number-of-requests"),
    RequestsFenced(requests=("r1", "r2", "r3")),
    RequestRejected(request="r3", reason="identity-not-verified"),
    planned("b1", "r1", unknown=("eve",)),
    rewritten("b1"),
    accepted("r5", "lee"),
    planned("b2", "r5"),
    StageBuilt(ref=make_stage(0, 1, key="n1", kept=False)),
    StageBuilt(ref=make_stage(0, 2, key="n2", file_digest="f7")),
    published(2),
    PayloadRewritten(before=SHARED, path="requests/new", requests=("r2",)),
    PurgePlanned(attempt="a1", num_objects=4),
    PurgeFailed(problem="still there", retry_at=RECEIVED + timedelta(minutes=1)),
    PurgeFailed(problem="denied", retry_at=RECEIVED + timedelta(minutes=3)),
    PURGED,
    closed("b1"),
    rewritten("b2"),
    CheckpointLost(shard=1, stage=1, reason="missing"),
    certified("b1"),
    SuppressionLifted(tags=("eve",), reason="entered-in-error", key_id="k", signature="00"),
    TableAppended(
        attempt="a1",
        source="t.parquet",
        num_slices=1,
        slices=tuple(make_slice(k, 3, [f"{k}3"]) for k in (0, 1)),
        num_rows=2,
        num_refused=1,
    ),
    PURGED,
    closed("b2"),
    ServingClosed(),
    PrivacySpent(num_answers=3, epsilon="1/7"),
    AttemptClosed(attempt="a1"),
]


def orders(state: RunState) -> list[list[object]]:
    """What decides who comes first."""
    found = (state.requests, state.closed_requests, state.batches, state.closed_batches, state.payloads)
    return [list(held) for held in (*found, state.slices, state.stages, state.keys, state.suppressed)]


class TestSnapshots:
    def test_the_history_has_every_kind_of_record(self) -> None:
        assert {type(record) for record in HISTORY} == {type(record) for record in ALL}

    @given(st.integers(0, len(HISTORY)), st.integers(0, 10**12))
    def test_a_state_comes_back_from_a_snapshot_as_it_was(self, cut: int, micros: int) -> None:
        state = RunState()
        for seq, record in enumerate(HISTORY[:cut]):
            when = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros * (seq + 1))
            state.entry = EntryMark(seq=seq, digest=f"{seq:064x}", at=when)
            state.apply(record)
        again = load_state(dump_state(state))
        assert again == state
        assert orders(again) == orders(state)
        assert named_paths(spec_of(), again) == named_paths(spec_of(), state)

    @given(st.sets(st.integers(0, len(HISTORY))))
    def test_the_log_goes_on_from_a_snapshot(self, cuts: set[int]) -> None:
        state = RunState()
        for number, record in enumerate(HISTORY):
            if number in cuts:
                state = load_state(dump_state(state))
            apply(state, [record])
        whole = apply(RunState(), HISTORY)
        assert state == whole
        assert orders(state) == orders(whole)

    @pytest.mark.parametrize(
        "data", [b"", b"[]", b'{"generation":"many"}', b'{"requests":{"r1":{}}}', b'{"slices":[{}]}']
    )
    def test_what_is_no_state_is_refused(self, data: bytes) -> None:
        with pytest.raises((ValidationError, KeyError)):
            load_state(data)

    def test_a_state_of_another_form_has_another_digest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A field that is missing in a snapshot would be empty, and one too many would be lost."""

        @dataclass(kw_only=True)
        class Later(RunState):
            further: int = 0

        before = state_form()
        state_form.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr("sisa_ray.core.dumped._ADAPTER", TypeAdapter(Later))
            assert state_form() != before
        state_form.cache_clear()
        assert state_form() == before
