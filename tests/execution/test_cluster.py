from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import ray

from sisa_ray.core.errors import ClusterError
from sisa_ray.execution import commands
from sisa_ray.execution.cluster import Reach
from tests.execution.tables import make_config

_STRANGER = """
import os, sys
import ray
from sisa_ray.core.errors import ClusterError
from sisa_ray.execution import cluster
os.environ["RAY_ADDRESS"] = sys.argv[1]
ray.__version__ = sys.argv[2]
for join in (cluster.join_existing_ray, cluster.ensure_ray):
    try:
        print(join())
    except ClusterError as error:
        print(error)
"""


def answers(address: str, version: str) -> list[str]:
    """What a program of that Ray version is told by ``join_existing_ray`` and by ``ensure_ray``."""
    command = [sys.executable, "-c", _STRANGER, address, version]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_another_version_is_told_both_and_what_to_do(ray_local: None) -> None:
    address = ray.get_runtime_context().gcs_address
    python = ".".join(map(str, sys.version_info[:3]))
    told = (
        f"the Ray cluster runs other versions than this program (cluster: Ray: {ray.__version__}, Python: {python}; "
        f"here: Ray: 2.0.0, Python: {python}); install the cluster's versions here, or submit a Ray job, which runs "
        "with the cluster's own"
    )
    assert answers(address, "2.0.0") == [told, told]


def test_where_no_cluster_answers_none_is_joined_or_started_in_its_stead() -> None:
    joined, ensured = answers("127.0.0.1:9", ray.__version__)
    assert joined == "False"
    assert ensured.startswith("RAY_ADDRESS: no Ray cluster answers at 127.0.0.1:9 ([Errno 111]")


def test_a_directory_will_do_for_one_node(ray_local: None, tmp_path: Path) -> None:
    Reach().require(str(tmp_path / "storage" / "run"))
    assert not list(tmp_path.iterdir())


def test_what_no_node_can_hold_is_refused_before_anything_is_made(
    ray_local: None, tmp_path: Path, keyring: Path
) -> None:
    config = make_config(tmp_path, resources={"gpus_per_shard": 1})
    secrets = sorted(keyring.iterdir()) if keyring.is_dir() else []
    with pytest.raises(ClusterError, match=r"gpus_per_shard=1, but no node .* \(nodes: 2 CPUs and 0 GPUs\)"):
        commands.train(config)
    assert not [path for path in Path(config.storage_path).rglob("*") if path.is_file()]
    assert (sorted(keyring.iterdir()) if keyring.is_dir() else []) == secrets
