"""The code a recipe consists of: what is hashed into every stage key, and exactly what is executed.

A static walk over import statements, from the recipe's module on, finds every module that is neither part of
Python nor of an installed distribution; their bytes are the recipe's code (contract clause 10). Imports in
functions, relative imports, packages' ``__init__`` and literal ``import_module("...")`` count. Modules whose
names are computed at run time cannot be seen.
"""

from __future__ import annotations

import ast
import functools
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import FileFinder, ModuleSpec
from pathlib import Path
from typing import Any

from sisa_ray.core.errors import RecipeError, RecipeMissing
from sisa_ray.core.identity import CodeIdentity
from sisa_ray.learning.arithmetic import NUMERICS
from sisa_ray.learning.importing import (
    FINDER,
    STANDARD_MODULES,
    SourceFile,
    activate,
    is_installed,
    namespace_spec,
)

_LOADERS = (
    (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES),
    (importlib.machinery.SourceFileLoader, importlib.machinery.SOURCE_SUFFIXES),
    (importlib.machinery.SourcelessFileLoader, importlib.machinery.BYTECODE_SUFFIXES),
)
_IN_A_JOB = (
    "a Ray job has what --working-dir ships and nothing else: submit the directory that holds the recipe"
)
_PLATFORM = frozenset({"torch", "sisa-ray"})
"""Distributions that no key names: torch is the platform, sisa_ray is represented by ``NUMERICS``."""


@dataclass(frozen=True, kw_only=True)
class RecipeCode:
    """A recipe's module and everything that it imports.

    Attributes:
        module: name of the recipe's module.
        class_name: name of the class in it.
        sources: the user's own modules by name.
        namespaces: the user's packages without ``__init__.py``: name to directories.
        distributions: versions of installed distributions; "absent" for an import that finds nothing.
        root: directory that holds the top-level module, or None where it is installed.
    """

    module: str
    class_name: str
    sources: Mapping[str, SourceFile]
    namespaces: Mapping[str, tuple[str, ...]]
    distributions: Mapping[str, str]
    root: str | None

    @property
    def identity(self) -> CodeIdentity:
        """What keys hash: names and bytes, no paths."""
        return CodeIdentity(
            modules={name: source.digest for name, source in sorted(self.sources.items())},
            distributions=dict(sorted(self.distributions.items())),
            numerics=NUMERICS,
        )

    def activate(self) -> None:
        """Make imports execute these very bytes: see :func:`sisa_ray.learning.importing.activate`."""
        activate(self.sources, self.namespaces)


def recipe_code(class_path: str, search_dirs: Sequence[str] = ()) -> RecipeCode:
    """Find the recipe's code without executing any of it.

    Args:
        class_path: ``package.module.Class`` or ``path/to/file.py:Class``.
        search_dirs: where to look first: as if on ``sys.path``, and for relative file paths.

    Raises:
        RecipeError: where something cannot be found or has no readable source.
    """
    file_name, colon, class_name = class_path.rpartition(":")
    if colon:
        file = _find_file(file_name, search_dirs, class_path)
        if not file.stem.isidentifier():
            raise RecipeError(f"recipe {class_path!r}: {file.name!r} is no module name; rename the file")
        roots, module = [str(file.parent), *map(str, search_dirs)], file.stem
    else:
        roots = [str(d) for d in search_dirs]
        module, _, class_name = class_path.rpartition(".")
    if not module or not class_name.isidentifier() or module == "__main__":
        raise RecipeError(
            f"recipe {class_path!r}: must be package.module.Class or path/to/file.py:Class "
            "(a class typed into a session or notebook has no source that could be hashed)"
        )
    walk = _Walk(roots, class_path)
    if not walk.visit(module):
        raise RecipeMissing(
            f"recipe {class_path!r}: cannot be imported: there is no module {module!r} in "
            f"{', '.join(roots) or 'the search directories'} or on Python's path; "
            f"check the spelling, or name the file (path/to/file.py:Class); {_IN_A_JOB}"
        )
    return RecipeCode(
        module=module,
        class_name=class_name,
        sources=walk.sources,
        namespaces=walk.namespaces,
        distributions=walk.distributions,
        root=walk.root_of(module),
    )


