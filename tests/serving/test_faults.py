"""The service on a real Ray and a real S3 server while its parts are killed, frozen and cut off.

Whatever happens, no answer whose question was asked after `fenced` was logged comes from before the request, service
returns by itself, and no request is lost.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.records import RequestsFenced
from sisa_ray.core.requests import Request
from sisa_ray.core.state import RunState
from sisa_ray.execution import commands, hosting
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.served import seconds
from sisa_ray.serving.app import build_app
from sisa_ray.serving.config import ServeConfig
from sisa_ray.storage.log import CommitLog
from tests.execution.coordinators import eventually
from tests.execution.test_s3 import on_s3
from tests.serving.services import ROWS
from tests.support.inline import InlineWorkers
from tests.support.weed import WeedServer, use

pytestmark = [pytest.mark.slow, pytest.mark.crash, pytest.mark.s3, pytest.mark.timeout(600)]

LEASE_S = 2.0
NUM_REPLICAS = 2
BODY = json.dumps({"rows": ROWS[:1]}).encode()


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One prediction: when it was asked (by the log's clock), its status, and the position of its answer."""

    at: datetime
    status: int
    position: int | None
    seconds: float


class Callers:
    """Some who ask all the time."""

    def __init__(self, port: int, count: int = 6) -> None:
        self._port = port
        self._stop = threading.Event()
        self.asked: list[Asked] = []
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(count)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def since(self, number: int) -> list[Asked]:
        return self.asked[number:]

    def served(self, number: int) -> bool:
        """Whether twenty in a row were answered after the first ``number``."""
        last = self.since(number)[-20:]
        return len(last) == 20 and all(a.status == 200 for a in last)

    def _ask(self) -> None:
        while not self._stop.is_set():
            at, started = datetime.now(UTC), time.monotonic()
            status, document = call(self._port, "POST", "/v1/predict", BODY)
            position = document["view"]["position"] if status == 200 else None
            self.asked.append(
                Asked(at=at, status=status, position=position, seconds=time.monotonic() - started)
            )
            time.sleep(0.005 if status == 200 else 0.05)


