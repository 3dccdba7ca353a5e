"""Every file of ``cluster/`` is taken by what reads it: KubeRay's schemas, Ray, a shell, our own configuration."""

from __future__ import annotations

import copy
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray.autoscaler
import typer
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from sisa_ray.core.config import SisaConfig
from sisa_ray.service import jobs
from sisa_ray.serving.config import ServeConfig
from tests.cluster.files import (
    CLUSTER,
    CORE_MANIFESTS,
    MANIFESTS,
    ROOT,
    complaints,
    documents,
    kuberay_schema,
)

RAY_UP = CLUSTER / "rayup.aws.yaml"
SCRIPTS = sorted(CLUSTER.glob("*.sh"))


def ids(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def found(node: Any, key: str) -> Iterator[Any]:
    """Every value of ``key`` anywhere in a document."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from found(value, key)
    elif isinstance(node, list):
        for item in node:
            yield from found(item, key)


def all_documents() -> list[Any]:
    return [document for path in [*MANIFESTS, *CORE_MANIFESTS] for document in documents(path)]


def test_there_is_one_of_each_kind() -> None:
    kinds = [document["kind"] for path in MANIFESTS for document in documents(path)]
    assert sorted(kinds) == ["RayCluster", "RayJob", "RayJob", "RayService"]


@pytest.mark.parametrize("path", MANIFESTS, ids=ids(MANIFESTS))
def test_kuberay_takes_its_manifests(path: Path) -> None:
    (document,) = documents(path)
    schema = kuberay_schema(document["kind"])
    assert complaints(document, schema) == []
    assert document["apiVersion"] == "ray.io/v1"
    assert path.name.split(".")[0] == document["kind"].lower()
    misspelt = copy.deepcopy(document)
    misspelt["spec"]["entrypiont"] = "python"
    (complaint,) = complaints(misspelt, schema)
    assert "entrypiont" in complaint


def test_kubernetes_takes_the_others() -> None:
    """Their parts at least: pods and claims are part of KubeRay's schemas."""
    pod = kuberay_schema("RayCluster")["properties"]["spec"]["properties"]["headGroupSpec"]["properties"][
        "template"
    ]
    volumes = pod["properties"]["spec"]["properties"]["volumes"]["items"]["properties"]
    claim = volumes["ephemeral"]["properties"]["volumeClaimTemplate"]["properties"]["spec"]
    checked = 0
    for path in CORE_MANIFESTS:
        for document in documents(path):
            if document["kind"] == "PersistentVolumeClaim":
                assert complaints(document["spec"], claim) == []
                checked += 1
            elif document["kind"] == "StatefulSet":
                assert complaints(document["spec"]["template"], pod) == []
                for template in document["spec"]["volumeClaimTemplates"]:
                    assert complaints(template["spec"], claim) == []
                checked += 1
    assert checked == 2


def test_what_manifests_name_is_made_somewhere() -> None:
    """Secrets, volumes and configurations: by another file here, or by a command of the README."""
    readme = (CLUSTER / "README.md").read_text(encoding="utf-8")
    made = set(re.findall(r"kubectl create (?:secret generic|configmap) (\S+)", readme))
    made |= {document["metadata"].get("name") for document in all_documents()}
    named = set()
    for document in all_documents():
        named |= {ref["name"] for ref in found(document, "secretKeyRef")}
        named |= {ref["name"] for ref in found(document, "secretRef")}
        named |= {claim["claimName"] for claim in found(document, "persistentVolumeClaim")}
        named |= {volume["configMap"]["name"] for volume in volumes_of(document) if "configMap" in volume}
        named |= set(found(document, "secretName"))
        named |= {labels["ray.io/cluster"] for labels in found(document, "clusterSelector")}
    values = yaml.safe_load((CLUSTER / "values.seaweedfs.yaml").read_text(encoding="utf-8"))
    named.add(values["s3"]["existingConfigSecret"])
    assert named <= made
    assert len(named) == 7


def volumes_of(document: Any) -> list[Any]:
    return [volume for volumes in found(document, "volumes") for volume in volumes]


def test_whoever_opens_runs_has_the_keyring_and_nobody_else() -> None:
    """The coordinator and jobs run on heads; a keyring that others may read would be refused."""
    for path in MANIFESTS:
        (document,) = documents(path)
        for head in found(document, "headGroupSpec"):
            pod = head["template"]["spec"]
            assert pod["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
            (container,) = pod["containers"]
            variables = {v["name"]: v["value"] for v in container["env"]}
            mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
            assert Path(variables["SISA_RAY_KEYRING"]).is_relative_to(mounts["keyring"])
            assert head["rayStartParams"]["num-cpus"] == "0"
        for groups in found(document, "workerGroupSpecs"):
            assert not list(found(groups, "persistentVolumeClaim"))


def clusters_of(document: Any) -> list[Any]:
    specs = [document.get("spec"), *found(document, "rayClusterSpec"), *found(document, "rayClusterConfig")]
    return [spec for spec in specs if "headGroupSpec" in (spec or {})]


def test_clusters_ask_for_a_token_and_shards_go_to_zero() -> None:
    clusters = [cluster for document in all_documents() for cluster in clusters_of(document)]
    assert len(clusters) == 3
    for cluster in clusters:
        assert cluster["authOptions"]["mode"] == "token"
        assert cluster["enableInTreeAutoscaling"] is True
        shards = next(group for group in cluster["workerGroupSpecs"] if group["groupName"] == "shards")
        assert (shards["replicas"], shards["minReplicas"]) == (0, 0)
        (container,) = shards["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    # A run is rebuilt on what it was trained on.
    assert len({json.dumps(s) for d in all_documents() for s in found(d, "nodeSelector")}) == 1


def test_the_service_is_read_by_ray_serve_and_by_us() -> None:
    (document,) = documents(CLUSTER / "rayservice.ensemble.yaml")
    written = yaml.safe_load(document["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(written).applications
    assert application.import_path == "sisa_ray.serving.app:build_app"
    config = ServeConfig.from_mapping(application.args)
    hooks = [hook["exec"]["command"] for hook in found(document, "postStart")]
    assert config.authentication
    assert config.run in hooks[0][-1]
    (standing,) = documents(CLUSTER / "raycluster.standing.yaml")
    (hook,) = found(standing, "postStart")
    run = (
        SisaConfig.from_yaml(ROOT / "jobs" / "mnist.yaml")
        if (ROOT / "jobs" / "mnist.yaml").exists()
        else None
    )
    assert run is None or f"{run.storage_path}/{run.name}" == config.run
    assert config.run in hook["exec"]["command"][-1]


JOB = re.compile(r"python (?:/app/)?jobs/(\w+)\.py((?: --?[\w-]+(?: [^\s`-]\S*)?)*)")


def test_jobs_that_are_named_exist_with_their_options() -> None:
    places = [
        *CLUSTER.glob("*.*"),
        ROOT / "docs" / "operations.md",
        ROOT / "docs" / "jobs.md",
        ROOT / "README.md",
    ]
    named = [(path.name, *job) for path in places for job in JOB.findall(path.read_text(encoding="utf-8"))]
    assert {file for file, *_ in named} >= {"rayjob.train.yaml", "rayjob.unlearn.yaml", "rayup.aws.yaml"}
    for file, job, options in named:
        main = runpy.run_path(str(ROOT / "jobs" / f"{job}.py"))["main"]
        command = typer.main.get_command(jobs.application(main))
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", options)) <= known, f"{file}: {job}{options}"


def test_every_node_of_the_service_speaks_haproxy() -> None:
    from sisa_ray.serving.hosting import THROUGHPUT

    (document,) = documents(CLUSTER / "rayservice.ensemble.yaml")
    containers = [c for pod in found(document, "containers") for c in pod]
    assert len(containers) == 3
    for container in containers:
        variables = {v["name"]: v["value"] for v in container["env"]}
        assert THROUGHPUT.items() <= variables.items(), container["name"]


def test_ray_up_takes_its_file() -> None:
    written = yaml.safe_load(RAY_UP.read_text(encoding="utf-8"))
    schema = json.loads(
        (Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8")
    )
    assert complaints(written, schema) == []
    validate_config(prepare_config(copy.deepcopy(written)))
    misspelt = {**written, "idle_timeout_minute": 1}
    (complaint,) = complaints(misspelt, schema)
    assert "'idle_timeout_minute' was unexpected" in complaint
    types = written["available_node_types"]
    assert written["head_node_type"] in types
    assert types["shards"]["min_workers"] == 0


@pytest.mark.parametrize("path", SCRIPTS, ids=ids(SCRIPTS))
def test_scripts_pass_shellcheck(path: Path) -> None:
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([shellcheck, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert path.stat().st_mode & 0o111
