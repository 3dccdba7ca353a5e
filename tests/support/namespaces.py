"""Machines made of Linux network namespaces: each has an address and a disk of its own, and nothing leads out of them.

Needs root and iproute2. Everything lives in namespaces whose names begin with this network's own, so any number of
networks can be there side by side, with the same addresses.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

OUTSIDE = "outside"
"""The machine that the cables of all others lead to. Whoever uses them from outside does so from here."""

_SUBNET = "10.77.0"
_KILL_S = 30.0
_CLONE_NEWNET = 0x40000000


class Unsupported(Exception):
    """This machine cannot have network namespaces; says why."""


def require_support() -> None:
    """Say what is missing.

    Raises:
        Unsupported: without root, or without iproute2.
    """
    if shutil.which("ip") is None:
        raise Unsupported("the command `ip` is missing: install iproute2 (apt install iproute2)")
    if os.geteuid() != 0:
        raise Unsupported("network namespaces need root: run this as root (sudo)")
    name = f"sisa-{uuid.uuid4().hex[:8]}-probe"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except OSError as error:
        raise Unsupported(f"this machine lets nobody make network namespaces: {error}") from None


class Network:
    """Machines on one switch. Use as a context manager: leaving it ends every process and removes everything."""

    def __init__(self) -> None:
        require_support()
        self._name = f"sisa-{uuid.uuid4().hex[:8]}"
        # Short, since Unix sockets lie below it, whose paths are limited to 108 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="sn-"))
        self._machines: list[str] = []
        self._started: dict[str, list[subprocess.Popen[bytes]]] = {}

    def __enter__(self) -> Network:
        try:
            self._add(OUTSIDE)
            self._in(OUTSIDE, "link", "add", "br0", "type", "bridge")
            self._in(OUTSIDE, "addr", "add", f"{self.address(OUTSIDE)}/24", "dev", "br0")
            self._in(OUTSIDE, "link", "set", "br0", "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def disk(self) -> Path:
        """Where every machine has its own disk: one path, other contents on each."""
        return self.directory / "disk"

    def namespace(self, machine: str) -> str:
        """The name of a machine's namespace, for ``ip netns exec``."""
        return f"{self._name}-{machine}"

    def address(self, machine: str) -> str:
        """The IP address of a machine."""
        return f"{_SUBNET}.{self._machines.index(machine) + 1}"

    def add(self, machine: str) -> None:
        """A further machine, with a cable to the switch."""
        self._add(machine)
        cable = self._cable(machine)
        self._in(
            machine,
            "link",
            "add",
            "eth0",
            "type",
            "veth",
            "peer",
            "name",
            cable,
            "netns",
            self.namespace(OUTSIDE),
        )
        self._in(OUTSIDE, "link", "set", cable, "master", "br0")
        self._in(machine, "addr", "add", f"{self.address(machine)}/24", "dev", "eth0")
        self._in(machine, "link", "set", "eth0", "up")
        self.plug(machine)

    def unplug(self, machine: str) -> None:
        """Cut a machine off from all others. What runs there runs on."""
        self._in(OUTSIDE, "link", "set", self._cable(machine), "down")

    def plug(self, machine: str) -> None:
        """Give an unplugged machine its connection back."""
        self._in(OUTSIDE, "link", "set", self._cable(machine), "up")

    @contextmanager
    def entered(self, machine: str = OUTSIDE) -> Iterator[None]:
        """Be on a machine for a while, with this thread alone: the connections that it makes start there."""
        with Path("/proc/thread-self/ns/net").open("rb") as back:
            with Path("/run/netns", self.namespace(machine)).open("rb") as there:
                _set_namespace(there.fileno())
            try:
                yield
            finally:
                _set_namespace(back.fileno())

    def disk_of(self, machine: str) -> Path:
        """A machine's disk as it is called outside of all machines."""
        return self.directory / f"disk-{machine}"

    def start(
        self,
        machine: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        cwd: Path | None = None,
        output: IO[bytes] | int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program on a machine; it sees the machine's own disk at :attr:`disk`."""
        # `ip netns exec` has a mount namespace of its own, which ends with the program.
        mounted = [
            "sh",
            "-c",
            'mount --bind "$0" "$1" && shift && exec "$@"',
            str(self.disk_of(machine)),
            str(self.disk),
        ]
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace(machine), *mounted, *command],
            env=dict(environment),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            start_new_session=True,  # Ctrl-C is for us: we end them
        )
        self._started[machine].append(process)
        return process

    def run(
        self, machine: str, command: Sequence[str], *, environment: Mapping[str, str], cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on a machine to its end; its exit code and all that it said, as ``stdout``."""
        process = self.start(machine, command, environment=environment, cwd=cwd, output=subprocess.PIPE)
        try:
            said, _ = process.communicate()
        except BaseException:
            process.kill()
            process.wait()
            raise
        return subprocess.CompletedProcess(command, process.returncode, said.decode(errors="replace"), "")

    def processes(self, machine: str) -> list[int]:
        """The ids of all processes on a machine."""
        return [int(pid) for pid in _ip("netns", "pids", self.namespace(machine)).split()]

    def kill(self, machine: str) -> None:
        """End everything on a machine at once, as if its power had gone; its disk stays."""
        deadline = time.monotonic() + _KILL_S
        started, self._started[machine] = self._started[machine], []
        for process in started:  # one may not have got as far as its machine
            process.kill()
            process.wait()
        while pids := self.processes(machine):
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            if time.monotonic() > deadline:
                raise TimeoutError(f"{machine}: processes {pids} do not end")
            time.sleep(0.05)

    def close(self) -> None:
        """End all processes on all machines; remove the machines and their disks."""
        for machine in reversed(self._machines):
            self.kill(machine)
            _ip("netns", "del", self.namespace(machine))  # with it go its cables
        self._machines.clear()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _add(self, machine: str) -> None:
        _ip("netns", "add", self.namespace(machine))
        self._machines.append(machine)
        self._started[machine] = []
        self._in(machine, "link", "set", "lo", "up")
        self.disk_of(machine).mkdir()
        self.disk.mkdir(exist_ok=True)

    def _cable(self, machine: str) -> str:
        return f"v-{machine}"

    def _in(self, machine: str, *args: str) -> None:
        _ip("-netns", self.namespace(machine), *args)


def _set_namespace(fd: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*args: str) -> str:
    done = subprocess.run(["ip", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout
