from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import ray

from sisa_ray.execution import commands
from sisa_ray.execution.events import Event, Notice, StageFinished, WorkPlanned
from sisa_ray.execution.turns import turn
from tests.execution.tables import make_config
from tests.support.inline import InlineWorkers

pytestmark = pytest.mark.usefixtures("ray_local")

_HOLDER = """
import sys, time
import ray
from sisa_ray.execution.turns import turn
ray.init(address=sys.argv[1], log_to_driver=False)
with turn("somewhere", command="train"):
    print("mine", flush=True)
    time.sleep(600)
"""


def test_the_second_job_follows_the_first_and_then_has_its_turn(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    begun, planned, built = threading.Event(), threading.Event(), threading.Event()
    order: list[str] = []
    heard: list[Event] = []

    def first() -> None:
        with turn(config.address, command="train"):
            begun.set()
            commands.ingest(config, new_workers=InlineWorkers)
            assert planned.wait(60)
            commands.train(config, new_workers=InlineWorkers)
            assert built.wait(60)
            order.append("first")

    def listen(event: Event) -> None:
        heard.append(event)
        if isinstance(event, WorkPlanned):
            planned.set()
        elif isinstance(event, StageFinished):
            built.set()

    thread = threading.Thread(target=first)
    thread.start()
    assert begun.wait(60)
    with turn(config.address, command="verify", on_event=listen):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert isinstance(heard[0], Notice)
    assert heard[0].text.endswith("(train) is at work on the run; following it")
    assert isinstance(heard[1], WorkPlanned)
    assert heard[1].num_stages == 9
    assert all(isinstance(event, StageFinished) for event in heard[2:])


def test_jobs_on_other_runs_do_not_wait() -> None:
    with turn("here", command="train"), turn("there", command="train"):
        pass


def test_a_turn_ends_with_the_process_that_had_it() -> None:
    address = ray.get_runtime_context().gcs_address
    with subprocess.Popen([sys.executable, "-c", _HOLDER, address], stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "mine\n"
        job.kill()
        with turn("somewhere", command="train"):
            pass