def call(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
    """A request of its own connection; status 0 where there was no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        data = response.read()
    except (OSError, http.client.HTTPException):
        return 0, None
    finally:
        connection.close()
    try:
        return response.status, json.loads(data)
    except ValueError:
        return response.status, None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A service of a small run: two replicas, shards trained by real actors."""

    config: SisaConfig
    port: int
    server: WeedServer
    app: str

    def replicas(self) -> list[int]:
        """Process ids of the replicas."""
        name = f"ray::ServeReplica:{self.app}:Ensemble".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if path.read_bytes().startswith(name):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found

    def forget(self, person: str) -> str:
        """File a request; sent again, under its key, until it is accepted."""
        connection_body = json.dumps({"subjects": [person]}).encode()
        deadline = time.monotonic() + 60
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
            try:
                connection.request(
                    "POST",
                    "/v1/unlearning-requests",
                    connection_body,
                    {"content-type": "application/json", "idempotency-key": f"forget {person}"},
                )
                response = connection.getresponse()
                document = json.loads(response.read())
                if response.status in (200, 202):
                    return str(document["id"])
            except (OSError, ValueError, http.client.HTTPException):
                pass
            finally:
                connection.close()
            assert time.monotonic() < deadline, "the request is not accepted"
            time.sleep(0.1)

    def request(self, name: str) -> tuple[RunState, Request]:
        """A request as the log has it: a frozen replica answers nobody."""
        state = existing_run(self.config, check_code=False).state
        request = state.find_request(name)
        assert request is not None
        return state, request

    def fenced_s(self, name: str) -> float | None:
        _, request = self.request(name)
        return seconds(request.accepted_at, request.fenced_at)

    def is_certified(self, name: str) -> bool:
        state, request = self.request(name)
        return state.request_state(request) == "certified"

    def check_fence(self, asked: list[Asked]) -> int:
        """No answer is from before a request that was fenced when it was asked for; how many were looked at."""
        run = existing_run(self.config, check_code=False)
        fences = [
            (entry.at, run.state.find_request(name))
            for entry in CommitLog(run.store).read()
            for record in entry.records
            if isinstance(record, RequestsFenced)
            for name in record.requests
        ]
        count = 0
        for fenced_at, request in fences:
            assert request is not None
            for answer in asked:
                if answer.position is not None and answer.at >= fenced_at:
                    count += 1
                    assert answer.position >= request.seq, (answer, request.request, fenced_at)
        return count


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    server = WeedServer()
    with pytest.MonkeyPatch.context() as patch:
        try:
            server.start()
            use(server.environment, patch)
            patch.setenv("SISA_RAY_STORAGE_PATIENCE_S", "5")
            name = f"faults{os.getpid()}"
            config = on_s3(tmp_path_factory.mktemp("faults"), server.make_bucket())
            config = config.model_copy(
                update={"name": name, "serving": config.serving.model_copy(update={"lease_s": LEASE_S})}
            )
            commands.train(config, new_workers=InlineWorkers)
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            ray.init(
                address="local",
                num_cpus=4,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            hosting.start_coordinator(config.address)
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            settings = ServeConfig(
                run=config.address,
                authentication=False,
                min_replicas=NUM_REPLICAS,
                max_replicas=NUM_REPLICAS,
                cpus_per_replica=0.2,
                requests_per_s=1000.0,
            )
            serve.run(build_app(settings), name=name, route_prefix="/")
            yield Stage(config=config, port=port, server=server, app=name)
        finally:
            if ray.is_initialized():
                serve.shutdown()
                ray.shutdown()
            server.close()


def test_a_replica_that_is_killed_delays_the_fence_by_its_lease_at_most(stage: Stage) -> None:
    with Callers(stage.port) as callers:
        eventually(lambda: callers.served(0), 60)
        victim = stage.replicas()[0]
        os.kill(victim, signal.SIGKILL)
        name = stage.forget("p1")
        eventually(lambda: stage.fenced_s(name) is not None, 60)
        fenced_s = stage.fenced_s(name)
        assert fenced_s is not None
        assert fenced_s < LEASE_S + 3
        eventually(lambda: stage.is_certified(name), 120)
        eventually(lambda: len(stage.replicas()) == NUM_REPLICAS, 120)
        number = len(callers.asked)
        eventually(lambda: callers.served(number), 60)
    assert stage.check_fence(callers.asked) > 20


def test_a_frozen_replica_that_wakes_answers_nothing_stale(stage: Stage) -> None:
    with Callers(stage.port, count=12) as callers:
        eventually(lambda: callers.served(0), 60)
        victim = stage.replicas()[0]
        os.kill(victim, signal.SIGSTOP)
        try:
            frozen_at = time.monotonic()
            number = len(callers.asked)
            # Questions reach it and wait there.
            time.sleep(0.5)
            name = stage.forget("p2")
            eventually(lambda: stage.fenced_s(name) is not None, 60)
            fenced_s = stage.fenced_s(name)
            assert fenced_s is not None
            assert fenced_s < LEASE_S + 3
        finally:
            frozen_s = time.monotonic() - frozen_at
            os.kill(victim, signal.SIGCONT)
        # Those who had waited are refused or answered anew, and nobody gets what the frozen models knew.
        eventually(lambda: any(a.seconds > frozen_s / 2 for a in callers.since(number)), 60)
        eventually(lambda: stage.is_certified(name), 120)
        eventually(lambda: callers.served(len(callers.asked) - 20), 60)
    run = existing_run(stage.config, check_code=False)
    request = run.state.find_request(name)
    assert request is not None
    late = [a for a in callers.since(number) if a.seconds > frozen_s / 2]
    assert late
    assert all(a.status != 200 or (a.position or -1) >= request.seq for a in late), late
    assert stage.check_fence(callers.asked) > 20


def test_the_coordinator_is_killed_between_acceptance_and_fence(stage: Stage) -> None:
    with Callers(stage.port) as callers:
        eventually(lambda: callers.served(0), 60)
        report = hosting.coordinator_report(stage.config.address)
        assert report is not None
        name = stage.forget("p3")
        os.kill(report.pid, signal.SIGKILL)
        eventually(lambda: stage.is_certified(name), 120)
        number = len(callers.asked)
        eventually(lambda: callers.served(number), 60)
    assert {a.status for a in callers.asked} <= {200, 503}
    assert stage.check_fence(callers.asked) > 20


def test_storage_that_is_away_stops_answers_until_it_is_back(stage: Stage) -> None:
    with Callers(stage.port) as callers:
        eventually(lambda: callers.served(0), 60)
        number = len(callers.asked)
        stage.server.stop()
        # Nobody can tell whether somebody was accepted elsewhere: leases run out.
        eventually(lambda: [a.status for a in callers.since(number)][-6:] == [503] * 6, 60)
        stage.server.start()
        number = len(callers.asked)
        eventually(lambda: callers.served(number), 120)
        name = stage.forget("p4")
        eventually(lambda: stage.is_certified(name), 120)
    assert stage.check_fence(callers.asked) > 20


def test_the_proxy_is_killed(stage: Stage) -> None:
    with Callers(stage.port) as callers:
        eventually(lambda: callers.served(0), 60)
        (proxy,) = [
            a for a in ray.util.list_named_actors(all_namespaces=True) if a["name"].startswith("SERVE_PROXY")
        ]
        ray.kill(ray.get_actor(proxy["name"], namespace=proxy["namespace"]))
        name = stage.forget("p5")
        eventually(lambda: stage.is_certified(name), 120)
        number = len(callers.asked)
        eventually(lambda: callers.served(number), 60)
    assert stage.check_fence(callers.asked) > 20
