"""How a state's tables are written in a snapshot: as lists, since JSON has no keys of two numbers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

from sisa_ray.core.records import SliceRef, StageRef


def _by_place(refs: Any) -> Any:
    """References from a list, by what they name."""
    if not isinstance(refs, list):
        return refs
    return {(ref["shard"], ref["slice"] if "slice" in ref else ref["stage"]): ref for ref in refs}


_AS_LIST = BeforeValidator(_by_place), PlainSerializer(lambda refs: list(refs.values()))
Slices = Annotated[dict[tuple[int, int], SliceRef], *_AS_LIST]
Stages = Annotated[dict[tuple[int, int], StageRef], *_AS_LIST]
