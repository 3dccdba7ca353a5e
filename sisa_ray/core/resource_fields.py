"""Types of fields that say what a shard occupies, and where: GPUs, slots, labels of nodes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator

from sisa_ray.core.fields import is_number, shown

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_LABEL_NAME = re.compile(rf"(?:[a-z0-9](?:[a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_LABEL}")
_LABEL_SELECTOR = re.compile(rf"!?{_LABEL}|!?in\({_LABEL}(?:, ?{_LABEL})*\)")


def _to_gpus(value: object) -> object:
    if value == "auto":
        return value
    if is_number(value):
        assert isinstance(value, (int, float))
        if 0 <= value < 1 or (value == int(value) and 1 <= value <= 1024):
            return float(value)
    raise ValueError(f"must be auto, 0, a fraction below 1, or a whole number, not {shown(value)}")


GpuShare = Annotated[Literal["auto"] | float, BeforeValidator(_to_gpus)]


def _to_slot_limit(value: object) -> object:
    if value == "auto":
        return value
    if is_number(value):
        assert isinstance(value, (int, float))
        if value == int(value) and 1 <= value <= 100_000:
            return int(value)
    raise ValueError(f"must be auto or a whole number from 1 to 100000, not {shown(value)}")


SlotLimit = Annotated[Literal["auto"] | int, BeforeValidator(_to_slot_limit)]


def _to_labels(value: object) -> dict[str, str]:
    """Label selectors in the form of Ray's own, which are Kubernetes': checked here, so that nothing starts."""
    if isinstance(value, Mapping):
        return {str(name): _to_selector(name, value[name]) for name in sorted(value, key=str)}
    raise ValueError(
        f"must map labels of nodes to values, such as {{ray.io/market-type: on-demand}}, not {shown(value)}"
    )


def _to_selector(name: object, wanted: object) -> str:
    if not isinstance(name, str) or not _LABEL_NAME.fullmatch(name):
        raise ValueError(
            f"label {shown(name)} must be a name of letters, digits, '-', '_' and '.', 63 at most, or one behind "
            "a domain and '/'; rename it"
        )
    if isinstance(wanted, str) and _LABEL_SELECTOR.fullmatch(wanted):
        return wanted
    fix = "; put it in quotes" if isinstance(wanted, (bool, int, float)) else ""
    raise ValueError(
        f"label {name!r} must have a value such as a, '!a', 'in(a, b)' or '!in(a, b)', not {shown(wanted)}{fix}"
    )


Labels = Annotated[dict[str, str], BeforeValidator(_to_labels)]
