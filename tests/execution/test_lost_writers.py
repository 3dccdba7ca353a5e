"""Actors that nobody can reach may write what a certificate would say is gone: it waits for their end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ActorUnavailableError

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.identity import Spec
from sisa_ray.core.records import AttemptOpened
from sisa_ray.execution import commands
from sisa_ray.execution.actor import ActorContext
from sisa_ray.execution.events import Event, OnEvent, PhaseStarted, ignore
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.pool import ShardPool
from tests.execution.tables import make_config, make_table
from tests.support.inline import InlineWorkers

LATE = "checkpoints/shard=00000/stage=0001/lost/0000000000000000/state.safetensors"
END_S = 0.5


class LosingWorkers(InlineWorkers):
    """Workers on nodes of which one falls silent."""

    def pool(self, spec: Spec, on_event: OnEvent) -> Any:
        self.note_lost()
        return super().pool(spec, on_event)


class FarWorkers(InlineWorkers):
    """Workers on several nodes."""

    def may_lose_actors(self) -> bool:
        return True


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SisaConfig:
    monkeypatch.setattr("sisa_ray.execution.session.WRITERS_END_S", END_S)
    config = make_config(tmp_path, make_table(40), sisa={"num_shards": 2, "num_slices": 2, "epochs": 1})
    commands.train(config, new_workers=InlineWorkers)
    return config


def unlearn(config: SisaConfig, new_workers: Any) -> float:
    """Forget somebody while a lost actor writes as late as it can; how long the certificate waited, in seconds."""
    store = existing_run(config).store
    heard: list[float] = []

    def write_late(event: Event) -> None:
        if isinstance(event, PhaseStarted) and event.text.startswith("waiting up to"):
            heard.append(time.monotonic())
            store.put(LATE, b"somebody")

    result = commands.unlearn(config, ["p3"], on_event=write_late, new_workers=new_workers)
    assert result.certificate
    assert not store.exists(LATE)
    return time.monotonic() - heard[0] if heard else 0.0


def test_what_a_lost_actor_writes_late_is_gone_before_the_certificate(config: SisaConfig) -> None:
    assert 0 < unlearn(config, LosingWorkers) <= END_S + 5


def test_actors_of_a_session_that_did_not_end_in_order(config: SisaConfig) -> None:
    existing_run(config).commit(AttemptOpened(attempt="0" * 32, command="train"))
    assert unlearn(config, FarWorkers) >= END_S


def test_nobody_waits_for_a_session_that_did(config: SisaConfig) -> None:
    assert unlearn(config, FarWorkers) == 0


def test_nobody_waits_for_actors_that_ended_with_their_machine(config: SisaConfig) -> None:
    existing_run(config).commit(AttemptOpened(attempt="0" * 32, command="train"))
    assert unlearn(config, InlineWorkers) == 0


@ray.remote(num_cpus=0)
class Mortal:
    def end(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_of_whose_end_its_node_tells_is_not_lost(ray_local: None, config: SisaConfig) -> None:
    lost: list[float] = []
    context = ActorContext(spec=existing_run(config).spec, search_path=())
    pool = ShardPool(context, num_cpus=1, num_gpus=0, on_event=ignore, on_lost=lambda: lost.append(0.0))
    failures = [lambda: ray.get(Mortal.remote().end.remote()), _be_cut_off]  # type: ignore[attr-defined]

    def work() -> None:
        if failures:
            failures.pop(0)()

    pool.outlive(work)
    assert len(lost) == 1  # the second


def _be_cut_off() -> None:
    raise ActorUnavailableError("no answer", None)
