"""Every optional field of a manifest says what it means and what holds without it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.files import CLUSTER, MANIFESTS

REQUIRED = {
    "RayCluster": {"headGroupSpec", "workerGroupSpecs"},
    "RayJob": {"entrypoint", "rayClusterSpec", "headGroupSpec", "workerGroupSpecs"},
    "RayService": {"serveConfigV2", "rayClusterConfig", "headGroupSpec", "workerGroupSpecs"},
    "ray up": {
        "cluster_name",
        "provider",
        "type",
        "available_node_types",
        "head_node_type",
        "image",
        "resources",
    },
    "values": set(),
}
"""Fields that have to be there, or that are no fields but places."""
PLACES = {"spec", "template", "groupName", "rayStartParams", "containers", "name", "node_config", "metadata"}
OPAQUE = {
    *("template", "containers", "metadata", "node_config", "securityContext"),
    *("resources", "requests", "limits", "valueFrom"),
}
"""What lies below is Kubernetes' or the cloud's affair."""


def unmarked(node: yaml.Node, lines: list[str], required: set[str]) -> Iterator[str]:
    """Fields without a remark of their own, whose parts have none either."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from unmarked(item, lines, required)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        name, line = key.value, lines[key.start_mark.line]
        if isinstance(value, yaml.SequenceNode) and re.search(r"# optional", line):
            inner: Iterator[str] | tuple[str, ...] = ()  # the remark speaks for its items
        elif name in OPAQUE or re.search(r"# (optional|required)", line):
            inner = () if name in OPAQUE else unmarked(value, lines, required | names(value, line))
        elif isinstance(value, yaml.ScalarNode) and name not in required | PLACES:
            inner = (f"{key.start_mark.line + 1}: {line.strip()}",)
        else:
            inner = unmarked(value, lines, required)
        yield from inner


def names(node: yaml.Node, line: str) -> set[str]:
    """The parts of a field whose remark speaks for all of them."""
    if "optional, all of it" in line or not isinstance(node, yaml.MappingNode):
        return set()
    return {key.value for key, _ in node.value}


@pytest.mark.parametrize("path", MANIFESTS, ids=[path.name for path in MANIFESTS])
def test_optional_fields_of_manifests_are_explained(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    root = yaml.compose(text)
    kind = yaml.safe_load(text)["kind"]
    assert isinstance(root, yaml.MappingNode)
    spec = next(value for key, value in root.value if key.value == "spec")
    assert list(unmarked(spec, text.splitlines(), REQUIRED[kind])) == []


@pytest.mark.parametrize(
    ("name", "kind"), [("rayup.aws.yaml", "ray up"), ("values.seaweedfs.yaml", "values")]
)
def test_optional_fields_of_other_files_are_explained(name: str, kind: str) -> None:
    text = (CLUSTER / name).read_text(encoding="utf-8")
    root = yaml.compose(text)
    assert root is not None
    assert list(unmarked(root, text.splitlines(), REQUIRED[kind])) == []


@pytest.mark.parametrize("path", sorted(CLUSTER.glob("*.yaml")), ids=lambda path: path.name)
def test_what_is_optional_has_its_default_said(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        if re.search(r"# optional(?!, all of it|$)", line):
            assert re.search(r"Default|instead of", line), line
