"""YAML as configurations need it: a key given twice is an error, and 1e-3 is a number."""

from __future__ import annotations

import re
from typing import Any

import yaml

from sisa_ray.core.fields import shown

# What PyYAML's constructors let out: ValueError for the date 2024-13-45, KeyError for `!!bool maybe`, ...
_LEAKS = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RecursionError)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 keeps the last of two equal keys without a word, and reads 1e-3 as a string."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {shown(key.value)} is given twice; remove one",
                        problem_mark=key.start_mark,
                    )
                seen.add(key.value)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:\d+|\d+\.\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_yaml(text: str) -> Any:
    """The document in ``text`` as plain data.

    Raises:
        ValueError: where and why it is not YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(where + ", ".join(filter(None, (error.context, error.problem)))) from None
    except _LEAKS as error:
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())}") from None
