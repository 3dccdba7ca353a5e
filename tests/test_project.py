"""The frame of the project: layers, sizes of modules, dependencies, and what the documents promise."""

from __future__ import annotations

import ast
import copy
import re
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import sisa_ray
from sisa_ray.core.config import SisaConfig
from sisa_ray.service.cli import app

ROOT = Path(__file__).parents[1]
MAX_LINES = 400

LAYERS = ("core", "storage", "learning", "execution", "service")
"""From the bottom up. A module imports from its own layer and those before it."""

BESIDE = {"planning": "core", "recipes": "learning", "conversion": "learning", "serving": "service"}
"""Packages that are part of another layer."""

LOWEST_LAYER = {
    "cryptography": "core",
    "numpy": "core",
    "pydantic": "core",
    "pydantic_core": "core",
    "yaml": "core",
    "aiobotocore": "storage",
    "aiohttp": "storage",
    "botocore": "storage",
    "fsspec": "storage",
    "pyarrow": "storage",
    "s3fs": "storage",
    "PIL": "learning",
    "efficientnet_lite_pytorch": "learning",
    "safetensors": "learning",
    "scipy": "learning",
    "torch": "learning",
    "ray": "execution",
    "fastapi": "service",
    "matplotlib": "service",
    "rich": "service",
    "sklearn": "service",
    "starlette": "service",
    "typer": "service",
}
"""The lowest layer that may import a package that is not the standard library's."""

COMES_WITH = {
    "pydantic_core": "pydantic",
    "starlette": "fastapi",
    "aiobotocore": "s3fs",
    "aiohttp": "s3fs",
    "botocore": "s3fs",
}
"""Packages that another one is made of, and whose errors it raises."""

MODULES = sorted(
    p.relative_to(ROOT) for d in ("sisa_ray", "tests", "benchmarks", "jobs") for p in (ROOT / d).rglob("*.py")
)
IN_LAYERS = [p for p in MODULES if p.parts[0] == "sisa_ray" and len(p.parts) > 2]
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "cluster/README.md",
    *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")),
]


SMALLEST: dict[str, Any] = {
    "name": "run",
    "storage_path": "runs",
    "data": {"train": "train.parquet", "record_id": "id", "columns": {"features": "x"}},
    "recipe": {"class": "nets.Net"},
    "sisa": {"num_shards": 2, "num_slices": 2, "epochs": 1},
}
"""A configuration of required keys alone."""


