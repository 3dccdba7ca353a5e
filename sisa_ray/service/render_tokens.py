"""Bearer tokens as text for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sisa_ray.service.tracker import count


def issued_text(
    public: Mapping[str, Any], bearer: str, *, replaces: Mapping[str, Any] | None = None
) -> RenderableType:
    """A token that was just made, and the only sight of its text form."""
    ends = f"valid until {_time(public['expires_at'])}" if public["expires_at"] else "valid until revoked"
    lines = [Text(f"token {public['id']} of {public['name']}: {', '.join(public['roles'])}; {ends}")]
    if replaces is not None:
        lines.append(Text(f"it replaces {replaces['id']}, which ends at {_time(replaces['expires_at'])}"))
    lines.append(Text("shown this once; keep it where secrets are kept:", style="dim"))
    # On a line of its own, never broken: it is copied from here.
    lines.append(Text(bearer, no_wrap=True, overflow="ignore"))
    return Group(*lines)


def list_text(rows: Sequence[Mapping[str, Any]], file: str) -> RenderableType:
    """All tokens, without their secrets."""
    if not rows:
        return Text(f"no tokens in {file}; `sisa-ray token create` makes one")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("id", "name", "roles", "created", "expires", ""):
        table.add_column(heading)
    for row in rows:
        replaced = f"replaced by {row['replaced_by']}" if row["replaced_by"] else ""
        state = ", ".join(filter(None, ("expired" if row["has_expired"] else "", replaced)))
        expires = _time(row["expires_at"]) if row["expires_at"] else "never"
        table.add_row(
            row["id"], row["name"], ", ".join(row["roles"]), _time(row["created_at"]), expires, state
        )
    return Group(table, Text(f"{count(len(rows), 'token')} in {file}", style="dim"))


def revoked_text(token_id: str) -> RenderableType:
    """What was revoked."""
    return Text(f"token {token_id} is revoked")


def _time(text: str) -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S %Z}"
