"""The state of a run as JSON, for snapshots."""

from __future__ import annotations

from functools import cache

from pydantic import TypeAdapter

from sisa_ray.core.keys import json_digest
from sisa_ray.core.state import RunState

_ADAPTER: TypeAdapter[RunState] = TypeAdapter(RunState)


def dump_state(state: RunState) -> bytes:
    """A state as JSON."""
    return _ADAPTER.dump_json(state)


def load_state(data: bytes) -> RunState:
    """The state that :func:`dump_state` wrote; pydantic's ValidationError for anything else."""
    return _ADAPTER.validate_json(data)


@cache
def state_form() -> str:
    """A digest of what a dumped state consists of: one of another form may lack what this version must know."""
    return json_digest(_ADAPTER.json_schema())