def text(path: str | Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def rank(package: str) -> int:
    """Position of a layer, from the bottom."""
    return LAYERS.index(BESIDE.get(package, package))


def lowest_rank(module: str) -> int:
    """The lowest layer that may import a module. What sisa_ray exports at its top is for users alone."""
    package, _, rest = module.partition(".")
    if package in sys.stdlib_module_names or module in ("sisa_ray", "sisa_ray.__version__"):
        return 0
    if package != "sisa_ray":
        return rank(LOWEST_LAYER[package])
    inside = rest.partition(".")[0]
    return rank(inside) if inside in LAYERS or inside in BESIDE else len(LAYERS)


@cache
def imports(path: Path) -> frozenset[str]:
    """Full names of the modules that ``path`` imports, inside functions and for type checks too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(text(path))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}:{node.lineno}: relative import"
            names.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return frozenset(names)


def third_party(path: Path) -> set[str]:
    tops = {name.partition(".")[0] for name in imports(path)}
    beside = {p.stem for p in (ROOT / path).parent.glob("_*.py")}  # what scripts of one directory share
    return tops - sys.stdlib_module_names - {"sisa_ray", "tests"} - beside


@cache
def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads(text("pyproject.toml"))["project"]
    return table


def requirements(*extras: str) -> list[Requirement]:
    wanted = [project()["dependencies"], *(project()["optional-dependencies"][extra] for extra in extras)]
    return [Requirement(line) for lines in wanted for line in lines]


def test_imports_point_down() -> None:
    above = {
        f"{path}: {name}"
        for path in IN_LAYERS
        for name in imports(path)
        if lowest_rank(name) > rank(path.parts[1])
    }
    assert not above


@pytest.mark.parametrize("layer", ["core", "planning", "storage", "learning", "recipes", "conversion"])
def test_layer_imports_where_those_above_are_not_installed(layer: str) -> None:
    """A whole interpreter, since one import pulls in others: none of them may need Ray, for example."""
    missing = sorted(package for package, lowest in LOWEST_LAYER.items() if rank(lowest) > rank(layer))
    modules = [str(p.with_suffix("")).replace("/", ".") for p in IN_LAYERS if p.parts[1] == layer]
    assert "ray" in missing
    assert modules
    program = (
        "import importlib, sys\n"
        f"for name in {missing}: sys.modules[name] = None\n"
        f"for name in {modules}: importlib.import_module(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_modules_are_small_rooms() -> None:
    lengths = {str(path): len(text(path).splitlines()) for path in MODULES}
    assert {path: n for path, n in lengths.items() if n > MAX_LINES} == {}


@pytest.mark.parametrize(
    ("directory", "extras"),
    [
        ("sisa_ray", ["convert", "demo", "transfer"]),
        ("jobs", []),
        ("tests", ["convert", "demo", "dev"]),
        ("benchmarks", ["demo", "dev"]),
    ],
)
def test_what_is_imported_is_declared(directory: str, extras: list[str]) -> None:
    declared = {canonicalize_name(r.name) for r in requirements(*extras)}
    distributions = packages_distributions()
    undeclared = set()
    for path in MODULES:
        if path.parts[0] == directory:
            for package in third_party(path):
                known = distributions.get(COMES_WITH.get(package, package), [])
                if not declared & {canonicalize_name(name) for name in known}:
                    undeclared.add(f"{path}: {package}")
    assert not undeclared


def test_constraints_are_exact_and_within_the_ranges() -> None:
    lines = [line for line in text("constraints.txt").splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    pins = {
        canonicalize_name(name): Version(version) for name, _, version in (x.partition("==") for x in lines)
    }
    assert len(pins) == len(lines)
    for requirement in requirements("convert", "demo", "dev", "transfer"):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_changelog_tells_of_this_version() -> None:
    headings = re.findall(r"^## \[?([0-9][^\] ]*)", text("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == sisa_ray.__version__


def test_make_help_lists_every_target() -> None:
    makefile = text("Makefile")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(re.findall(r"^  make (\S+)", done.stdout, re.MULTILINE)) == set(phony[1].split())


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_documents_exist(document: str) -> None:
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text(document), re.DOTALL))
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert set(re.findall(r"\bmake ([a-z][a-z-]*)", code)) <= targets
    assert set(re.findall(r"(?:^|[$`/] ?)sisa-ray ([a-z]+)", code, re.MULTILINE)) <= commands


@pytest.mark.parametrize("document", DOCUMENTS)
def test_configurations_in_documents_are_valid(document: str) -> None:
    for block in re.findall(r"```yaml\n(.*?)```", text(document), re.DOTALL):
        data = yaml.safe_load(block)
        if "storage_path" in data:
            assert SisaConfig.from_mapping(data).name == data["name"]


def test_ci_runs_the_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    assert re.search(r"\bmake test$", text(".ci/run"), re.MULTILINE)


def test_commit_hooks_are_well_formed() -> None:
    command = [sys.executable, "-m", "pre_commit", "validate-config", str(ROOT / ".pre-commit-config.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted names of the keys of a configuration, as they are written in YAML."""
    for name, field in section.model_fields.items():
        key = prefix + (field.alias or name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{key}.")
        else:
            yield key, field


def test_every_key_of_a_configuration_is_documented_with_its_default() -> None:
    row = r"^\| `([a-z_.]+)` \| (.*?) \| .* \| (?:identity|circumstance) \|$"
    rows = re.findall(row, text("docs/configuration.md"), re.MULTILINE)
    documented = {key: default.strip("`") for key, default in rows}
    assert len(documented) == len(rows)
    assert documented.keys() == {key for key, _ in fields(SisaConfig)}
    names = {"none": None, "data.record_id": "id"}
    for key, field in fields(SisaConfig):
        if field.is_required():
            assert documented[key] == "required", key
            continue
        shown = documented[key]
        spelled_out = copy.deepcopy(SMALLEST)
        *sections, leaf = key.split(".")
        place = spelled_out
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = names[shown] if shown in names else yaml.safe_load(shown)
        assert SisaConfig.from_mapping(spelled_out) == SisaConfig.from_mapping(SMALLEST), key
