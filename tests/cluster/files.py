"""What lies in ``cluster/``, and the schemas that it is held against."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
VERSIONS: dict[str, str] = {
    name: str(version) for name, version in yaml.safe_load((CLUSTER / "versions.yaml").read_text()).items()
}
MANIFESTS = sorted(CLUSTER.glob("ray[cjs]*.yaml"))
"""Those of KubeRay."""
CORE_MANIFESTS = sorted(path for path in CLUSTER.glob("*.yaml") if path.name.startswith(("pers", "state")))
"""Those of Kubernetes itself."""


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def kuberay_schema(kind: str) -> dict[str, Any]:
    """The published schema of a resource of KubeRay, in which a key that it does not know is an error.

    Skips where the schemas are not there: ``SISA_SCHEMAS``, else ``../shared/schemas`` beside the project.
    """
    directory = Path(os.environ.get("SISA_SCHEMAS") or ROOT.parent / "shared" / "schemas")
    file = directory / f"kuberay-v1-{kind.lower()}s.schema.json"
    if not file.is_file():
        pytest.skip(f"no schemas of KubeRay: {file} does not exist; set SISA_SCHEMAS to their directory")
    return _read(file)


@cache
def _read(file: Path) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    # What Kubernetes itself knows of every resource; the published schema leaves it open.
    schema["properties"]["metadata"] = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "generateName": {"type": "string"},
            "namespace": {"type": "string"},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    }
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    _close(schema)
    return schema


def _close(node: Any) -> None:
    """Close every object of known properties to others."""
    if isinstance(node, list):
        for item in node:
            _close(item)
    elif isinstance(node, dict):
        if isinstance(node.get("properties"), dict):
            node.setdefault("additionalProperties", False)
            for inner in node["properties"].values():
                _close(inner)
        for key in ("items", "additionalProperties", "anyOf", "allOf", "oneOf"):
            _close(node.get(key))


def complaints(document: Any, schema: dict[str, Any]) -> list[str]:
    """What is wrong with a document, with the place of each. The schema is not checked: that takes most of the time."""
    errors = Draft202012Validator(schema).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in errors]
