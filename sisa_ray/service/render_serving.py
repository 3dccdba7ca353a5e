"""Services as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

if TYPE_CHECKING:
    from sisa_ray.serving.hosting import Served


def served_text(served: Served, authentication: bool) -> RenderableType:
    """Where a service answers, and how to ask it."""
    token = " -H 'Authorization: Bearer sisa_…'" if authentication else ""
    return Group(
        Text.assemble("serving ", (served.coordinator.address, "bold"), " at ", (served.url, "bold")),
        Text(f"  curl{token} {served.url}/v1/run", no_wrap=True, overflow="ignore"),
        Text(f"  curl {served.url}/openapi.json", no_wrap=True, overflow="ignore"),
    )
