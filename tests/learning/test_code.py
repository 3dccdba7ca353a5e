from __future__ import annotations

import importlib
import py_compile
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from sisa_ray.core.errors import RecipeError
from sisa_ray.core.identity import CodeIdentity
from sisa_ray.learning import code as code_module
from sisa_ray.learning.arithmetic import NUMERICS
from sisa_ray.learning.code import recipe_code
from tests.learning.modules import FILES, PACKAGE, write


def identity(directory: Path, path: str = "zz_net.py:Net") -> CodeIdentity:
    return recipe_code(path, [str(directory)]).identity


def test_the_user_s_modules_count_and_nothing_else(tmp_path: Path) -> None:
    found = identity(write(tmp_path, FILES))
    assert sorted(found.modules) == ["zz_deep", "zz_helper", "zz_late", "zz_net"]
    assert found.distributions == {"numpy": version("numpy")}
    assert found.numerics == NUMERICS


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_changed_module_changes_the_identity(name: str, tmp_path: Path) -> None:
    before = identity(write(tmp_path, FILES))
    write(tmp_path, {name: FILES[name] + "# a comment\n"})
    after = identity(tmp_path)
    module = name.removesuffix(".py")
    assert before.modules[module] != after.modules[module]
    assert {**before.modules, module: ""} == {**after.modules, module: ""}


def test_the_directory_does_not_matter(tmp_path: Path) -> None:
    one = identity(write(tmp_path / "one", FILES))
    two = tmp_path / "elsewhere" / "two"
    shutil.copytree(tmp_path / "one", two)
    assert identity(two) == one
    assert recipe_code(f"{two}/zz_net.py:Net").identity == one
    assert recipe_code("gone/with/zz_net.py:Net", [str(two)]).identity == one
    assert recipe_code("elsewhere/two/zz_net.py:Net", [str(tmp_path)]).identity == one
    assert recipe_code("zz_net.Net", [str(two)]).identity == one
    assert recipe_code("zz_net.Net", [str(two)]).root == str(two)


@pytest.mark.parametrize("name", [n for n in PACKAGE if n != "zz_pkg/unused.py"])
def test_packages_and_relative_imports_count(name: str, tmp_path: Path) -> None:
    before = identity(write(tmp_path, PACKAGE), "zz_pkg.sub.nets.Net")
    write(tmp_path, {name: PACKAGE[name] + "# a comment\n"})
    after = identity(tmp_path, "zz_pkg.sub.nets.Net")
    assert len(before.modules) == len(PACKAGE) - 1
    assert before != after
    assert recipe_code("zz_pkg.sub.nets.Net", [str(tmp_path)]).root == str(tmp_path)


def test_what_is_not_imported_does_not_count(tmp_path: Path) -> None:
    before = identity(write(tmp_path, PACKAGE), "zz_pkg.sub.nets.Net")
    write(tmp_path, {"zz_pkg/unused.py": "X = 1\n", "zz_other.py": ""})
    assert identity(tmp_path, "zz_pkg.sub.nets.Net") == before


@pytest.mark.parametrize(
    ("statement", "counts"),
    [
        ("import zz_deep", True),
        ("import zz_deep as d, zz_late", True),
        ("from zz_deep import thing", True),
        ("from zz_deep import *", True),
        ("try:\n    import zz_deep\nexcept ImportError: ...", True),
        ("import importlib; importlib.import_module('zz_deep')", True),
        ("from importlib import import_module as i, import_module; import_module('zz_deep')", True),
        ("__import__('zz_deep')", True),
        ("class A:\n    def f(self):\n        if self:\n            import zz_deep", True),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import zz_deep", False),
        ("import typing\nif typing.TYPE_CHECKING:\n    import zz_deep\nelse:\n    import zz_late", False),
        ("x = 'import zz_deep'", False),
    ],
)
def test_forms_of_import(statement: str, counts: bool, tmp_path: Path) -> None:
    write(tmp_path, {**FILES, "zz_net.py": f"{statement}\nclass Net: ...\n"})
    assert ("zz_deep" in identity(tmp_path).modules) == counts


def test_importing_a_submodule_counts_it_and_its_packages(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            **PACKAGE,
            "zz_net.py": "import zz_pkg.sub.parts.layers\nfrom zz_pkg import unused\nclass Net: ...\n",
        },
    )
    assert {"zz_pkg", "zz_pkg.sub", "zz_pkg.sub.listed", "zz_pkg.sub.parts.layers", "zz_pkg.unused"} < set(
        identity(tmp_path).modules
    )


def test_modules_that_import_each_other_are_read_once(tmp_path: Path) -> None:
    write(tmp_path, {"zz_net.py": "import zz_helper", "zz_helper.py": "import zz_net"})
    assert sorted(identity(tmp_path).modules) == ["zz_helper", "zz_net"]


