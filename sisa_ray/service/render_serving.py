"""Tokens and deployments as text for people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from sisa_ray.core.tokens import Token


def plain(text: str) -> RenderableType:
    """One line."""
    return Text(text)


def token_text(token: Token, bearer: str) -> RenderableType:
    """A token that was just made; the only time that its secret is shown."""
    return Group(
        Text.assemble("token ", (token.token, "bold"), f" for {token.name}: {', '.join(token.roles)}"),
        Text(bearer, no_wrap=True, overflow="ignore"),
        Text("keep it now: it is shown this once", "dim"),
    )


def tokens_text(tokens: Sequence[Token], now: datetime) -> RenderableType:
    """Tokens without their secrets."""
    if not tokens:
        return Text("no tokens; `sisa-ray token create` makes one")
    table = Table(box=None, pad_edge=False)
    for heading in ("id", "name", "roles", "created", "expires"):
        table.add_column(heading)
    for token in tokens:
        expires = "never" if token.expires_at is None else f"{token.expires_at:%Y-%m-%d %H:%M}"
        is_over = token.expires_at is not None and token.expires_at <= now
        table.add_row(
            token.token,
            token.name,
            ", ".join(token.roles),
            f"{token.created_at:%Y-%m-%d %H:%M}",
            Text("expired" if is_over else expires, "red" if is_over else ""),
        )
    return table
