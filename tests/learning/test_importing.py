from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sisa_ray.core.errors import RecipeError
from sisa_ray.learning.code import recipe_code
from tests.learning.modules import FILES, PACKAGE, write


@pytest.fixture(autouse=True)
def _leave_no_modules() -> Iterator[None]:
    yield
    for name in [n for n in sys.modules if n.startswith("zz_")]:
        del sys.modules[name]


def value_of(directory: Path, path: str, module: str) -> object:
    found = recipe_code(path, [str(directory)])
    found.activate()
    importlib.import_module(found.module)
    return importlib.import_module(module).VALUE


@pytest.mark.parametrize("module", ["zz_helper", "zz_late"])
def test_an_edit_within_a_second_is_executed(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's own cache of byte code goes by the second and the size."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    write(tmp_path, FILES)
    for value in (1, 2):
        path = write(tmp_path, {f"{module}.py": f"VALUE = {value}\n"}) / f"{module}.py"
        os.utime(path, (1e9, 1e9))
        assert value_of(tmp_path, "zz_net.py:Net", module) == value


def test_what_was_hashed_is_executed_whatever_the_disk_holds_by_then(tmp_path: Path) -> None:
    found = recipe_code("zz_net.py:Net", [str(write(tmp_path, FILES))])
    write(tmp_path, {"zz_helper.py": "VALUE = 'changed'\n"})
    found.activate()
    assert importlib.import_module("zz_helper").VALUE == 1


def test_what_has_not_changed_is_not_imported_again(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    value_of(tmp_path, "zz_net.py:Net", "zz_helper")
    loaded = sys.modules["zz_net"]
    value_of(tmp_path, "zz_net.py:Net", "zz_helper")
    assert sys.modules["zz_net"] is loaded
    write(tmp_path, {"zz_deep.py": "X = 1\n"})
    value_of(tmp_path, "zz_net.py:Net", "zz_helper")
    assert sys.modules["zz_net"] is not loaded


def test_modules_of_the_same_name_in_another_directory_replace_those_before(tmp_path: Path) -> None:
    write(tmp_path / "one", FILES)
    write(tmp_path / "two", {**FILES, "zz_helper.py": "VALUE = 2\n"})
    for directory, value in (("one", 1), ("two", 2), ("one", 1)):
        assert value_of(tmp_path / directory, "zz_net.py:Net", "zz_helper") == value


def test_packages_and_namespaces_are_imported_from_the_bytes(tmp_path: Path) -> None:
    files = {name: text for name, text in PACKAGE.items() if name != "zz_pkg/__init__.py"}
    files["zz_pkg/shared.py"] = "VALUE = scale = 3\n"
    files["zz_pkg/sub/__init__.py"] = "NAME = 1\n"
    write(tmp_path, files)
    assert value_of(tmp_path, "zz_pkg.sub.nets.Net", "zz_pkg.shared") == 3
    assert recipe_code("zz_pkg.sub.nets.Net", [str(tmp_path)]).sources.keys() >= {
        "zz_pkg.sub",
        "zz_pkg.sub.nets",
    }
    assert sys.modules["zz_pkg.sub.nets"].__file__ == str(tmp_path / "zz_pkg/sub/nets.py")


def test_a_name_that_the_process_uses_otherwise_is_refused(tmp_path: Path) -> None:
    assert "yaml" in sys.modules
    write(tmp_path, {"zz_net.py": "import yaml\n", "yaml.py": ""})
    with pytest.raises(RecipeError, match=r"already uses another module named 'yaml' .*; rename yours"):
        recipe_code("zz_net.py:Net", [str(tmp_path)]).activate()


def test_a_program_s_own_modules_stay_its_own_until_they_are_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(write(tmp_path, FILES)))
    for name in FILES:
        os.utime(tmp_path / name, (1e9, 1e9))
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if "sisa_ray" not in type(f).__module__])
    own = importlib.import_module("zz_helper")
    assert value_of(tmp_path, "zz_net.py:Net", "zz_helper") == 1
    assert sys.modules["zz_helper"] is own
    write(tmp_path, {"zz_helper.py": "VALUE = 2\n"})
    assert value_of(tmp_path, "zz_net.py:Net", "zz_helper") == 2
    assert sys.modules["zz_helper"] is not own
