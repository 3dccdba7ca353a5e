"""A cluster of this machine whose nodes an autoscaler starts and ends: Ray's own, with its provider of fake nodes.

Ray's ``AutoscalingCluster`` ends every Ray of the machine; this one ends what it started.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.util import get_node_ip_address

_UP_S = 60.0
_DOWN_S = 30.0
_IDLE_MINUTES = 0.1
_HEAD = "ray.head.default"
"""What the provider calls it."""


@contextmanager
def autoscaling_cluster(
    node: Mapping[str, float], *, max_nodes: int, labels: Mapping[str, str] | None = None
) -> Iterator[dict[str, str]]:
    """A head without CPUs or GPUs, and up to ``max_nodes`` nodes of the resources ``node``, none at first.

    Yields:
        The environment of a program that is to join it.
    """
    with tempfile.TemporaryDirectory(prefix="as-", dir="/tmp") as name:  # sockets have short names
        directory = Path(name)
        config = directory / "cluster.json"
        port = _free_port()
        config.write_text(json.dumps(_config(node, max_nodes, labels or {}, port)), encoding="utf-8")
        joining = {
            "RAY_ADDRESS": f"127.0.0.1:{port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        log = directory / "head.log"
        with log.open("wb") as out:
            head = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                    *("--num-cpus=0", "--num-gpus=0", f"--port={port}", f"--temp-dir={directory}/ray"),
                    *("--include-dashboard=false", f"--autoscaling-config={config}"),
                    f"--object-store-memory={2 * 10**8}",
                ],
                env={**os.environ, **joining, "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            _wait_for(port, head, log)
            yield joining
        finally:
            head.terminate()
            try:
                head.wait(_DOWN_S)
            except subprocess.TimeoutExpired:
                head.kill()
            for pid in _of_session(head.pid):  # nodes that were still up
                os.kill(pid, signal.SIGKILL)


def _config(
    node: Mapping[str, float], max_nodes: int, labels: Mapping[str, str], port: int
) -> dict[str, Any]:
    empty = ("setup", "head_setup", "worker_setup", "initialization", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "fake",
        "max_workers": max_nodes,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"{get_node_ip_address()}:{port}",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "auth": {},
        "docker": {},
        "idle_timeout_minutes": _IDLE_MINUTES,
        "upscaling_speed": 1.0,
        **{f"{name}_commands": [] for name in empty},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "head_node_type": _HEAD,
        "available_node_types": {
            _HEAD: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {**node, "object_store_memory": 10**8},
                "labels": dict(labels),
                "node_config": {},
                "min_workers": 0,
                "max_workers": max_nodes,
            },
        },
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_for(port: int, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _UP_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if head.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text(errors="replace")[-2000:]) from None
            time.sleep(0.2)
        else:
            return


def _of_session(session: int) -> list[int]:
    """The processes of a session: whatever it started, and did not end."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session:
                pids.append(int(entry.name))
    return pids
