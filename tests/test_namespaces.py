"""The machines that clusters for tests are made of: see ``tests/support/namespaces.py``."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.namespaces import OUTSIDE, Network, Unsupported, require_support

ENVIRONMENT = {"PATH": os.environ["PATH"]}


@pytest.fixture(autouse=True)
def _supported() -> None:
    try:
        require_support()
    except Unsupported as error:
        pytest.skip(str(error))


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        network.add("a")
        network.add("b")
        yield network


def namespaces() -> set[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in listed.splitlines()}


def interfaces() -> set[str]:
    """Those of this computer itself."""
    return {name for _, name in socket.if_nameindex()}


def said(network: Network, machine: str, script: str) -> str:
    return network.run(machine, ["sh", "-c", script], environment=ENVIRONMENT).stdout.strip()


def reaches(network: Network, machine: str, other: str, *, tries: int = 1) -> bool:
    return any(_answers(network, machine, other) for _ in range(tries))


def _answers(network: Network, machine: str, other: str) -> bool:
    with network.entered(machine), closing(socket.socket()) as trial:
        trial.settimeout(1.0)
        try:
            trial.connect((network.address(other), 5000))
        except TimeoutError:
            return False
        except ConnectionRefusedError:
            return True  # by that machine
    return True


def test_cables_can_be_unplugged(network: Network) -> None:
    # On a busy machine a cable takes a while to come up.
    assert reaches(network, "a", "b", tries=10)
    assert reaches(network, OUTSIDE, "b", tries=10)
    network.unplug("b")
    assert not reaches(network, "a", "b")
    assert not reaches(network, OUTSIDE, "b")
    network.plug("b")
    assert reaches(network, "a", "b", tries=10)


def test_nothing_leads_in_or_out() -> None:
    links = interfaces()
    with Network() as network:
        network.add("a")
        assert interfaces() == links
        for machine in ("a", OUTSIDE):
            assert said(network, machine, "ip route show default") == ""


def test_each_has_a_disk_of_its_own_at_the_same_path(network: Network) -> None:
    file = network.disk / "name"
    for machine in ("a", "b"):
        said(network, machine, f"echo {machine} > {file}")
    assert [said(network, machine, f"cat {file}") for machine in ("a", "b")] == ["a", "b"]
    assert network.disk_of("a").joinpath("name").read_text() == "a\n"
    assert not file.exists()


def test_two_networks_do_not_know_of_each_other(network: Network) -> None:
    with Network() as other:
        other.add("a")
        assert other.address("a") == network.address("a")
        assert not {network.namespace("a")} & {other.namespace("a")}
        other.unplug("a")
        assert reaches(network, "b", "a")


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_after_a_failure(failure: type[BaseException]) -> None:
    before = namespaces()
    directory = Path()
    processes = []

    def fail() -> None:
        nonlocal directory
        with Network() as network:
            directory = network.directory
            for machine in ("a", "b"):
                network.add(machine)
                # One that has a child, and one that may not have got there yet.
                processes.append(
                    network.start(machine, ["sh", "-c", "sleep 600 & wait"], environment=ENVIRONMENT)
                )
            raise failure

    with pytest.raises(failure):
        fail()
    assert namespaces() <= before
    assert not directory.exists()
    assert all(process.poll() is not None for process in processes)
