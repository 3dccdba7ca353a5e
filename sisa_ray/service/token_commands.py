"""Commands for the tokens of the HTTP interface."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sisa_ray.service import render_serving
from sisa_ray.service.arguments import Json, Quiet, examples
from sisa_ray.service.console import Output

if TYPE_CHECKING:
    from sisa_ray.core.tokens import Token

tokens = typer.Typer(
    help="Tokens of the HTTP interface: who may predict, request, operate and read. Changes hold without a restart.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Option(metavar="NAME", help="What the token is for; no person's name.")]
Roles = Annotated[
    list[str],
    typer.Option("--role", metavar="ROLE", help="predict, request, operate or read; may be repeated."),
]
ExpiresIn = Annotated[
    str | None,
    typer.Option(metavar="SPAN", help="How long it holds, such as 90d; default: until it is revoked."),
]
KeepOld = Annotated[
    str | None, typer.Option(metavar="SPAN", help="How long the old secret still holds, such as 10m.")
]
TokenId = Annotated[str, typer.Argument(metavar="TOKEN", help="The token's id.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    tokens.command(
        epilog=examples("token create --name shop --role predict --role request --expires-in 90d")
    )(create)
    tokens.command("list", epilog=examples("token list --json"))(show)
    tokens.command(epilog=examples("token rotate 3f2a9c01 --keep-old-for 10m"))(rotate)
    tokens.command(epilog=examples("token revoke 3f2a9c01"))(revoke)
    app.add_typer(tokens, name="token")


def create(
    name: Name, role: Roles, expires_in: ExpiresIn = None, as_json: Json = False, quiet: Quiet = False
) -> None:
    """Create a token and print it, this once; only a hash of it is kept."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        from sisa_ray.core.tokens import new_token
        from sisa_ray.storage.tokens import change_tokens

        lasts = _span(expires_in, "--expires-in")
        token, bearer = new_token(name, role, now=datetime.now(UTC), lasts=lasts)
        change_tokens(lambda known: known.with_token(token))
    output.emit({**_document(token), "bearer": bearer}, lambda: render_serving.token_text(token, bearer))


def show(as_json: Json = False, quiet: Quiet = False) -> None:
    """List the tokens; their secrets are not known."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        from sisa_ray.storage.tokens import load_tokens

        known = load_tokens().tokens
    now = datetime.now(UTC)
    output.emit({"tokens": [_document(t) for t in known]}, lambda: render_serving.tokens_text(known, now))


def rotate(token: TokenId, keep_old_for: KeepOld = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Create a token of the same name, roles and length of life; the old one ends, at once or after a while."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        from sisa_ray.core.tokens import new_token
        from sisa_ray.storage.tokens import change_tokens, load_tokens

        now, overlap = datetime.now(UTC), _span(keep_old_for, "--keep-old-for")
        old = load_tokens().find(token)
        lasts = None if old.expires_at is None else old.expires_at - old.created_at
        fresh, bearer = new_token(old.name, old.roles, now=now, lasts=lasts)
        change_tokens(
            lambda known: (
                known.without(token) if overlap is None else known.expiring(token, now + overlap)
            ).with_token(fresh)
        )
    output.emit({**_document(fresh), "bearer": bearer}, lambda: render_serving.token_text(fresh, bearer))


def revoke(token: TokenId, as_json: Json = False, quiet: Quiet = False) -> None:
    """End a token at once."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        from sisa_ray.storage.tokens import change_tokens

        change_tokens(lambda known: known.without(token))
    output.emit({"revoked": token}, lambda: render_serving.plain(f"revoked {token}"))


def _span(text: str | None, option: str) -> timedelta | None:
    from sisa_ray.core.tokens import parse_span

    return None if text is None else parse_span(text, option)


def _document(token: Token) -> dict[str, Any]:
    return {
        "id": token.token,
        "name": token.name,
        "roles": list(token.roles),
        "created_at": token.created_at.isoformat(),
        "expires_at": None if token.expires_at is None else token.expires_at.isoformat(),
    }
