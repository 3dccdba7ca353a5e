"""The Ray cluster that a command works on: joined, and refused where it cannot do the work."""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError, GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sisa_ray.core.errors import ClusterError, ConfigError
from sisa_ray.storage import layout

_KNOCK_S = 10.0
_ASK_S = 60.0
_SEEN_AFTER_S = 10.0
_POLL_S = 0.2


def ensure_ray() -> None:
    """Join the Ray cluster that is there (``RAY_ADDRESS`` or a running one), or start a local one.

    Raises:
        ClusterError: where the cluster is not there, or does not let this program in.
    """
    if not ray.is_initialized():
        _join(None)


def join_existing_ray() -> bool:
    """Join the Ray cluster that is there; False where none answers. Never starts one.

    Raises:
        ClusterError: where it does not let this program in.
    """
    if ray.is_initialized():
        return True
    try:
        _join("auto")
    except _NoAnswer:
        return False
    return True


class _NoAnswer(ClusterError):
    """There is no cluster, or it is away."""


def _join(address: str | None) -> None:
    _knock(os.environ.get("RAY_ADDRESS", ""))
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise _NoAnswer(f"no Ray cluster answers: {error}") from None
    except AuthenticationError as error:
        raise ClusterError(f"the Ray cluster refuses this program: {error}") from None
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            raise
        raise ClusterError(_told_apart(str(error))) from None


def _knock(named: str) -> None:
    """See whether anything listens at the address that ``RAY_ADDRESS`` names; Ray itself would try for minutes."""
    host, _, port = named.rpartition(":")
    if not host or "/" in host or not port.isdigit():  # auto, local, or an address of another kind
        return
    try:
        socket.create_connection((host, int(port)), _KNOCK_S).close()
    except OSError as error:
        raise _NoAnswer(
            f"RAY_ADDRESS: no Ray cluster answers at {named} ({error}); correct it, or unset it to work on this "
            "machine alone"
        ) from None


def _told_apart(message: str) -> str:
    """Ray's table of versions in one line, with what to do."""
    lines = [line.strip() for line in message.splitlines()[1:]]
    versions = " and ".join(line for line in lines if line.startswith(("Ray:", "Python:")))
    halves = versions.split(" and ")
    cluster, here = ", ".join(halves[:2]), ", ".join(halves[2:])
    return (
        f"the Ray cluster runs other versions than this program (cluster: {cluster}; here: {here}); install the "
        "cluster's versions here, or submit a Ray job, which runs with the cluster's own"
    )


def alive_nodes() -> list[dict[str, Any]]:
    """The nodes of the cluster as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def has_had_nodes() -> bool:
    """Whether the cluster that this process has joined has, or had, more nodes than one."""
    return ray.is_initialized() and len(ray.nodes()) > 1


class Reach:
    """Sees to it that storage is the same for every node; asks each node once.

    A bucket is. Of a directory it shows only by trying: a file is written here, and looked for on all other nodes.
    """

    def __init__(self) -> None:
        self._asked: set[tuple[str, str]] = set()

    def require(self, url: str) -> None:
        """Refuse a directory that some node of the cluster does not see.

        Args:
            url: of the storage: a bucket, or a directory as it is called on this node.

        Raises:
            ConfigError: naming the nodes.
        """
        if "://" in url or not ray.is_initialized():
            return
        here = ray.get_runtime_context().get_node_id()
        nodes = {
            node["NodeID"]: node["NodeManagerAddress"] for node in alive_nodes() if node["NodeID"] != here
        }
        new = {node: name for node, name in nodes.items() if (node, url) not in self._asked}
        if not new:
            return
        blind = _blind(url, new)
        if blind:
            raise ConfigError(
                f"storage_path: {url} is a directory of this node alone: {', '.join(sorted(blind))} of the Ray cluster "
                f"do{'es' if len(blind) == 1 else ''} not see what is written there; use a bucket (s3://…), or a "
                "file system that every node has mounted at this path"
            )
        self._asked.update((node, url) for node in new)


def _blind(url: str, nodes: dict[str, str]) -> list[str]:
    """The names of ``nodes`` (name by id) that do not see what this process writes at ``url``."""
    directory = Path(url)
    if not directory.is_dir():  # the run is still to be made
        directory = directory.parent
    if not directory.is_dir():
        return list(nodes.values())
    # What a crash leaves there, a purge of the run takes for an unfinished write.
    probe = directory / layout.TEMPORARY / f"probe-{uuid.uuid4().hex}"
    made = not probe.parent.is_dir()
    probe.parent.mkdir(exist_ok=True)
    probe.touch()
    try:
        answers = {
            _SEES.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False), num_cpus=0
            ).remote(str(probe)): name
            for node, name in nodes.items()
        }
        return [name for answer, name in answers.items() if not _answer(answer)]
    finally:
        probe.unlink(missing_ok=True)
        if made and not any(probe.parent.iterdir()):
            probe.parent.rmdir()


def _answer(ref: Any) -> bool:
    try:
        return bool(ray.get(ref, timeout=_ASK_S))
    except (GetTimeoutError, RayError):
        return True  # the node is going, or too busy to tell: what it cannot see, it will say when it works


def _sees(path: str) -> bool:
    # A network file system may show it a little later.
    deadline = time.monotonic() + _SEEN_AFTER_S
    while not Path(path).exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


_SEES: Any = ray.remote(max_retries=0)(_sees)
