"""Commands for the bearer tokens of the HTTP service."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated

import typer

from sisa_ray.core.tokens import Tokens
from sisa_ray.service import render_tokens
from sisa_ray.service.arguments import Json, Quiet, examples, parse_duration
from sisa_ray.service.console import Output


class RoleName(StrEnum):
    """What a token's holder may do."""

    PREDICT = "predict"
    REQUEST = "request"
    OPERATE = "operate"
    READ = "read"


TokenId = Annotated[str, typer.Argument(metavar="ID", help="The token's id, as `token list` shows it.")]

token = typer.Typer(
    help="Bearer tokens: who may do what at the HTTP service. Their file is named by SISA_RAY_TOKENS.",
    no_args_is_help=True,
)


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    token.command(
        epilog=examples(
            "token create --name web-shop --role predict --expires-in 90d",
            "token create --name privacy-desk --role request --role operate --json",
        )
    )(create)
    token.command("list", epilog=examples("token list --json"))(list_tokens)
    token.command(epilog=examples("token rotate 1f7a09c2 --keep-old-for 10m"))(rotate)
    token.command(epilog=examples("token revoke 1f7a09c2"))(revoke)
    app.add_typer(token, name="token")


def create(
    name: Annotated[
        str,
        typer.Option(metavar="NAME", help="Who holds it: letters, digits and . _ -, and no person's name."),
    ],
    role: Annotated[list[RoleName], typer.Option(help="What the holder may do; give it several times.")],
    expires_in: Annotated[
        str | None, typer.Option(metavar="TIME", help="Such as 12h, 90d or 52w. Default: never.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a token and print it. This once: what is kept can recognise it, but not show it again."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        from sisa_ray.storage import tokens as storage

        lifetime = None if expires_in is None else parse_duration("--expires-in", expires_in)

        def change(tokens: Tokens) -> tuple[Tokens, tuple[dict[str, object], str]]:
            issued = tokens.create(
                name=name,
                roles=[r.value for r in role],
                now=_now(),
                lifetime=lifetime,
                random_bytes=secrets.token_bytes,
            )
            return issued.tokens, (issued.token.public(), issued.bearer)

        public, bearer = storage.update(change)
    output.emit({"token": public, "bearer": bearer}, lambda: render_tokens.issued_text(public, bearer))


def list_tokens(as_json: Json = False, quiet: Quiet = False) -> None:
    """List the tokens: ids, names, roles and when they end. Never their secrets."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        from sisa_ray.storage import tokens as storage

        file, now = storage.tokens_file(), _now()
        rows = [{**t.public(), "has_expired": t.has_expired(now)} for t in storage.load(file).tokens]
    output.emit({"file": str(file), "tokens": rows}, lambda: render_tokens.list_text(rows, str(file)))


def rotate(
    token_id: TokenId,
    keep_old_for: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="How long the old one stays valid. Default: not at all."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a new token with the name, the roles and the lifetime of another, and print it; the old one ends."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        from sisa_ray.storage import tokens as storage

        overlap = timedelta(0) if keep_old_for is None else parse_duration("--keep-old-for", keep_old_for)

        def change(tokens: Tokens) -> tuple[Tokens, tuple[dict[str, object], dict[str, object], str]]:
            issued = tokens.rotate(
                token_id, now=_now(), keep_old_for=overlap, random_bytes=secrets.token_bytes
            )
            old = issued.tokens.get(token_id)
            return issued.tokens, (issued.token.public(), old.public(), issued.bearer)

        public, old, bearer = storage.update(change)
    document = {"token": public, "replaces": old, "bearer": bearer}
    output.emit(document, lambda: render_tokens.issued_text(public, bearer, replaces=old))


def revoke(token_id: TokenId, as_json: Json = False, quiet: Quiet = False) -> None:
    """Revoke a token: from the service's next look at the file on it opens nothing."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        from sisa_ray.storage import tokens as storage

        def change(tokens: Tokens) -> tuple[Tokens, list[dict[str, object]]]:
            after = tokens.revoke(token_id)
            return after, [t.public() for t in after.predecessors(token_id, _now())]

        still_valid = storage.update(change)
    if still_valid:
        ids = ", ".join(str(t["id"]) for t in still_valid)
        output.warn(f"what it was rotated from is still valid: {ids}; revoke that, too, unless it is in use")
    document = {"revoked": token_id, "still_valid": still_valid}
    output.emit(document, lambda: render_tokens.revoked_text(token_id))


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
