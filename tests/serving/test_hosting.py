"""Starting a service: what is wrong is said before anything is started."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import NoReturn

import pytest

from sisa_ray.execution import commands
from sisa_ray.serving import hosting
from tests.execution.coordinators import trained
from tests.execution.tables import make_config
from tests.service.small_runs import invoke
from tests.support.inline import InlineWorkers


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: object, **kwargs: object) -> NoReturn:
        pytest.fail("Ray was started")

    monkeypatch.setenv("SISA_RAY_TOKENS", str(tmp_path / "tokens.json"))
    monkeypatch.setattr(hosting, "join_existing_ray", lambda: False)
    for module in ("client", "cluster"):
        monkeypatch.setattr(f"sisa_ray.execution.{module}.join_existing_ray", lambda: False)
    monkeypatch.setattr("ray.init", refuse)


class TestServe:
    def test_refuses_what_cannot_be_served(self, tmp_path: Path) -> None:
        config = trained(tmp_path / "trained")
        fresh = make_config(tmp_path / "fresh")
        commands.ingest(fresh, new_workers=InlineWorkers)
        address = config.address
        cases = {
            (): "RUN: is required",
            (str(tmp_path / "nowhere"), "--no-auth"): "there is no run here",
            (fresh.address, "--no-auth"): "nothing is published yet",
            (address,): "sisa-ray token create",
            (address, "--no-auth", "--host", "0.0.0.0"): "loopback",
            (address, "--no-auth", "--placement", "sideways"): "placement",
            (address, "--no-auth", "--replicas", "3", "--max-replicas", "2"): "max_replicas",
            (address, "--no-auth", "--gpus-per-replica", "-1"): "gpus_per_replica",
            (address, "--no-auth", "--detach"): "--detach",
            ("--config", str(tmp_path / "none.yaml")): "cannot be read",
        }
        for arguments, words in cases.items():
            _, error = invoke("serve", *arguments, code=2)
            assert words in error, (arguments, error)

    def test_says_that_its_port_is_taken(self, tmp_path: Path) -> None:
        config = trained(tmp_path / "trained")
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            _, error = invoke("serve", config.address, "--no-auth", "--port", port, code=6)
        assert f"127.0.0.1:{port}" in error
