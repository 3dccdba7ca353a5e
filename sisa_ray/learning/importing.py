"""Executing a recipe: imports of its modules run exactly the bytes that were hashed.

A cached ``.pyc`` (which Python matches by second and size only), or a module imported before an edit, would
otherwise run under the key of the new code.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType

from sisa_ray.core.errors import RecipeError

STANDARD_MODULES = frozenset(sys.stdlib_module_names) | frozenset(sys.builtin_module_names)
_BORN = time.time()


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One module that is the user's own."""

    path: str
    data: bytes
    is_package: bool

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the bytes."""
        return sha256(self.data).hexdigest()


def activate(sources: Mapping[str, SourceFile], namespaces: Mapping[str, tuple[str, ...]]) -> None:
    """Make imports of a recipe's modules execute the bytes in ``sources``, dropping loaded older copies.

    One recipe is active at a time for each module name: the last one wins. Modules that the process imported
    by itself are kept where their files have not changed since: a program's own classes stay its own.

    Raises:
        RecipeError: where a module of that name, from elsewhere, is already in use in this process.
    """
    stale = False
    for name, source in sources.items():
        loaded = sys.modules.get(name)
        if loaded is None or not _is_stale(loaded, source):
            continue
        origin = getattr(loaded, "__file__", None)
        if origin is None or is_installed(origin) or name.partition(".")[0] in STANDARD_MODULES:
            raise RecipeError(
                f"recipe module {source.path}: this process already uses another module named {name!r} "
                f"({origin or 'built in'}); rename yours"
            )
        stale = True
    if stale:
        own = tuple(f"{name}." for name in (*sources, *namespaces))
        for name, module in list(sys.modules.items()):
            # What the program imported by itself, and is no part of the recipe, is not ours to drop.
            if not f"{name}.".startswith(own):
                continue
            ours = isinstance(getattr(getattr(module, "__spec__", None), "loader", None), _BytesLoader)
            if ours or _is_stale(module, sources.get(name)):
                del sys.modules[name]
    FINDER.sources.update(sources)
    FINDER.namespaces.update(namespaces)
    if FINDER not in sys.meta_path:
        sys.meta_path.insert(0, FINDER)


def is_installed(path: str) -> bool:
    """Whether a path lies inside an installed distribution."""
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(path).parts)


def namespace_spec(name: str, locations: Iterable[str]) -> ModuleSpec:
    """The spec of a package that has directories but no ``__init__.py``."""
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = list(locations)
    return spec


class _BytesLoader(importlib.machinery.SourceFileLoader):
    """Executes the bytes that were hashed, whatever the disk or a byte-code cache holds by now."""

    def __init__(self, name: str, source: SourceFile) -> None:
        super().__init__(name, source.path)
        self.source = source

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = self.source_to_code(self.source.data, self.source.path)
        return code


def _is_untouched(module: ModuleType, source: SourceFile) -> bool:
    """Whether the process imported that very file by itself, and it is as it was."""
    if isinstance(getattr(module.__spec__, "loader", None), _BytesLoader):
        return False
    path = getattr(module, "__file__", None)
    try:
        return path is not None and Path(path).samefile(source.path) and Path(path).stat().st_mtime < _BORN
    except OSError:
        return False


def _is_stale(module: ModuleType, source: SourceFile | None) -> bool:
    return source is not None and not _runs(module, source) and not _is_untouched(module, source)


def _runs(module: ModuleType, source: SourceFile) -> bool:
    loader = getattr(module.__spec__, "loader", None)
    return isinstance(loader, _BytesLoader) and loader.source == source


@dataclass
class _Finder(importlib.abc.MetaPathFinder):
    sources: dict[str, SourceFile] = field(default_factory=dict)
    namespaces: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        source = self.sources.get(fullname)
        if source is not None:
            locations = [str(Path(source.path).parent)] if source.is_package else None
            loader = _BytesLoader(fullname, source) if source.path.endswith(".py") else None
            return importlib.util.spec_from_file_location(
                fullname, source.path, loader=loader, submodule_search_locations=locations
            )
        if fullname in self.namespaces:
            return namespace_spec(fullname, self.namespaces[fullname])
        return None


FINDER = _Finder()
