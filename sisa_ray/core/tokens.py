"""Bearer tokens: who may do what at the HTTP service. The secret itself is nowhere, only what recognises it."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple

from sisa_ray.core.bearer import (
    Token,
    bearer_of,
    checked_roles,
    new_secret,
    parse_token,
    require_members,
    secret_digest,
    shown_safely,
    split_bearer,
)
from sisa_ray.core.errors import ConfigError
from sisa_ray.core.fields import shown, suggestion
from sisa_ray.core.keys import json_digest

VERSION = 1
"""Of the file: a reader refuses newer ones."""
MAX_LIFETIME = timedelta(days=3650)

_ID_BYTES = 4
_KEPT_EXPIRED = timedelta(days=30)
"""For so long whoever shows an expired token is told that it expired."""
_NOBODY = "0" * 64
"""Compared with where there is no such id. No secret is known that has this digest."""


class Verdict(StrEnum):
    """What became of a bearer's token."""

    VALID = "valid"
    EXPIRED = "expired"
    UNKNOWN = "unknown"


class Issued(NamedTuple):
    """A token that was just made: all tokens with it, the token, and its one and only text form."""

    tokens: Tokens
    token: Token
    bearer: str

    def __repr__(self) -> str:
        return f"Issued({self.token!r})"


@dataclass(frozen=True)
class Tokens:
    """All tokens. Changes return new ones.

    Raises:
        ConfigError: where two have the same id.
    """

    tokens: tuple[Token, ...] = ()

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for token in self.tokens:
            if token.token_id in seen:
                raise ConfigError(f"tokens: two have the id {token.token_id}; remove one of them")
            seen.add(token.token_id)

    @cached_property
    def _by_id(self) -> dict[str, Token]:
        return {token.token_id: token for token in self.tokens}

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over all that is in it: whoever holds tokens can tell whether they have changed."""
        return json_digest(self.document())

    def judge(self, bearer: str, now: datetime) -> tuple[Verdict, Token | None]:
        """What becomes of a bearer's token, and the token where it is valid.

        Only who has the secret learns that a token expired. An id that is not there costs what a wrong secret does.
        """
        token_id, secret = split_bearer(bearer)
        token = self._by_id.get(token_id)
        expected = _NOBODY if token is None else token.secret_sha256
        is_same = hmac.compare_digest(secret_digest(secret), expected)
        if token is None or not is_same:
            return Verdict.UNKNOWN, None
        return (Verdict.EXPIRED, None) if token.has_expired(now) else (Verdict.VALID, token)

    def find(self, bearer: str, now: datetime) -> Token | None:
        """The valid token with this text form, or None."""
        return self.judge(bearer, now)[1]

    def get(self, token_id: str) -> Token:
        """The token with this id.

        Raises:
            ConfigError: where there is none.
        """
        if token_id not in self._by_id:
            hint = suggestion(token_id, self._by_id)
            given = shown_safely(token_id)
            raise ConfigError(f"id: {given} is no token's id{hint}; `sisa-ray token list` lists them")
        return self._by_id[token_id]

    def predecessors(self, token_id: str, now: datetime) -> tuple[Token, ...]:
        """Valid tokens that were rotated to ``token_id``, and those rotated to them."""
        found = {token_id}
        for _ in self.tokens:  # a chain is no longer than that, and a file edited by hand may hold a circle
            found |= {t.token_id for t in self.tokens if t.replaced_by in found}
        return tuple(t for t in self.tokens if t.token_id in found - {token_id} and not t.has_expired(now))

    def create(
        self,
        *,
        name: str,
        roles: Iterable[str],
        now: datetime,
        lifetime: timedelta | None,
        random_bytes: Callable[[int], bytes],
    ) -> Issued:
        """Make a token that is valid for ``lifetime`` (None: for good), with bytes from a secure source.

        Raises:
            ConfigError: for a name, role or lifetime that is not allowed.
        """
        if lifetime is not None and not timedelta(0) < lifetime <= MAX_LIFETIME:
            raise ConfigError(
                f"expires_in: must be positive and at most {MAX_LIFETIME.days} days, not {lifetime}"
            )
        token_id = random_bytes(_ID_BYTES).hex()
        while token_id in self._by_id:
            token_id = random_bytes(_ID_BYTES).hex()
        secret = new_secret(random_bytes)
        token = Token(
            token_id=token_id,
            name=name,
            roles=checked_roles(roles),
            created_at=now,
            expires_at=None if lifetime is None else now + lifetime,
            secret_sha256=secret_digest(secret),
        )
        kept = (t for t in self.tokens if t.expires_at is None or now - t.expires_at < _KEPT_EXPIRED)
        return Issued(Tokens((*kept, token)), token, bearer_of(token_id, secret))

    def rotate(
        self, token_id: str, *, now: datetime, keep_old_for: timedelta, random_bytes: Callable[[int], bytes]
    ) -> Issued:
        """A new token with the name, the roles and the lifetime of another, which ends after ``keep_old_for``.

        Raises:
            ConfigError: for an unknown id, one that has expired, or one that was rotated before.
        """
        old = self.get(token_id)
        if old.replaced_by is not None:
            raise ConfigError(
                f"id: token {token_id} was rotated before; rotate {old.replaced_by}, or create one"
            )
        if old.has_expired(now):
            raise ConfigError(
                f"id: token {token_id} expired at {old.expires_at}; create a new one under its name"
            )
        lifetime = None if old.expires_at is None else old.expires_at - old.created_at
        issued = self.create(
            name=old.name, roles=old.roles, now=now, lifetime=lifetime, random_bytes=random_bytes
        )
        ends = now + keep_old_for
        ended = replace(
            old,
            expires_at=ends if old.expires_at is None else min(ends, old.expires_at),
            replaced_by=issued.token.token_id,
        )
        swapped = tuple(ended if t.token_id == token_id else t for t in issued.tokens.tokens)
        return issued._replace(tokens=Tokens(swapped))

    def revoke(self, token_id: str) -> Tokens:
        """All but one. It is as if it had never been.

        Raises:
            ConfigError: for an unknown id.
        """
        gone = self.get(token_id)
        return Tokens(tuple(t for t in self.tokens if t is not gone))

    def document(self) -> dict[str, Any]:
        """The content of the file, as plain JSON data."""
        return {
            "version": VERSION,
            "tokens": [{**t.public(), "secret_sha256": t.secret_sha256} for t in self.tokens],
        }

    @staticmethod
    def from_document(document: object) -> Tokens:
        """Read the content of the file.

        Raises:
            ConfigError: for a newer version, or naming the member that is wrong. Secrets are not shown.
        """
        if not isinstance(document, dict):
            raise ConfigError("must be a JSON object with the members version and tokens")
        version = document.get("version")
        if type(version) is int and version > VERSION:
            raise ConfigError(
                f"version: was written by a newer sisa_ray (version {version}; this one reads {VERSION}); use that one"
            )
        if type(version) is not int or version != VERSION:
            raise ConfigError(f"version: must be {VERSION}, not {shown(version)}")
        require_members(document, {"version", "tokens"})
        if not isinstance(document["tokens"], list):
            raise ConfigError("tokens: must be a list of tokens")
        return Tokens(tuple(parse_token(t, f"tokens[{i}]") for i, t in enumerate(document["tokens"])))