def test_ready_recipes_are_represented_by_numerics(monkeypatch: pytest.MonkeyPatch) -> None:
    found = recipe_code("sisa_ray.learning.recipe.Recipe")
    assert found.root is None
    assert found.identity == CodeIdentity(modules={}, distributions={}, numerics=NUMERICS)
    monkeypatch.setattr(code_module, "NUMERICS", NUMERICS + 1)
    assert found.identity == CodeIdentity(modules={}, distributions={}, numerics=NUMERICS + 1)


def test_installed_distributions_count_by_version(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"zz_net.py": "import yaml, pyarrow.compute\nimport torch.nn\nimport sisa_ray\nclass Net: ...\n"},
    )
    assert identity(tmp_path).distributions == {"pyarrow": version("pyarrow"), "pyyaml": version("PyYAML")}


def test_an_import_that_finds_nothing_counts_as_absent(tmp_path: Path) -> None:
    write(
        tmp_path, {**PACKAGE, "zz_net.py": "try:\n    import zz_fast, zz_pkg.gone\nexcept ImportError: ...\n"}
    )
    assert identity(tmp_path).distributions == {"zz_fast": "absent", "zz_pkg.gone": "absent"}
    write(tmp_path, {"zz_fast.py": ""})
    assert identity(tmp_path).distributions == {"zz_pkg.gone": "absent"}


def test_a_directory_does_not_hide_an_installed_package(tmp_path: Path) -> None:
    write(tmp_path, {"zz_net.py": "import yaml\nclass Net: ...\n", "yaml/notes.txt": ""})
    assert sorted(identity(tmp_path).modules) == ["zz_net"]


def test_the_search_directories_come_before_python_s_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = identity(write(tmp_path / "mine", FILES))
    monkeypatch.syspath_prepend(
        str(write(tmp_path / "other", {"zz_helper.py": "VALUE = 2\n", "zz_late.py": ""}))
    )
    assert identity(tmp_path / "mine") == expected


def test_compiled_extensions_count_by_their_bytes(tmp_path: Path) -> None:
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    write(tmp_path, {"zz_net.py": "import zz_fast\nclass Net: ...\n", f"zz_fast{suffix}": "one"})
    before = identity(tmp_path)
    write(tmp_path, {f"zz_fast{suffix}": "two"})
    assert before.modules["zz_fast"] != identity(tmp_path).modules["zz_fast"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("zz_nowhere.Net", r"cannot be imported: there is no module 'zz_nowhere'"),
        ("zz_pkg.nowhere.Net", r"cannot be imported: there is no module 'zz_pkg.nowhere'"),
        ("nowhere.py:Net", r"there is no file .*nowhere.py"),
        ("Net", r"must be package.module.Class or path/to/file.py:Class"),
        ("__main__.Net", r"typed into a session or notebook has no source"),
        ("zz_net.py:", r"must be package.module.Class"),
        ("2-net.py:Net", r"'2-net.py' is no module name; rename the file"),
        ("zz_broken.py:Net", r"zz_broken.py: cannot be imported: .*line 2"),
        (
            "zz_pkg/sub/nets.py:Net",
            r"imports '..shared' relatively, which needs a package; name the recipe as",
        ),
        ("zz_beyond.sub.Net", r"cannot be imported: .*beyond top-level package"),
        ("zz_shadow.py:Net", r"calendar.py has the name of a module of Python's own; rename it"),
    ],
)
def test_what_cannot_be_found_is_explained(path: str, message: str, tmp_path: Path) -> None:
    files = {
        "2-net.py": "",
        "zz_broken.py": "x = 1\nclass Net(:\n",
        "zz_beyond/__init__.py": "",
        "zz_beyond/sub.py": "from ... import far\n",
        "zz_shadow.py": "import calendar\n",
        "calendar.py": "",
    }
    write(tmp_path, {**FILES, **PACKAGE, **files})
    with pytest.raises(RecipeError, match=message):
        recipe_code(path, [str(tmp_path)])


def test_a_module_without_readable_source_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"zz_net.py": "import zz_helper\n", "zz_helper.py": ""})
    py_compile.compile(str(tmp_path / "zz_helper.py"), cfile=str(tmp_path / "zz_helper.pyc"))
    (tmp_path / "zz_helper.py").unlink()
    with pytest.raises(RecipeError, match=r"'zz_helper' has no readable source, only zz_helper.pyc"):
        identity(tmp_path)


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    write(tmp_path, FILES)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(RecipeError, match=r"source of module 'zz_net' cannot be read .*Permission denied"):
        identity(tmp_path)
