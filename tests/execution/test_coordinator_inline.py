"""The coordinator: accepts at any time, goes on after anything, and gives way to whoever takes the run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.errors import (
    CommitFailed,
    DataError,
    ExecutionError,
    RunConflict,
    StorageUnavailable,
)
from sisa_ray.core.records import (
    AttemptClosed,
    AttemptOpened,
    RequestAccepted,
)
from sisa_ray.execution import commands, coordinator, desk, evidence
from sisa_ray.execution.acceptance import Acceptance, accept_from_outside
from sisa_ray.execution.client import read_sign
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.workers import NewWorkers, Workers
from sisa_ray.storage.local import LocalStore
from tests.execution.coordinators import ask, error_of, eventually, logged, names, running, states, trained
from tests.support.inline import InlinePool, InlineWorkers

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: Patch) -> None:
    monkeypatch.setattr(coordinator, "_LOOK_S", 0.05)
    monkeypatch.setattr(coordinator, "_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(coordinator, "_LONGEST_PAUSE_S", 0.1)


@pytest.fixture
def config(tmp_path: Path) -> SisaConfig:
    return trained(tmp_path)


@pytest.fixture
def _out_of_reach(monkeypatch: Patch) -> None:
    monkeypatch.setattr("sisa_ray.execution.client.join_existing_ray", lambda: False)


def hooked(before_build: Callable[[], None]) -> NewWorkers:
    """Workers that do something first whenever stages are to be built."""

    class Pool(InlinePool):
        def build(self, *args: Any, **kwargs: Any) -> None:
            before_build()
            super().build(*args, **kwargs)

    class Hooked(Workers):
        def pool(self, spec: Any, on_event: Any) -> Any:
            return Pool(spec)

    return Hooked


class TestAccepting:
    def test_of_many_at_once_is_grouped_and_all_are_certified(
        self, config: SisaConfig, monkeypatch: Patch
    ) -> None:
        create = LocalStore.create

        def slow_create(self: LocalStore, path: str, data: bytes) -> None:
            time.sleep(0.01)
            create(self, path, data)

        monkeypatch.setattr(LocalStore, "create", slow_create)
        with running(config) as one, ThreadPoolExecutor(8) as people:

            def submit(i: int) -> list[str]:
                return names(one.submit([ask(f"p{i}")]).result(timeout=30))

            asked = [name for found in people.map(submit, range(32)) for name in found]
            assert len(set(asked)) == 32
            eventually(lambda: one.is_settled(asked))
        accepted = logged(config, RequestAccepted)
        assert len(accepted) == 32
        assert len({seq for seq, _ in accepted}) <= 16
        assert states(config) == ["certified"] * 32
        assert len(evidence.certificates(config).rows) < 32
        assert commands.status(config).complete

    def test_answers_each_with_its_own(self, config: SisaConfig) -> None:
        with running(config) as one:
            futures = [one.submit([ask(f"p{i}"), ask(""), ask(f"p{i}", f"p{i + 1}")]) for i in range(5)]
            for future in futures:
                first, fault, second = future.result(timeout=30)
                assert isinstance(first, Acceptance)
                assert isinstance(second, Acceptance)
                assert (first.num_subjects, second.num_subjects) == (1, 2)
                assert isinstance(fault, DataError)
            assert one.submit([]).result(timeout=30) == []

    def test_a_key_sent_twice_is_one_request(self, config: SisaConfig) -> None:
        with running(config) as one:
            answers = [one.submit([ask("p1", "p2", key="ticket")]) for _ in range(6)]
            found = [answer for future in answers for answer in future.result(timeout=30)]
            assert len(set(names(found))) == 1
            eventually(lambda: one.is_settled(names(found)[:1]))
            again, other = one.submit([ask("p2", "p1", key="ticket"), ask("p3", key="ticket")]).result(30)
            assert isinstance(again, Acceptance)
            assert (again.request, again.state, again.is_new) == (names(found)[0], "certified", False)
            assert isinstance(other, DataError)
            assert "which names other people" in str(other)
        assert states(config) == ["certified"]

    @pytest.mark.usefixtures("_out_of_reach")
    def test_from_outside_through_the_log(self, config: SisaConfig) -> None:
        """By processes that reach its storage, and not its Ray."""
        with running(config) as one:
            asked = names(accept_from_outside(existing_run(config), [ask("p1"), ask("p2", "nobody")]))
            eventually(lambda: one.is_settled(asked))
            eventually(lambda: read_sign(config.address))
            done = commands.unlearn(config, ["p3"])
            assert (done.num_forgotten, done.certificate is not None) == (1, True)
            (accepted,) = desk.request(config, [ask("p4")])
            eventually(lambda: one.is_settled([accepted.request]))
            with pytest.raises(RunConflict, match=r"does not reach its Ray cluster; .* to extend"):
                desk.extend(config, accepted.request, "complexity")
            assert one.report().status in ("idle", "working")
        assert states(config) == ["certified"] * 4
        assert len(logged(config, AttemptOpened)) == 3  # ingest, train, coordinator


class TestFencing:
    def test_a_second_one_takes_over_and_the_first_says_so(self, config: SisaConfig) -> None:
        with running(config) as first, running(config) as second:
            eventually(lambda: first.report().status == "stopped")
            taken = "another process has taken the run; this coordinator stops"
            assert taken in (first.report().trouble or "")
            for future in (first.submit([ask("p1")]), first.call("train", {})):
                message = error_of(future)
                assert "the coordinator has stopped (" in message
                assert taken in message
                assert message.endswith("; start it again")
            with pytest.raises(CommitFailed, match="the coordinator has stopped"):
                first.is_settled([])
            asked = names(second.submit([ask("p1")]).result(timeout=30))
            eventually(lambda: second.is_settled(asked))
            eventually(lambda: (read_sign(config.address) or {}).get("attempt") == second.report().attempt)
            first.stop()
            assert (read_sign(config.address) or {}).get("attempt") == second.report().attempt
        assert read_sign(config.address) is None
        assert states(config) == ["certified"]

    def test_a_superseded_one_accepts_nothing_more(self, config: SisaConfig, monkeypatch: Patch) -> None:
        monkeypatch.setattr(coordinator, "_LOOK_S", 10.0)  # it does not notice by itself
        with running(config) as first:
            eventually(lambda: first.report().status == "idle")
            with running(config):
                assert error_of(first.submit([ask("p1")]))
                eventually(lambda: first.report().status == "stopped")
                assert error_of(first.submit([ask("p2")])).endswith("; start it again")
        assert states(config) == []


class TestGoingOn:
    def test_after_a_stop(self, tmp_path: Path) -> None:
        config = trained(tmp_path, unlearning={"batching": "size", "batch_size": 2})
        with running(config) as one:
            asked = names(one.submit([ask("p1")]).result(timeout=30))
            eventually(lambda: one.report().requests_by_state == {"fenced": 1})
            eventually(lambda: read_sign(config.address))
        assert one.report().status == "stopped"
        assert read_sign(config.address) is None
        assert error_of(one.submit([ask("p2")])).endswith("the coordinator has stopped; start it again")
        assert isinstance(logged(config, AttemptClosed)[-1][1], AttemptClosed)
        assert states(config) == ["fenced"]
        with running(config) as other:
            asked += names(other.submit([ask("p2")]).result(timeout=30))
            eventually(lambda: other.is_settled(asked))
        (row,) = evidence.certificates(config).rows
        assert row.num_requests == 2

    def test_after_a_stop_amid_a_build(self, config: SisaConfig) -> None:
        building, stopping = threading.Event(), threading.Event()

        def wait() -> None:
            building.set()
            assert stopping.wait(30)

        with running(config, hooked(wait)) as one:
            asked = names(one.submit([ask("p1", "p2", "p3", "p4")]).result(timeout=30))
            assert building.wait(30)
            order = one.call("train", {})
            stopper = threading.Thread(target=one.stop)
            stopper.start()
            eventually(one._stop.is_set)  # noqa: SLF001
            stopping.set()
            stopper.join()
            assert "the coordinator has stopped" in error_of(order)
        assert states(config) == ["rebuilding"]
        with running(config) as other:
            eventually(lambda: other.is_settled(asked))
        assert commands.verify(config, new_workers=InlineWorkers).bit_identical

    def test_with_a_task_between_batches(self, config: SisaConfig) -> None:
        with running(config) as one:
            first = names(one.submit([ask("p1")]).result(timeout=30))
            order = one.call("verify", {"shards": None, "sample": None})
            second = names(one.submit([ask("p2")]).result(timeout=30))
            assert order.result(timeout=30).bit_identical
            eventually(lambda: one.is_settled([*first, *second]))
            assert one.call("train", {}).result(timeout=30).generation >= 2
            row = one.submit([ask("p3")]).result(timeout=30)[0]
            assert "is not open" in error_of(one.call("extend", {"name": "zz", "reason": "complexity"}))
            assert isinstance(one.call("dance", {}).exception(timeout=30), KeyError)
            eventually(lambda: one.is_settled(names([row])))
            last, events = one.events_since(0)
            assert last >= len(events) > 0
            assert one.events_since(last) == (last, [])
        assert commands.verify(config, new_workers=InlineWorkers).bit_identical


class TestTrouble:
    def test_in_training_is_told_and_it_goes_on_accepting(self, config: SisaConfig) -> None:
        broken = [True]

        def fail() -> None:
            if broken[0]:
                raise ExecutionError("shard 1: out of cheese")

        with running(config, hooked(fail)) as one:
            asked = names(one.submit([ask("p1")]).result(timeout=30))
            eventually(lambda: one.report().status == "in trouble")
            assert one.report().trouble == "shard 1: out of cheese"
            asked += names(one.submit([ask("p2")]).result(timeout=30))
            assert sum(one.report().requests_by_state.values()) == 2
            assert not one.is_settled(asked)
            broken[0] = False
            eventually(lambda: one.is_settled(asked))
            eventually(lambda: (one.report().status, one.report().trouble) == ("idle", None))
        assert states(config) == ["certified", "certified"]

    def test_of_another_kind_ends_it_and_the_next_one_goes_on(self, config: SisaConfig) -> None:
        def fail() -> None:
            raise RuntimeError("never seen before")

        with running(config, hooked(fail)) as one:
            asked = names(one.submit([ask("p1")]).result(timeout=30))
            eventually(lambda: one.report().status == "stopped")
            assert one.report().trouble == "never seen before"
            assert "(never seen before); start it again" in error_of(one.submit([ask("p2")]))
        with running(config) as other:
            eventually(lambda: other.is_settled(asked))

    @pytest.mark.parametrize(
        "when",
        [
            "building",
            "idle",
        ],
    )
    def test_with_storage_is_told_until_it_is_back(
        self, config: SisaConfig, monkeypatch: Patch, when: str
    ) -> None:
        away = threading.Event()
        for name in ("get", "create", "put", "list", "delete"):
            monkeypatch.setattr(LocalStore, name, _failing_while(away, getattr(LocalStore, name)))
        first_build = [away.set] if when == "building" else []
        with running(config, hooked(lambda: first_build.pop()() if first_build else None)) as one:
            eventually(lambda: one.report().status == "idle")
            asked: list[str] = []
            if when == "building":
                asked = names(one.submit([ask("p1")]).result(timeout=30))
            else:
                away.set()
            eventually(lambda: one.report().status in ("in trouble", "stopped"))
            assert "storage is away" in (one.report().trouble or "")
            assert "storage is away" in error_of(one.submit([ask("p2")]))
            away.clear()
            eventually(lambda: one.report().status != "in trouble")
            asked += names(one.submit([ask("p3")]).result(timeout=30))
            eventually(lambda: one.is_settled(asked))
        assert set(states(config)) == {"certified"}


def _failing_while(away: threading.Event, do: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(self: LocalStore, *args: Any, **kwargs: Any) -> Any:
        if away.is_set():
            raise StorageUnavailable(f"{self.url}: storage is away")
        return do(self, *args, **kwargs)

    return wrapped
