"""A Ray cluster of three nodes and an S3 server, each on a machine of its own; jobs come from outside."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from tests.support.namespaces import OUTSIDE, Network
from tests.support.weed import NUM_PORTS, WeedServer

ROOT = Path(__file__).parents[2]
HEAD, NODES, S3 = "head", ("node1", "node2"), "s3"

_RAY_PORT, _DASHBOARD_PORT = 6379, 8265
_S3_PORTS = range(8333, 8333 + NUM_PORTS)
_OBJECT_STORE_BYTES = 100 * 2**20
_START_S = 300.0
_POLL_S = 0.5
_ANSWER_S = 20.0
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What became of a job, and its log."""

    status: str
    exit_code: int | None
    log: str


class RayCluster:
    """Three nodes (the first is the head) and a bucket. The head's state survives it, on its disk."""

    def __init__(self, network: Network, *, num_cpus: int) -> None:
        self.network = network
        self._num_cpus = num_cpus
        for machine in (S3, HEAD, *NODES):
            network.add(machine)
        token = network.directory / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self._token = token
        self.s3 = WeedServer(
            host=network.address(S3),
            ports=_S3_PORTS,
            launch=lambda command, log: network.start(S3, command, environment=_clean(), output=log),
        )

    @property
    def environment(self) -> dict[str, str]:
        """The variables of every machine: Ray's token, the way to S3, and where the head keeps its keyring."""
        return {
            **_clean(),
            **self.s3.environment,
            "HOME": str(self.network.disk),
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": "120",
            "RAY_memory_monitor_refresh_ms": "0",  # the memory is shared with everything else on this computer
            "SISA_RAY_KEYRING": str(self.network.disk / "keys"),
        }

    @property
    def dashboard(self) -> str:
        """Where jobs are submitted."""
        return f"http://{self.network.address(HEAD)}:{_DASHBOARD_PORT}"

    def start(self) -> None:
        """Start everything and wait until all nodes are there."""
        with self.network.entered():
            self.s3.start()
        self.start_head()
        self.recover()

    def start_head(self) -> None:
        """Start the head, where it has been before with all that it knew then."""
        # Says that a cluster is running at this address, which keeps Ray from starting one there.
        (self.network.disk_of(HEAD) / "ray" / "ray_current_cluster").unlink(missing_ok=True)
        state = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(self.network.disk / "gcs")}
        dashboard = [f"--dashboard-host={self.network.address(HEAD)}", f"--dashboard-port={_DASHBOARD_PORT}"]
        self._start_ray(HEAD, ["--head", f"--port={_RAY_PORT}", *dashboard], state)

    def start_node(self, node: str) -> None:
        """Start a node that is to join the head."""
        self._start_ray(node, [f"--address={self.network.address(HEAD)}:{_RAY_PORT}"], {})

    def recover(self) -> None:
        """Wait until all nodes are there; where Ray has ended it is started again, as whatever watches over nodes does.

        On a node that was cut off it ends by itself, or when it hears that the head took it for dead.
        """

        def recovered() -> bool:
            for machine in (HEAD, *NODES):
                if not self.network.processes(machine):
                    self.start_head() if machine == HEAD else self.start_node(machine)
            return self.num_nodes() == 1 + len(NODES)

        self._wait(f"{1 + len(NODES)} nodes", recovered)

    def num_nodes(self) -> int:
        """Nodes that the head believes alive; 0 where it does not answer."""
        nodes = self._ask("/nodes?view=summary").get("data", {}).get("summary", [])
        return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)

    def outside(self, command: Sequence[str], *, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program outside of the cluster, within reach of its dashboard and of S3."""
        environment = {
            **self.environment,
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            "RAY_ADDRESS": self.dashboard,
        }
        return self.network.run(OUTSIDE, command, environment=environment, cwd=cwd)

    def on_head(self, command: Sequence[str]) -> str:
        """What a program says on the head node, where the keyring is."""
        done = self.network.run(HEAD, command, environment=self.environment)
        if done.returncode:
            raise RuntimeError(f"{command}:\n{done.stdout}")
        return done.stdout

    def store(self, bucket: str, objects: Mapping[str, bytes]) -> None:
        """Make a bucket with these objects in it."""
        with self.network.entered():
            client = self.s3.client()
            client.create_bucket(Bucket=bucket)
            for key, body in objects.items():
                client.put_object(Bucket=bucket, Key=key, Body=body)

    def submit(self, directory: Path, script: str, *args: str) -> str:
        """Submit an entry point of ``jobs/`` with a working directory; the job's id."""
        job = f"{Path(script).stem}-{secrets.token_hex(4)}"
        entry = ["--", "python", script, *args]
        command = [
            _ray(),
            "job",
            "submit",
            "--no-wait",
            f"--submission-id={job}",
            "--working-dir",
            ".",
            *entry,
        ]
        done = self.outside(command, cwd=directory)
        if done.returncode:
            raise RuntimeError(f"{script}: cannot be submitted:\n{done.stdout}")
        return job

    def status(self, job: str) -> str:
        """The status of a job; "" where the head does not answer."""
        return str(self._details(job).get("status", ""))

    def log(self, job: str) -> str:
        """What a job has written."""
        return str(self._ask(f"/api/jobs/{job}/logs").get("logs", ""))

    def wait(self, job: str, *, timeout_s: float) -> JobResult:
        """Wait until a job has ended."""
        self._wait(f"the end of {job}", lambda: self.status(job) in _ENDED, timeout_s)
        details = self._details(job)
        return JobResult(
            status=details["status"], exit_code=details.get("driver_exit_code"), log=self.log(job)
        )

    def do(self, directory: Path, script: str, *args: str, timeout_s: float = 600) -> JobResult:
        """Submit a job and wait for it."""
        return self.wait(self.submit(directory, script, *args), timeout_s=timeout_s)

    def _details(self, job: str) -> dict[str, Any]:
        return self._ask(f"/api/jobs/{job}")

    def _ask(self, path: str) -> dict[str, Any]:
        """An answer of the dashboard; empty where it does not answer."""
        headers = {"Authorization": f"Bearer {self._token.read_text()}"}
        try:
            with self.network.entered():
                response = requests.get(self.dashboard + path, headers=headers, timeout=_ANSWER_S)
            answer: dict[str, Any] = response.json()
        except (requests.RequestException, ValueError):
            return {}
        return answer

    def _start_ray(self, machine: str, role: list[str], extra: Mapping[str, str]) -> None:
        command = [
            _ray(),
            "start",
            *role,
            f"--node-ip-address={self.network.address(machine)}",
            f"--num-cpus={self._num_cpus}",
            "--num-gpus=0",
            f"--object-store-memory={_OBJECT_STORE_BYTES}",
            f"--temp-dir={self.network.disk / 'ray'}",
            "--block",
        ]
        with (self.network.directory / f"{machine}.log").open("ab") as log:
            self.network.start(machine, command, environment={**self.environment, **extra}, output=log)

    def _wait(self, what: str, holds: Callable[[], bool], timeout_s: float = _START_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout_s:g} s for {what}\n{self._logs()}")
            time.sleep(_POLL_S)

    def _logs(self) -> str:
        logs = sorted(self.network.directory.glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in logs)


@contextmanager
def ray_cluster(*, num_cpus: int) -> Iterator[RayCluster]:
    """A cluster that is up; everything is gone when the block is left."""
    with Network() as network:
        cluster = RayCluster(network, num_cpus=num_cpus)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.s3.close()


def _clean() -> dict[str, str]:
    """An environment without whatever this computer has of its own: proxies, credentials, settings of Ray."""
    return {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "LANG": "C.UTF-8"}


def _ray() -> str:
    return str(Path(sys.executable).parent / "ray")
