"""The coordinator: requests accepted at any time, by any number of callers, and done by one process at a time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.errors import CommitFailed, DataError, ExecutionError
from sisa_ray.core.records import StageBuilt
from sisa_ray.execution import commands, coordinator, desk, hosting
from sisa_ray.execution.acceptance import Acceptance, Submission
from sisa_ray.execution.client import ActorClient, LogClient, find_actor, find_coordinator, read_sign
from sisa_ray.execution.coordinator import Coordinator
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.verify import verify
from sisa_ray.storage.log import CommitLog
from sisa_ray.storage.slices import load_slice
from sisa_ray.storage.tables import subjects
from tests.execution.tables import make_config, make_table
from tests.support.inline import InlineWorkers


def trained(directory: Path, **changes: Any) -> SisaConfig:
    config = make_config(directory, make_table(90), **changes)
    commands.train(config, new_workers=InlineWorkers)
    return config


def begin(config: SisaConfig) -> Coordinator:
    here = Coordinator(config.address, tasks=hosting.TASKS, new_workers=InlineWorkers)
    here.start()
    return here


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Coordinator]:
    here = begin(trained(tmp_path))
    yield here
    here.stop()


def submit(here: Coordinator, *people: str, key: str | None = None) -> Acceptance:
    (answer,) = here.submit([Submission(subjects=people, key=key)]).result(30)
    assert isinstance(answer, Acceptance), answer
    return answer


def until(condition: Callable[[], bool], *, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def address(here: Coordinator) -> str:
    return here.report().address


def test_requests_of_many_callers_are_committed_in_groups(running: Coordinator) -> None:
    before = existing_run(address(running)).head.seq
    with ThreadPoolExecutor(16) as callers:
        accepted = list(callers.map(lambda i: submit(running, f"p{i}", key=f"k{i}"), range(60)))
    names = [answer.request for answer in accepted]
    assert len(set(names)) == 60
    until(lambda: running.is_settled(names))
    state = existing_run(address(running)).state
    assert {state.request_state(state.closed_requests[name]) for name in names} == {"certified"}
    groups = {
        entry.head.seq
        for entry in CommitLog(existing_run(address(running)).store).read()
        if entry.head.seq > before and any(r.type == "request_accepted" for r in entry.records)
    }
    assert len(groups) < 40
    assert sum(ref.num_records for ref in state.slices.values()) == 30


def test_a_key_sent_twice_is_one_request(running: Coordinator) -> None:
    first = submit(running, "p1", key="ticket")
    again = submit(running, "p1", key="ticket")
    assert again.request == first.request
    assert (first.is_new, again.is_new) == (True, False)
    (answer,) = running.submit([Submission(subjects=("p2",), key="ticket")]).result(30)
    assert isinstance(answer, DataError)
    assert "names other people" in str(answer)


def test_one_bad_submission_does_not_spoil_the_others(running: Coordinator) -> None:
    bad, good = running.submit([Submission(subjects=("p1", "")), Submission(subjects=("p2",))]).result(30)
    assert isinstance(bad, DataError)
    assert "row 1 is empty" in str(bad)
    assert isinstance(good, Acceptance)


def test_the_second_coordinator_fences_the_first(tmp_path: Path) -> None:
    config = trained(tmp_path)
    first = begin(config)
    submit(first, "p1")
    second = begin(config)
    until(lambda: first.report().status == "stopped")
    with pytest.raises(CommitFailed, match=r"coordinator has stopped .*another process"):
        first.submit([Submission(subjects=("p2",))]).result(30)
    name = submit(second, "p3").request
    until(lambda: second.is_settled([name]))
    sign = read_sign(config.address)
    assert sign is not None
    assert sign["attempt"] == second.report().attempt
    first.stop()
    assert read_sign(config.address) is not None
    second.stop()
    assert read_sign(config.address) is None
    state = existing_run(config).state
    assert (state.attempt, len(state.requests), len(state.closed_requests)) == (None, 0, 2)
    assert verify(config, new_workers=InlineWorkers).bit_identical


def test_requests_accepted_through_the_log_are_found(
    running: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a machine that does not reach the coordinator's cluster."""
    monkeypatch.setattr("sisa_ray.execution.client.find_actor", lambda _: None)
    until(lambda: read_sign(address(running)) is not None)
    client = find_coordinator(address(running))
    assert isinstance(client, LogClient)
    accepted = client.submit([Submission(subjects=("p5",)), Submission(subjects=("nobody",))])
    client.wait([answer.request for answer in accepted])
    rows = desk.list_requests(address(running)).rows
    assert sorted(row.state for row in rows) == ["certified", "unknown"]
    assert running.report().status in ("idle", "working")
    with pytest.raises(Exception, match="does not reach its Ray cluster"):
        client.call("verify")


