"""The coordinator with a real Ray: requests that join a build, and an actor that dies and comes back."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.errors import DataError
from sisa_ray.core.partition import Layout, place
from sisa_ray.core.records import AttemptClosed, AttemptOpened, BatchPlanned, GenerationPublished, StageBuilt
from sisa_ray.execution import commands, desk, hosting
from sisa_ray.execution.client import read_sign
from sisa_ray.execution.coordinator import Coordinator, Report
from sisa_ray.execution.events import Event, StageFinished
from sisa_ray.execution.workers import Workers
from tests.execution.coordinators import ask, eventually, logged, names, running, states, trained
from tests.execution.tables import make_config, make_table
from tests.support.inline import InlineWorkers

SLOW = {"class": "tests.execution.recipes.Slow", "args": {}}


@pytest.mark.usefixtures("ray_local")
def test_a_request_joins_while_stages_are_being_built(tmp_path: Path) -> None:
    """What was built, and is the same without the person, is kept; what was not built yet never saw them."""
    sisa = {"num_shards": 2, "num_slices": 3, "epochs": 4}
    config = make_config(tmp_path, make_table(60), recipe=SLOW, sisa=sisa)
    commands.ingest(config, new_workers=InlineWorkers)
    people = [f"p{i}" for i in range(60)]
    layout = Layout(num_shards=2, num_slices=3, seed=config.sisa.seed)
    places = [(int(k), int(r)) for k, r in zip(*place(people, layout), strict=True)]
    with running(config, Workers) as one:
        order = one.call("train", {})
        eventually(lambda: _finished(one), 60)
        (shard, stage), *_ = _finished(one)
        assert stage == 1
        in_last = people[places.index((shard, max(r for _, r in places)))]
        asked = names(one.submit([ask(in_last)]).result(timeout=30))
        order.result(timeout=60)
        eventually(lambda: one.is_settled(asked))
    built = logged(config, StageBuilt)
    keys = [record.ref.key for _, record in built]
    assert len(set(keys)) == len(keys) == 6, "no stage is built twice, and none with the person"
    ((planned, batch),) = logged(config, BatchPlanned)
    assert batch.affected == ((shard, 3),)
    assert built[0][0] < planned < built[-1][0]
    ((published, first),) = logged(config, GenerationPublished)
    assert (first.generation, published > built[-1][0]) == (1, True)
    assert states(config) == ["certified"]
    assert commands.verify(config, shards=[shard], new_workers=InlineWorkers).bit_identical


def _finished(one: Coordinator) -> list[tuple[int, int]]:
    return [(e.ref.shard, e.ref.stage) for e in one.events_since(0)[1] if isinstance(e, StageFinished)]


@pytest.mark.crash
@pytest.mark.usefixtures("ray_local")
def test_as_an_actor_it_outlives_its_own_death(tmp_path: Path) -> None:
    config = trained(tmp_path, recipe=SLOW)
    first = hosting.start_coordinator(config)
    try:
        assert hosting.start_coordinator(config).pid == first.pid != os.getpid()
        assert (first.address, first.trouble) == (config.address, None)
        eventually(lambda: read_sign(config.address))
        (accepted,) = desk.request(config, [ask("p1", key="ticket")])
        eventually(lambda: states(config) == ["rebuilding"], 60)
        os.kill(first.pid, signal.SIGKILL)
        (again,) = desk.request(config, [ask("p1", key="ticket")])  # as one who heard no answer would do
        assert (again.request, again.is_new) == (accepted.request, False)
        heard: list[Event] = []
        done = commands.unlearn(config, ["p2"], on_event=heard.append)
        assert (done.num_forgotten, done.certificate is not None) == (1, True)
        assert any(isinstance(event, StageFinished) for event in heard)
        eventually(lambda: states(config) == ["certified", "certified"])
        with pytest.raises(DataError, match="row 0 is empty"):
            desk.request(config, [ask("")])
        second = _report(config)
        assert second.pid not in (first.pid, os.getpid())
        assert second.attempt != first.attempt
        with pytest.raises(DataError, match="is not open"):
            desk.extend(config, accepted.request, "complexity")
        assert hosting.stop_coordinator(config)
        assert hosting.coordinator_report(config) is None
        assert not hosting.stop_coordinator(config)
    finally:
        hosting.stop_coordinator(config)
    assert read_sign(config.address) is None
    assert logged(config, AttemptOpened)[-1][1].attempt == second.attempt
    assert logged(config, AttemptClosed)[-1][1].attempt == second.attempt
    assert commands.verify(config, new_workers=InlineWorkers).bit_identical


def _report(config: SisaConfig) -> Report:
    report = hosting.coordinator_report(config)
    assert report is not None
    return report
