"""Accepting requests: many at once cost two writes, what is wrong changes nothing, and others may be at work."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.errors import CommitFailed, DataError, SisaError
from sisa_ray.core.records import AttemptClosed, RequestAccepted, RequestsFenced
from sisa_ray.execution import acceptance as module
from sisa_ray.execution import commands, desk
from sisa_ray.execution.acceptance import Acceptance, Submission, accept, accept_from_outside
from sisa_ray.execution.events import ignore
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.session import Session
from sisa_ray.execution.workers import Workers
from sisa_ray.storage import layout
from sisa_ray.storage.log import CommitLog
from sisa_ray.storage.mirror import check_mirror, missing_tags
from sisa_ray.storage.payloads import read_subjects, write_payload
from sisa_ray.storage.purge import purge
from sisa_ray.storage.run import Run
from tests.execution.tables import make_config, make_table
from tests.support.inline import InlineWorkers

NOW = datetime(2026, 5, 31, 12, tzinfo=UTC)


@pytest.fixture
def config(tmp_path: Path) -> SisaConfig:
    """A run with its table, at a time that stands still."""
    config = make_config(tmp_path, make_table(30), sisa={"num_shards": 2, "num_slices": 2, "epochs": 2})
    commands.ingest(config, new_workers=InlineWorkers)
    return config


def open_run(config: SisaConfig) -> Run:
    run = existing_run(config)
    run.log.now = lambda: NOW
    return run


@pytest.fixture
def run(config: SisaConfig) -> Run:
    return open_run(config)


def files(config: SisaConfig) -> dict[str, bytes]:
    root = Path(config.address)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def ask(*subjects: str, **fields: Any) -> Submission:
    return Submission(subjects=subjects, **fields)


def done(answer: Acceptance | SisaError) -> Acceptance:
    assert isinstance(answer, Acceptance), answer
    return answer


def payloads(run: Run) -> list[str]:
    return [info.path for info in run.store.list(layout.REQUESTS)]


@pytest.fixture(params=[accept, accept_from_outside], ids=["inside", "outside"])
def way(request: pytest.FixtureRequest) -> Any:
    """Either way of accepting."""
    return request.param


class TestTogether:
    def test_many_are_one_object_and_one_entry(self, run: Run, config: SisaConfig, way: Any) -> None:
        before = run.head.seq
        answers = [done(a) for a in way(run, [ask(f"p{i}", "p0") for i in range(50)])]
        assert run.head.seq == before + 1 + (way is accept_from_outside)
        assert len(payloads(run)) == 1
        assert len({a.request for a in answers}) == len(run.state.requests) == 50
        assert all(a.is_new and a.state == "accepted" and not a.is_overdue for a in answers)
        names = [a.request for a in answers]
        assert read_subjects(existing_run(config), names) == [f"p{i}" for i in range(50)]
        assert existing_run(config).state == run.state
        assert missing_tags(run) == []

    def test_people_are_counted_once_and_named_by_tags_alone(self, run: Run, way: Any) -> None:
        answer = done(way(run, [ask("p1", "p2", "p1")])[0])
        assert answer.num_subjects == 2
        assert run.state.requests[answer.request].tags == tuple(run.secret.tags(["p1", "p2"]))
        entries = b"".join(run.store.get(info.path) for info in run.store.list(layout.LOG))
        assert b'"p1"' not in entries

    def test_clocks_start_when_the_request_was_received(self, run: Run, way: Any) -> None:
        received = datetime(2026, 1, 31, 1, tzinfo=timezone(timedelta(hours=3)))
        answers = way(
            run,
            [
                ask("p1"),
                ask("p2", received_at=received),
                ask("p3", received_at=received, basis="ccpa", priority="urgent"),
                ask("p4", received_at=NOW - timedelta(days=32), basis="custom"),
            ],
        )
        due = [done(a).due_at for a in answers]
        assert due[0] == datetime(2026, 6, 30, 12, tzinfo=UTC)
        assert due[1] == datetime(2026, 2, 28, 22, tzinfo=UTC)
        assert due[2] == received + timedelta(days=45)
        assert due[3] == NOW - timedelta(days=2)
        assert [done(a).is_overdue for a in answers] == [False, True, True, True]
        third = run.state.requests[done(answers[2]).request]
        assert (third.basis, third.priority, third.accepted_at) == ("ccpa", "urgent", NOW)

    def test_one_that_is_wrong_leaves_the_others(self, run: Run, way: Any) -> None:
        answers = way(run, [ask("p1"), ask(""), ask("p2"), ask("p3", key=" ")])
        assert [isinstance(a, Acceptance) for a in answers] == [True, False, True, False]
        assert len(run.state.requests) == 2


class TestKeys:
    def test_the_same_again_is_the_same_request(self, run: Run, config: SisaConfig, way: Any) -> None:
        first = done(way(run, [ask("p1", "p2", key="k")])[0])
        before = files(config)
        for run_again in (run, open_run(config)):
            again = done(way(run_again, [ask("p2", "p1", "p2", key="k")])[0])
            assert (again.request, again.is_new) == (first.request, False)
        assert files(config) == before

    def test_other_people_under_the_same_key_are_refused(
        self, run: Run, config: SisaConfig, way: Any
    ) -> None:
        first = done(way(run, [ask("p1", key="k")])[0])
        before = files(config)
        (answer,) = way(run, [ask("p2", key="k")])
        assert isinstance(answer, DataError)
        assert str(answer).startswith(f"idempotency_key: was used for request {first.request}")
        assert files(config) == before

    def test_two_in_one_call_are_one_request(self, run: Run, way: Any) -> None:
        answers = way(run, [ask("p1", key="k"), ask("p2"), ask("p1", key="k"), ask("p3", key="k")])
        assert done(answers[0]).request == done(answers[2]).request
        assert isinstance(answers[3], DataError)
        assert len(run.state.requests) == 2
        assert len(CommitLog(run.store).read()[-1].records) == 2
        assert json.loads(run.store.get(payloads(run)[0]))["requests"].keys() == run.state.requests.keys()

    def test_are_never_stored_as_they_are(self, run: Run, config: SisaConfig, way: Any) -> None:
        way(run, [ask("p1", key="mail-of-ada@example.org")])
        assert not [path for path, data in files(config).items() if b"example.org" in data]

    def test_of_two_processes_at_once_end_in_one_request(self, config: SisaConfig) -> None:
        runs = [open_run(config) for _ in range(6)]
        start = threading.Barrier(len(runs))
        answers: list[Any] = [None] * len(runs)

        def work(number: int) -> None:
            start.wait()
            answers[number] = accept_from_outside(runs[number], [ask("p1", "p2", key="k"), ask(f"q{number}")])

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(runs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({done(a[0]).request for a in answers}) == 1
        assert sum(done(a[0]).is_new for a in answers) == 1
        run = existing_run(config)
        assert len(run.state.requests) == 1 + len(runs)
        assert run.state.opened_payloads == {}
        check_mirror(run)

    def test_whoever_is_late_with_a_key_leaves_no_payload_behind(
        self, config: SisaConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The other is faster between writing the payload and committing it."""
        late, fast = open_run(config), open_run(config)
        first: list[Acceptance] = []

        def write(*args: Any) -> None:
            write_payload(*args)
            with monkeypatch.context() as patch:
                patch.setattr(module, "write_payload", write_payload)
                if not first:
                    first.append(done(accept_from_outside(fast, [ask("p1", key="k")])[0]))

        monkeypatch.setattr(module, "write_payload", write)
        answer = done(accept_from_outside(late, [ask("p1", key="k")])[0])
        assert (answer.request, answer.is_new) == (first[0].request, False)
        assert payloads(late) == [fast.state.requests[answer.request].payload]

    @pytest.mark.parametrize("people", ["p1", "p2"])
    def test_the_holder_that_is_late_with_a_key_has_it_purged(
        self, config: SisaConfig, people: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The log has both then, and the first counts; nobody is suppressed for whom no request counts."""
        with InlineWorkers() as workers, holding(config, workers) as session:
            other = open_run(config)

            def write(*args: Any) -> None:
                write_payload(*args)
                monkeypatch.setattr(module, "write_payload", write_payload)
                first.append(done(accept_from_outside(other, [ask("p1", key="k")])[0]))

            first: list[Acceptance] = []
            monkeypatch.setattr(module, "write_payload", write)
            (answer,) = accept(session.run, [ask(people, key="k")])
            if people == "p1":
                assert (done(answer).request, done(answer).is_new) == (first[0].request, False)
            else:
                assert isinstance(answer, DataError)
            assert len(session.run.state.requests) == 1
            assert missing_tags(session.run) == []
            session.reconcile(train=False)
            assert payloads(session.run) == []


WRONG: dict[str, tuple[Submission, str]] = {
    "nobody": (ask(), r"subjects: the list is empty"),
    "empty": (ask("p1", ""), r"subjects: row 1 is empty"),
    "too long": (ask("p1", "p2", "x" * 1025), r"subjects: row 2 has 1,025 bytes"),
    "too long in bytes": (ask("é" * 513), r"subjects: row 0 has 1,026 bytes"),
    "no Unicode": (ask("p1", "\udc80"), r"subjects: row 1: a key is not valid Unicode"),
    "null": (ask("p1", None), r"subjects: row 1: a key of type NoneType"),  # type: ignore[arg-type]
    "a number with a fraction": (ask(1.5), r"subjects: row 0: a key of type float"),  # type: ignore[arg-type]
    "a truth value": (ask("p1", "p2", True), r"subjects: row 2: a key of type bool"),  # type: ignore[arg-type]
    "future": (ask("p1", received_at=NOW + timedelta(seconds=1)), r"received_at: .* is in the future"),
    "naive": (ask("p1", received_at=datetime(2026, 1, 1)), r"received_at: .* has no time zone"),  # noqa: DTZ001
    "before time": (
        ask("p1", received_at=datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=9)))),
        r"received_at: .* is before the year 1",
    ),
    "empty key": (ask("p1", key=""), r"idempotency_key: must be a text of 1 to 1,024 bytes"),
    "blank key": (ask("p1", key=" \t"), r"idempotency_key: must be"),
    "long key": (ask("p1", key="k" * 1025), r"idempotency_key: must be"),
    "key that is no Unicode": (ask("p1", key="\udc80"), r"idempotency_key: must be"),
}


class TestWrong:
    @pytest.mark.parametrize(("submission", "message"), WRONG.values(), ids=WRONG)
    def test_is_said_and_changes_nothing(
        self, run: Run, config: SisaConfig, way: Any, submission: Submission, message: str
    ) -> None:
        before = files(config)
        (answer,) = way(run, [submission])
        assert isinstance(answer, DataError)
        with pytest.raises(DataError, match=message):
            raise answer
        assert files(config) == before

    @pytest.mark.parametrize(("submission", "message"), WRONG.values(), ids=WRONG)
    def test_at_the_desk_none_of_them_is_accepted(
        self, config: SisaConfig, submission: Submission, message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(desk, "existing_run", lambda target, check_code: open_run(config))
        before = files(config)
        with pytest.raises(DataError, match=message):
            desk.request(config, [ask("p1"), submission])
        assert files(config) == before

    def test_a_received_time_of_now_and_keys_of_full_length_are_fine(self, run: Run, way: Any) -> None:
        answers = way(run, [ask("x" * 1024, received_at=NOW, key="k" * 1024), ask(17, b"\x11")])  # type: ignore[arg-type]
        assert [done(a).num_subjects for a in answers] == [1, 2]


def holding(config: SisaConfig, workers: Workers) -> Session:
    return Session(open_run(config), workers, command="test", on_event=ignore)


@pytest.fixture
def held(config: SisaConfig) -> Iterator[Session]:
    """A session of another process, which has the run all the while."""
    with InlineWorkers() as workers, holding(config, workers) as session:
        yield session


class TestFromOutside:
    def test_the_holder_follows_and_nobody_is_fenced(self, held: Session, run: Run) -> None:
        first = done(accept_from_outside(run, [ask("p1")])[0])
        second = held.accept(ask("p2"))
        third = done(accept_from_outside(run, [ask("p3")])[0])
        assert held.run.state.requests.keys() == {first.request, second}
        held.run.commit(RequestsFenced(requests=(first.request, second)))
        assert held.run.state.requests.keys() == {first.request, second, third.request}
        held.reconcile(train=False)
        run.refresh()
        assert run.state == held.run.state
        assert run.state.attempt == held.attempt
        assert set(run.state.closed_requests) == {first.request, second, third.request}
        assert payloads(run) == []

    def test_many_of_them_never_stop_the_holder(self, held: Session, config: SisaConfig) -> None:
        def work(number: int) -> None:
            outsider = open_run(config)
            for i in range(4):
                done(accept_from_outside(outsider, [ask(f"q{number}-{i}")])[0])

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        mine = [held.accept(ask(f"mine-{i}")) for i in range(8)]
        for thread in threads:
            thread.join()
        held.run.refresh()
        assert len(held.run.state.requests) == 16 + len(mine)
        held.reconcile(train=False)
        assert len(held.run.state.closed_requests) == 16 + len(mine)

    @pytest.mark.parametrize("when", ["announced", "written"])
    def test_a_purge_of_the_holder_in_between_leaves_the_payload(
        self, held: Session, run: Run, when: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        purged = []

        def write(*args: Any) -> None:
            if when == "written":
                write_payload(*args)
            monkeypatch.setattr(module, "write_payload", write_payload)
            purged.append(purge(held.run, attempt=held.attempt, sleep=lambda _: None))
            if when == "announced":
                write_payload(*args)

        monkeypatch.setattr(module, "write_payload", write)
        answer = done(accept_from_outside(run, [ask("p1")])[0])
        assert [p.num_objects for p in purged] == [0]
        assert read_subjects(run, [answer.request]) == ["p1"]
        held.run.refresh()
        held.reconcile(train=False)
        assert payloads(run) == []

    def test_a_payload_that_is_never_committed_goes_in_time(
        self, held: Session, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:

        def write(*args: Any) -> None:
            write_payload(*args)
            raise KeyboardInterrupt

        monkeypatch.setattr(module, "write_payload", write)
        with pytest.raises(KeyboardInterrupt):
            accept_from_outside(run, [ask("p1")])
        (path,) = payloads(run)
        purge(held.run, attempt=held.attempt)
        assert payloads(run) == [path]
        held.run.log.now = lambda: NOW + timedelta(hours=1, seconds=1)
        purge(held.run, attempt=held.attempt)
        assert payloads(run) == []

    def test_a_holder_that_was_superseded_stops(self, held: Session, config: SisaConfig) -> None:
        with InlineWorkers() as workers, holding(config, workers):
            pass
        with pytest.raises(CommitFailed):
            held.accept(ask("p1"))
        # It may have read of it before it commits: it is fenced all the same.
        held.run.refresh()
        with pytest.raises(CommitFailed, match="another process has taken the run"):
            held.accept(ask("p1"))
        assert existing_run(config).state.requests == {}
        held.run.attempt = None  # let the fixture end
        held.run.refresh()

    def test_a_request_is_not_taken_for_a_takeover(self, run: Run, held: Session, config: SisaConfig) -> None:
        accept_from_outside(run, [ask("p1")])
        state = existing_run(config).state
        assert state.attempt == held.attempt
        held.run.commit(AttemptClosed(attempt="somebody"))
        assert held.run.state.attempt == held.attempt


def test_an_answer_that_is_lost_is_asked_for_again_under_the_same_key(run: Run, way: Any) -> None:
    records: Callable[[], int] = lambda: sum(  # noqa: E731
        record["type"] == RequestAccepted.model_fields["type"].default
        for info in run.store.list(layout.LOG)
        for record in json.loads(run.store.get(info.path))["records"]
    )
    first = done(way(run, [ask("p1", key="k")])[0])
    again = [done(a) for a in way(run, [ask("p1", key="k"), ask("p2", key="l")])]
    assert [a.is_new for a in again] == [False, True]
    assert again[0].request == first.request
    assert records() == 2