def test_work_is_done_between_batches(running: Coordinator) -> None:
    name = submit(running, "p1").request
    shown = running.call("verify", {}).result(60)
    assert shown.bit_identical
    assert running.is_settled([name])
    with pytest.raises(DataError, match="is not open"):
        running.call("extend", {"name": "0", "reason": "complexity"}).result(30)


def test_what_is_left_is_done_by_the_next(tmp_path: Path) -> None:
    config = trained(tmp_path, unlearning={"batching": "size", "batch_size": 2})
    first = begin(config)
    name = submit(first, "p1").request
    until(lambda: first.report().requests_by_state == {"fenced": 1})
    first.stop()
    second = begin(config)
    assert second.report().requests_by_state == {"fenced": 1}
    other = submit(second, "p2").request
    until(lambda: second.is_settled([name, other]))
    second.stop()
    state = existing_run(config).state
    assert len(state.closed_batches) == 1


def test_trouble_is_told_and_requests_are_accepted_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "_FIRST_PAUSE_S", 0.05)
    config = trained(tmp_path)
    here = begin(config)
    with monkeypatch.context() as patch:

        def failing(*_: object, **__: object) -> None:
            raise ExecutionError("shard 1: no GPU is left")

        patch.setattr("tests.support.inline.InlinePool.build", failing)
        first = submit(here, "p1").request
        until(lambda: here.report().trouble == "shard 1: no GPU is left")
        second = submit(here, "p2").request
    until(lambda: here.is_settled([first, second]))
    assert here.report().trouble is None
    here.stop()
    assert verify(config, new_workers=InlineWorkers).bit_identical


@pytest.mark.usefixtures("ray_local")
def test_a_request_joins_a_rebuild_and_what_is_still_wanted_is_kept(tmp_path: Path) -> None:
    config = trained(
        tmp_path,
        recipe={"class": "tests.execution.recipes.Slow", "args": {}},
        sisa={"num_shards": 2, "num_slices": 3, "epochs": 4},
    )
    run = existing_run(config)
    old = {ref.key for ref in run.state.stages.values()}
    place = {
        (ref.shard, ref.slice): subjects(load_slice(run.store, ref))[0].as_py()
        for ref in run.state.slices.values()
    }
    here = Coordinator(config.address, tasks=hosting.TASKS)
    here.start()
    first = submit(here, place[0, 1]).request
    until(lambda: any(ref.key not in old for ref in existing_run(config).state.stages.values()))
    second = submit(here, place[0, 3]).request
    until(lambda: here.is_settled([first, second]), timeout_s=120)
    here.stop()
    entries = CommitLog(run.store).read()
    built = [r.ref.key for e in entries for r in e.records if isinstance(r, StageBuilt)]
    assert len(built) == len(set(built)), "a stage was built twice"
    batches = existing_run(config).state.closed_batches
    assert len(batches) == 2
    published = [e.head.seq for e in entries if any(r.type == "generation_published" for r in e.records)]
    assert len(published) == 2, "the second request did not join"
    assert verify(config, new_workers=InlineWorkers).bit_identical


@pytest.mark.crash
@pytest.mark.usefixtures("ray_local")
def test_the_real_actor_comes_back_after_sigkill(tmp_path: Path) -> None:
    config = trained(tmp_path)
    report = hosting.start_coordinator(config)
    assert hosting.start_coordinator(config).attempt == report.attempt
    client = ActorClient(config.address, find_actor(config.address))
    accepted = client.submit([Submission(subjects=("p1", "p2"), key="k")])
    os.kill(report.pid, signal.SIGKILL)
    again = client.submit([Submission(subjects=("p1", "p2"), key="k")])
    assert again[0].request == accepted[0].request
    client.wait([accepted[0].request])
    result = commands.unlearn(config, ["p3", "nobody"])
    assert (result.num_forgotten, result.num_unknown) == (1, 1)
    assert result.certificate
    with pytest.raises(DataError, match="row 0 is empty"):
        client.submit([Submission(subjects=("",))])
    assert commands.verify(config).bit_identical
    now = hosting.coordinator_report(config)
    assert now is not None
    assert now.pid != report.pid
    assert hosting.stop_coordinator(config)
    assert not hosting.stop_coordinator(config)
    assert ray.is_initialized()
