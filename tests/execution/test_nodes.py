"""Jobs on three real nodes that are killed, cut off and brought back: the bits are those of a quiet machine.

Each node is a network namespace with an address and a disk of its own; see ``tests/support/ray_cluster.py``.
"""

from __future__ import annotations

import base64
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import requests
import yaml

from sisa_ray.core.config import SisaConfig
from sisa_ray.execution import commands
from sisa_ray.execution.opening import existing_run
from sisa_ray.storage.run import Run
from sisa_ray.storage.slices import load_slice
from tests.execution.tables import make_config
from tests.support.inline import InlineWorkers
from tests.support.namespaces import Unsupported, require_support
from tests.support.ray_cluster import HEAD, NODES, ROOT, JobResult, RayCluster, ray_cluster

pytestmark = [pytest.mark.slow, pytest.mark.s3, pytest.mark.crash, pytest.mark.timeout(3600)]

NUM_SHARDS, NUM_SLICES = 20, 10
NUM_FORGOTTEN = 8
CUT_S = 60.0
PATIENCE_S = 900.0
SERVICE_PORT = 8000

MNIST = """
name: mnist
storage_path: {storage}
data:
  train: {data}/mnist-train.parquet
  test: {data}/mnist-test.parquet
  record_id: id
  columns: {{features: pixels, label: label}}
recipe:
  class: sisa_ray.recipes.MLPClassifier
  args: {{hidden: [128], num_classes: 10, lr: 0.001, batch_size: 64, scale: 255}}
sisa: {{num_shards: 20, num_slices: 10, epochs: 150, schedule: equal, seed: 0}}
partial_checkpoint_every_s: 2
"""

