"""How a state's tables are written in a snapshot: as lists, since JSON has no keys of two numbers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, GetPydanticSchema, PlainSerializer

from sisa_ray.core.places import Places
from sisa_ray.core.records import SliceRef, StageRef


def _by_place(refs: Any) -> Any:
    """References from a list, by what they name."""
    if not isinstance(refs, list):
        return refs
    return {(ref["shard"], ref["slice"] if "slice" in ref else ref["stage"]): ref for ref in refs}


def _schema(row: type[SliceRef | StageRef]) -> GetPydanticSchema:
    """That of a dictionary, which is written as a list and becomes a table by place again."""
    written = Annotated[
        dict[tuple[int, int], row],  # type: ignore[valid-type]
        BeforeValidator(_by_place),
        AfterValidator(Places),
        PlainSerializer(lambda refs: list(refs.values())),
    ]
    return GetPydanticSchema(lambda _, handler: handler(written))


Slices = Annotated[Places[SliceRef], _schema(SliceRef)]
Stages = Annotated[Places[StageRef], _schema(StageRef)]
