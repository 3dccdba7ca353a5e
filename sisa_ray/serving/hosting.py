"""A service on a Ray cluster: started, watched, ended. ``sisa-ray serve`` is this module with a face."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import ray
from ray import serve

from sisa_ray.core.errors import ConfigError, ExecutionError, RunConflict
from sisa_ray.execution import hosting
from sisa_ray.execution.cluster import ensure_ray, join_existing_ray
from sisa_ray.execution.coordinator import Report
from sisa_ray.execution.opening import existing_run
from sisa_ray.serving.app import build_app
from sisa_ray.serving.config import ServeConfig
from sisa_ray.storage import tokens

THROUGHPUT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Replicas that go are waited for by HAProxy alone, which has stopped sending to them.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
}
"""What makes Ray Serve put HAProxy in front of the replicas; read by its processes when they start."""

_OWN_PORTS = {"RAY_SERVE_HAPROXY_METRICS_PORT": 9101, "RAY_SERVE_HAPROXY_STATS_PORT": 8404}
"""Where HAProxy tells of itself, on every interface."""

_PAUSE_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Served:
    """A service that answers."""

    url: str
    app: str
    placement: str
    started_ray: bool
    started_coordinator: bool
    coordinator: Report


def start_service(config: ServeConfig, *, host: str, port: int, throughput: bool) -> Served:
    """Serve a run; return once it answers.

    Joins the Ray cluster that is there, or starts one on this machine for as long as this process lives. Starts the
    run's coordinator where none has it.

    Raises:
        ConfigError: without tokens, or without authentication beyond loopback.
        RunConflict: where nothing is published yet.
        ExecutionError: where the port is taken, or the service does not come up.
    """
    _check_tokens(config, host)
    run = existing_run(config.run)  # says what is wrong before anything is started
    if not run.state.generation:
        raise RunConflict(f"{run.address}: nothing is published yet; `sisa-ray train` comes first")
    if throughput:
        for name, value in THROUGHPUT.items():
            os.environ.setdefault(name, value)
    started_ray = not join_existing_ray()
    if started_ray:
        if not _is_free(host, port):
            raise ExecutionError(
                f"--port: {host}:{port} is taken, or cannot be listened on; give another one"
            )
        for name, usual in _OWN_PORTS.items():
            if throughput and not _is_free("", usual):
                os.environ.setdefault(name, str(_any_port()))
        ensure_ray()
    there = hosting.coordinator_report(config.run)
    report = hosting.start_coordinator(config.run)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    name = f"sisa-{run.spec.config.name}"
    serve.start(http_options={"host": host, "port": port})
    app = build_app(config)
    try:
        serve.run(app, name=name, route_prefix="/")
    except RuntimeError as error:
        raise ExecutionError(f"{run.address}: the service does not come up: {error}") from None
    return Served(
        url=f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}",
        app=name,
        placement=config.placement,
        started_ray=started_ray,
        started_coordinator=there is None,
        coordinator=report,
    )


def watch(served: Served, say: Callable[[str], None]) -> None:
    """Say how the service is whenever that changes, until it is interrupted or terminated."""
    # Ray's own handler would print a stack as if the process had crashed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    before = "RUNNING"
    while True:
        time.sleep(_PAUSE_S)
        app = serve.status().applications.get(served.app)
        now = "gone" if app is None else str(app.status.value)
        if now != before:
            say(f"{served.app}: {now.lower()}")
            before = now
        if app is None:
            return


def stop_service(served: Served, run: str) -> None:
    """End a service, and what was started for it."""
    if served.started_ray:
        # All at once: HAProxy that is being told of a deletion would outlive its manager.
        serve.shutdown()
    else:
        serve.delete(served.app)
    if served.started_coordinator:
        hosting.stop_coordinator(run)
    if served.started_ray:
        ray.shutdown()


def _check_tokens(config: ServeConfig, host: str) -> None:
    if not config.authentication:
        if not _is_loopback(host):
            raise ConfigError(
                f"--no-auth: is allowed on loopback alone, not on {host}; leave it out, or use --host 127.0.0.1"
            )
        return
    if not tokens.load().tokens:
        raise ConfigError(
            f"tokens: there is none in {tokens.tokens_file()}, so nobody could ask; make one with `sisa-ray token "
            "create --name me --role predict`, or serve on loopback with --no-auth"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError:
            return False
        return True


def _any_port() -> int:
    with socket.socket() as trial:
        trial.bind(("", 0))
        port: int = trial.getsockname()[1]
        return port