class _Walk:
    """Visits modules from the recipe's on, reading each once."""

    def __init__(self, roots: Sequence[str], class_path: str) -> None:
        self.sources: dict[str, SourceFile] = {}
        self.namespaces: dict[str, tuple[str, ...]] = {}
        self.distributions: dict[str, str] = {}
        self._roots = list(roots)
        self._class_path = class_path
        self._specs: dict[str, ModuleSpec | None] = {}
        self._finders: dict[str, FileFinder] = {}

    def root_of(self, module: str) -> str | None:
        top = module.partition(".")[0]
        if top in self.namespaces:
            return str(Path(self.namespaces[top][0]).parent)
        if top not in self.sources:
            return None
        path = Path(self.sources[top].path)
        return str(path.parent.parent if self.sources[top].is_package else path.parent)

    def visit(self, name: str) -> bool:
        """Account for ``name`` and the packages it lies in; False where there is no such module."""
        top, *rest = name.split(".")
        if top in STANDARD_MODULES:
            self._refuse_shadowed_standard_module(top)
            return True
        if top == "sisa_ray":  # NUMERICS stands for it, in a checkout as well as installed
            return True
        prefix, found = top, self._account(top)
        for part in rest:
            if not found or (prefix not in self.sources and prefix not in self.namespaces):
                return found  # absent, or inside an installed distribution, which its version stands for
            prefix = f"{prefix}.{part}"
            found = self._account(prefix)
        return found

    def _account(self, name: str) -> bool:
        if name in self._specs:
            return self._specs[name] is not None
        spec = self._specs[name] = self._find(name)
        if spec is None:
            return False
        locations = list(spec.submodule_search_locations or [])
        if spec.origin is None or not spec.has_location:
            if locations and not all(map(is_installed, locations)):
                self.namespaces[name] = tuple(locations)
                return True
            self._installed(name)
            return True
        if is_installed(spec.origin) and self._installed(name):
            return True
        self._read(name, Path(spec.origin), is_package=spec.submodule_search_locations is not None)
        return True

    def _find(self, name: str) -> ModuleSpec | None:
        parent = name.rpartition(".")[0]
        if parent:
            spec = self._specs[parent]
            locations = None if spec is None else spec.submodule_search_locations
            return None if locations is None else self._search(name, locations)
        # One search over both: as in Python, a mere directory never hides a package further down the path.
        found = self._search(name, [*self._roots, *sys.path])
        if found is not None:
            return found
        for finder in sys.meta_path:  # editable installs and archives have finders of their own
            if finder is not FINDER and (spec := finder.find_spec(name, None)) is not None:
                return spec
        return None

    def _search(self, name: str, locations: Iterable[str]) -> ModuleSpec | None:
        """What Python finds in some directories; its own search would need the parent packages imported."""
        portions: list[str] = []
        for location in locations:
            if location not in self._finders:
                self._finders[location] = FileFinder(location, *_LOADERS)
            spec = self._finders[location].find_spec(name)
            if spec is not None and spec.loader is not None:
                return spec
            portions += (spec.submodule_search_locations or []) if spec is not None else []
        return namespace_spec(name, portions) if portions else None

    def _installed(self, name: str) -> bool:
        """Note the distributions that bring a module; False where none claims it."""
        distributions = _distributions_of().get(name.partition(".")[0], [])
        for distribution in {_normalised(d) for d in distributions} - _PLATFORM:
            self.distributions[distribution] = importlib.metadata.version(distribution)
        return bool(distributions)

    def _read(self, name: str, path: Path, *, is_package: bool) -> None:
        if path.suffix == ".pyc":
            raise RecipeError(
                f"recipe {self._class_path!r}: module {name!r} has no readable source, only {path.name}; "
                "its code is part of every stage key, so bring the .py file"
            )
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RecipeError(
                f"recipe {self._class_path!r}: the source of module {name!r} cannot be read "
                f"({path}: {error.strerror}); its code is part of every stage key"
            ) from None
        self.sources[name] = SourceFile(path=str(path), data=data, is_package=is_package)
        if path.suffix == ".py":
            package = name if is_package else name.rpartition(".")[0]
            for imported, optional in _imports(_parse(data, path), package, self._problem):
                if not self.visit(imported) and not optional:
                    self.distributions[imported] = "absent"

    def _problem(self, message: str) -> RecipeError:
        return RecipeError(f"recipe {self._class_path!r}: {message}")

    def _refuse_shadowed_standard_module(self, top: str) -> None:
        for root in self._roots:
            for candidate in (Path(root, f"{top}.py"), Path(root, top, "__init__.py")):
                if candidate.exists():
                    raise self._problem(f"{candidate} has the name of a module of Python's own; rename it")


def _parse(data: bytes, path: Path) -> ast.Module:
    try:
        return ast.parse(data, filename=str(path))
    except (SyntaxError, ValueError) as error:
        raise RecipeError(f"recipe module {path}: cannot be imported: {error}") from None


def _imports(tree: ast.Module, package: str, problem: Any) -> Iterator[tuple[str, bool]]:
    """Absolute names that a module imports; True marks names that may be attributes instead of modules."""
    pending: deque[ast.AST] = deque([tree])
    while pending:
        node = pending.popleft()
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            pending.extend(node.orelse)  # never executed otherwise
            continue
        pending.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = _absolute("." * node.level + base, package, problem)
            yield base, False
            yield from ((f"{base}.{alias.name}", True) for alias in node.names)
        elif isinstance(node, ast.Call) and (name := _literal_import(node)):
            yield (_absolute(name, package, problem) if name.startswith(".") else name), False


def _absolute(name: str, package: str, problem: Any) -> str:
    if not package:
        raise problem(
            f"imports {name!r} relatively, which needs a package; name the recipe as package.module.Class "
            "and have the package's parent directory searched, or import absolutely"
        )
    try:
        return importlib.util.resolve_name(name, package)
    except ImportError as error:
        raise problem(f"cannot be imported: {error}") from None


def _literal_import(call: ast.Call) -> str | None:
    called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", None)
    if called in ("import_module", "__import__") and call.args and isinstance(call.args[0], ast.Constant):
        value = call.args[0].value
        return value if isinstance(value, str) and value else None
    return None


def _is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", None)
    return name == "TYPE_CHECKING"


def _normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


@functools.cache
def _distributions_of() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def _find_file(name: str, search_dirs: Sequence[str], class_path: str) -> Path:
    candidates = [Path(d, name) for d in search_dirs] + [Path(name)]
    candidates += [Path(d, Path(name).name) for d in search_dirs]  # the directory moved, the file is the same
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    raise RecipeMissing(
        f"recipe {class_path!r}: there is no file {', '.join(dict.fromkeys(map(str, candidates)))}; {_IN_A_JOB}"
    )
