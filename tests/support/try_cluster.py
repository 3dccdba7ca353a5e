"""A cluster to try jobs on without a cloud: ``make cluster``.

Three Ray nodes and an S3 server in network namespaces; the digits of the demo are ingested, trained, forgotten in part,
proved and served by jobs, and everything is taken down again.
"""

from __future__ import annotations

import argparse
import base64
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import requests

from sisa_ray.service.demo_files import DemoFiles, make_room, write_digits
from tests.support.namespaces import OUTSIDE, Unsupported
from tests.support.ray_cluster import HEAD, ROOT, RayCluster, ray_cluster

_SERVICE_PORT = 8000
_PEOPLE = ["digit-0042", "digit-0043", "digit-0044"]

_RUN = """\
name: digits
storage_path: s3://sisa-runs
data:
  train: s3://sisa-data/digits-train.parquet
  test: s3://sisa-data/digits-test.parquet
  record_id: id
  columns: {features: pixels, label: label}
recipe:
  class: sisa_ray.recipes.MLPClassifier
  args: {hidden: [64], num_classes: 10, lr: 0.003, batch_size: 16, scale: 16}
sisa: {num_shards: 5, num_slices: 4, epochs: 40, seed: 0}
"""
_SERVICE = "run: s3://sisa-runs/digits\n"


class Failed(Exception):
    """A job did not do what it should."""


def main() -> int:
    """Run the tour; the exit code."""
    parser = argparse.ArgumentParser(prog="make cluster", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the cluster up until Ctrl-C")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _leave)
    try:
        _say("Starting three Ray nodes and an S3 server, each in a network namespace of its own")
        with ray_cluster(num_cpus=1) as cluster:
            _tour(cluster)
            if options.keep:
                _explain(cluster)
                while True:
                    time.sleep(1)
    except Unsupported as error:
        _say(f"make cluster: {error}")
        return 2
    except (Failed, TimeoutError) as error:
        _say(f"make cluster: {error}")
        return 1
    except KeyboardInterrupt:
        _say("Interrupted")
    _say("Everything is taken down")
    return 0


def _tour(cluster: RayCluster) -> None:
    directory = cluster.network.directory / "work"
    _prepare(cluster, directory)
    for script in ("ingest", "train"):
        _do(cluster, directory, script, "--config", "digits.yaml")
    _do(cluster, directory, "train", "--config", "digits.yaml")  # finds the work done
    people = "s3://sisa-data/leavers.txt"
    _do(cluster, directory, "unlearn", "--config", "digits.yaml", "--subjects-file", people)
    _do(cluster, directory, "verify", "--config", "digits.yaml")
    token = cluster.on_head(["sisa-ray", "token", "create", "--name", "tour", "--role", "predict"])
    _do(cluster, directory, "serve", "--config", "serve.yaml", "--host", "0.0.0.0", "--plain-proxy")
    _ask(cluster, token.split()[-1], directory)


def _prepare(cluster: RayCluster, directory: Path) -> None:
    """The directory to submit, and what lies in the bucket."""
    directory.mkdir()
    shutil.copytree(ROOT / "jobs", directory / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    (directory / "digits.yaml").write_text(_RUN, encoding="utf-8")
    (directory / "serve.yaml").write_text(_SERVICE, encoding="utf-8")
    files = DemoFiles(directory=cluster.network.directory / "demo")
    make_room(files)
    write_digits(files)
    cluster.store("sisa-runs", {})
    objects = {path.name: path.read_bytes() for path in files.data.iterdir()}
    cluster.store("sisa-data", {**objects, "leavers.txt": "\n".join(_PEOPLE).encode()})


def _do(cluster: RayCluster, directory: Path, script: str, *args: str) -> None:
    _say(f"\n$ ray job submit --working-dir . -- python jobs/{script}.py {' '.join(args)}")
    result = cluster.do(directory, f"jobs/{script}.py", *args)
    _say(result.log.rstrip())
    if result.status != "SUCCEEDED":
        raise Failed(f"the job failed with exit code {result.exit_code}")


def _ask(cluster: RayCluster, token: str, directory: Path) -> None:
    row = {"pixels": base64.b64encode(bytes(64)).decode()}
    url = f"http://{cluster.network.address(HEAD)}:{_SERVICE_PORT}/v1/predict"
    _say(f"\n$ curl {url} …")
    with cluster.network.entered():
        headers = {"authorization": f"Bearer {token}"}
        answer = requests.post(url, json={"rows": [row]}, headers=headers, timeout=60)
    _say(answer.text)
    if not answer.ok:
        raise Failed(f"the service answered {answer.status_code}")


def _explain(cluster: RayCluster) -> None:
    variables = " ".join(f"{k}={v}" for k, v in cluster.environment.items() if k.startswith(("RAY_", "AWS_")))
    namespace = cluster.network.namespace(OUTSIDE)
    _say(
        f"\nThe cluster stays until Ctrl-C. A shell within reach of it:\n"
        f"  ip netns exec {namespace} env {variables} RAY_API_SERVER_ADDRESS={cluster.dashboard} bash"
    )


def _leave(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
