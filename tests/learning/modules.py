"""Source files of made-up recipes, for the tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

NET = """
import numpy
import random
import torch
from sisa_ray.learning.recipe import Recipe
import zz_helper

class Net(Recipe):
    def late(self):
        import zz_late
        return zz_late.VALUE
"""
FILES = {
    "zz_net.py": NET,
    "zz_helper.py": "import zz_deep\nVALUE = 1\n",
    "zz_deep.py": "",
    "zz_late.py": "VALUE = 1\n",
}
PACKAGE = {
    "zz_pkg/__init__.py": "",
    "zz_pkg/sub/__init__.py": "from . import listed\n",
    "zz_pkg/sub/listed.py": "",
    "zz_pkg/sub/nets.py": (
        "from ..shared import scale\nfrom .parts import layers as l\n"
        "from . import extra, NAME\nclass Net: ...\n"
    ),
    "zz_pkg/sub/extra.py": "",
    "zz_pkg/sub/parts/layers.py": "",
    "zz_pkg/shared.py": "scale = 1\n",
    "zz_pkg/unused.py": "",
}


def write(directory: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return directory