NETS = """
from parts.layers import tower
from sisa_ray.recipes import MLPClassifier


class Net(MLPClassifier):
    def build_model(self):
        return tower(super().build_model())
"""
LAYERS = """
from torch import nn


def tower(model):
    return nn.Sequential(model)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    try:
        require_support()
    except Unsupported as error:
        pytest.skip(str(error))
    with ray_cluster(num_cpus=1) as made:
        made.store("sisa-runs", {})
        yield made


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A working directory to submit."""
    work = tmp_path / "work"
    shutil.copytree(ROOT / "jobs", work / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    return work


def put_config(directory: Path, config: SisaConfig) -> None:
    text = yaml.safe_dump(config.model_dump(mode="json", by_alias=True))
    (directory / "run.yaml").write_text(text, encoding="utf-8")


def small(directory: Path, cluster: RayCluster, **changes: Any) -> SisaConfig:
    """A small run on the cluster, its tables in a bucket of its own."""
    config = make_config(directory / "tables", **changes)
    bucket = f"tables-{config.name}"
    cluster.store(bucket, {p.name: p.read_bytes() for p in (directory / "tables").glob("*.parquet")})
    shutil.rmtree(directory / "tables")
    data = {"train": f"s3://{bucket}/train.parquet", "test": f"s3://{bucket}/test.parquet"}
    return config.model_copy(update={"data": config.data.model_copy(update=data)})


def succeeded(result: JobResult) -> str:
    assert (result.status, result.exit_code) == ("SUCCEEDED", 0), result.log
    assert "Traceback" not in result.log
    return result.log


def refused(result: JobResult, exit_code: int) -> str:
    assert (result.status, result.exit_code) == ("FAILED", exit_code), result.log
    assert "Traceback" not in result.log
    return result.log


class TestBadInput:
    def test_a_directory_of_one_node_alone(self, cluster: RayCluster, directory: Path) -> None:
        storage = cluster.network.disk / "storage"
        cluster.network.disk_of(HEAD).joinpath("storage").mkdir()
        put_config(directory, small(directory, cluster, name="local", storage_path=str(storage)))
        for script in ("ingest", "train"):
            log = refused(cluster.do(directory, f"jobs/{script}.py", "--config", "run.yaml"), 2)
            addresses = ", ".join(cluster.network.address(node) for node in NODES)
            assert f"is a directory of this node alone: {addresses} of the Ray cluster do not see" in log
        kept = cluster.network.disk_of(HEAD) / "storage"
        assert not [path for path in kept.rglob("*") if path.is_file()]

    def test_a_directory_that_all_nodes_share(self, cluster: RayCluster, directory: Path) -> None:
        storage = cluster.network.directory / "shared"
        storage.mkdir()
        put_config(directory, small(directory, cluster, name="shared", storage_path=str(storage)))
        succeeded(cluster.do(directory, "jobs/train.py", "--config", "run.yaml"))
        assert not list(storage.rglob("probe-*"))

    def test_a_gpu_where_there_is_none(self, cluster: RayCluster, directory: Path) -> None:
        config = small(
            directory, cluster, name="gpu", storage_path="s3://sisa-runs", resources={"gpus_per_shard": 1}
        )
        put_config(directory, config)
        log = refused(cluster.do(directory, "jobs/train.py", "--config", "run.yaml"), 6)
        assert "(nodes: 1 CPUs and 0 GPUs; 1 CPUs and 0 GPUs; 1 CPUs and 0 GPUs)" in log
        assert objects(cluster, "gpu/") == []


def test_a_recipe_of_the_working_directory_trains_on_every_node(cluster: RayCluster, directory: Path) -> None:
    recipe = {
        "class": "my/nets.py:Net",
        "args": {"hidden": [16], "num_classes": 3, "lr": 0.01, "batch_size": 8},
    }
    config = small(directory, cluster, name="own", storage_path="s3://sisa-runs", recipe=recipe)
    put_config(directory, config)
    log = refused(cluster.do(directory, "jobs/train.py", "--config", "run.yaml"), 2)
    assert "a Ray job has what --working-dir ships and nothing else" in log
    assert objects(cluster, "own/") == []
    (directory / "my").mkdir()
    (directory / "my" / "nets.py").write_text(NETS, encoding="utf-8")
    (directory / "parts").mkdir()
    (directory / "parts" / "layers.py").write_text(LAYERS, encoding="utf-8")
    succeeded(cluster.do(directory, "jobs/train.py", "--config", "run.yaml"))
    log = succeeded(cluster.do(directory, "jobs/verify.py", "--config", "run.yaml"))
    assert "bit-identical: yes" in log


def test_whatever_happens_to_the_nodes_the_bits_are_those_of_one_quiet_machine(
    cluster: RayCluster,
    directory: Path,
    real_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    started = time.monotonic()

    def say(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{time.monotonic() - started:6.0f} s  {text}")
            sys.stdout.flush()

    tables = {path.name: path.read_bytes() for path in real_data.glob("mnist-*.parquet")}
    people = pq.read_table(real_data / "mnist-train.parquet", columns=["id"])["id"].to_pylist()[
        :NUM_FORGOTTEN
    ]
    cluster.store("sisa-data", {**tables, "leavers.txt": "\n".join(people).encode()})
    put_config(
        directory,
        SisaConfig.from_mapping(
            yaml.safe_load(MNIST.format(storage="s3://sisa-runs", data="s3://sisa-data"))
        ),
    )

    def submit(script: str, *args: str) -> str:
        return cluster.submit(directory, f"jobs/{script}.py", "--config", "run.yaml", *args)

    def do(script: str, *args: str) -> str:
        log = succeeded(cluster.wait(submit(script, *args), timeout_s=PATIENCE_S))
        say(f"{script}: {log.strip().splitlines()[-1]}")
        return log

    def until(num_stages: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while (built := num_checkpoints(cluster)) < num_stages:
            assert time.monotonic() < deadline, f"{built} stages, {cluster.log(first)}"
            time.sleep(1)
        say(f"{built} of {NUM_SHARDS * NUM_SLICES} stages")

    do("ingest")
    first = submit("train")
    until(1)
    second = submit("train")

    until(5)
    cluster.network.kill(NODES[0])
    say(f"{NODES[0]} is killed")
    until(10)
    cluster.start_node(NODES[0])

    cluster.network.unplug(NODES[1])
    say(f"{NODES[1]} is cut off")
    time.sleep(CUT_S)
    cluster.network.plug(NODES[1])
    say(f"{NODES[1]} is connected again, {num_checkpoints(cluster)} stages")
    assert cluster.status(first) == "RUNNING", cluster.log(first)
    assert "is at work on the run; following it" in cluster.log(second)

    before = num_checkpoints(cluster)
    assert before < NUM_SHARDS * NUM_SLICES
    cluster.network.kill(HEAD)
    say("the head is killed")
    cluster.recover()
    say(f"the head is back, {num_checkpoints(cluster)} stages")
    log = do("train")
    for job in (first, second):
        assert cluster.wait(job, timeout_s=PATIENCE_S).status == "FAILED"
    assert 0 < stages_built(log) <= NUM_SHARDS * NUM_SLICES - before + 3

    log = do("unlearn", "--subjects-file", "s3://sisa-data/leavers.txt")
    assert not [person for person in people if person in log]
    token = cluster.on_head(["sisa-ray", "token", "create", "--name", "test", "--role", "predict"]).split()[
        -1
    ]
    (directory / "serve.yaml").write_text("run: s3://sisa-runs/mnist\n", encoding="utf-8")
    serve = ["jobs/serve.py", "--config", "serve.yaml", "--host", "0.0.0.0", "--plain-proxy"]
    for _ in range(2):
        succeeded(cluster.do(directory, *serve))
    pixels = pq.read_table(real_data / "mnist-test.parquet", columns=["pixels"])["pixels"][:64].to_pylist()
    answers = {node: labels(cluster, node, token, pixels) for node in (HEAD, *NODES)}
    assert len(answers[HEAD]) == 64
    assert answers[NODES[0]] == answers[NODES[1]] == answers[HEAD]
    assert "bit-identical: yes" in do("verify")
    succeeded(cluster.do(directory, "jobs/coordinator.py", "--config", "run.yaml", "--stop"))

    monkeypatch.setenv("SISA_RAY_KEYRING", str(cluster.network.disk_of(HEAD) / "keys"))
    quiet = SisaConfig.from_mapping(yaml.safe_load(MNIST.format(storage=tmp_path / "quiet", data=real_data)))
    commands.train(quiet, new_workers=InlineWorkers)
    commands.unlearn(quiet, people, new_workers=InlineWorkers)
    say("one machine, undisturbed")
    fetch(cluster, "mnist/", tmp_path / "fetched")
    assert bits(existing_run(str(tmp_path / "fetched" / "mnist"))) == bits(existing_run(quiet))


def objects(cluster: RayCluster, prefix: str) -> list[str]:
    with cluster.network.entered():
        pages = cluster.s3.client().get_paginator("list_objects_v2")
        found = pages.paginate(Bucket="sisa-runs", Prefix=prefix)
        return [entry["Key"] for page in found for entry in page.get("Contents", [])]


def num_checkpoints(cluster: RayCluster) -> int:
    return sum(key.endswith("/state.safetensors") for key in objects(cluster, "mnist/checkpoints/"))


def fetch(cluster: RayCluster, prefix: str, directory: Path) -> None:
    for key in objects(cluster, prefix):
        path = directory / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with cluster.network.entered():
            path.write_bytes(cluster.s3.client().get_object(Bucket="sisa-runs", Key=key)["Body"].read())


def stages_built(log: str) -> int:
    (line,) = [line for line in log.splitlines() if ": built " in line]
    return int(line.partition(": built ")[2].split()[0])


def labels(cluster: RayCluster, node: str, token: str, pixels: list[bytes]) -> list[int]:
    """What the service answers at one node."""
    rows = [{"pixels": base64.b64encode(one).decode()} for one in pixels]
    url = f"http://{cluster.network.address(node)}:{SERVICE_PORT}/v1/predict"
    with cluster.network.entered():
        headers = {"authorization": f"Bearer {token}"}
        answer = requests.post(url, json={"rows": rows}, headers=headers, timeout=60)
    answer.raise_for_status()
    found: list[int] = answer.json()["labels"]
    return found


def bits(run: Run) -> dict[str, object]:
    """Everything of a run that must not depend on where and how it was made."""
    rows = {
        place: load_slice(run.store, ref).to_pydict() for place, ref in run.state.slices.items() if ref.path
    }
    return {
        "slices": rows,
        "checkpoints": {place: ref.file_digest for place, ref in run.state.stages.items()},
        "kept": {place for place, ref in run.state.stages.items() if ref.path},
        "strays": [i.path for i in run.store.list("") if "partial" in i.path or "scratch" in i.path],
    }
