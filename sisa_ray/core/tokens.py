"""Bearer tokens of the HTTP interface: who may do what. Only hashes are kept."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Literal, get_args

from sisa_ray.core.errors import ConfigError
from sisa_ray.core.fields import shown, suggestion

Role = Literal["predict", "request", "operate", "read"]
"""``predict``: ask the ensemble. ``request``: file unlearning requests and follow them. ``operate``: also extend and
reject them. ``read``: see the run's state, requests and certificates."""

ROLES: tuple[Role, ...] = get_args(Role)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_BEARER = re.compile(r"sisa_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
_SPAN = re.compile(r"(\d{1,6})([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_NOBODY = "0" * 64


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token without its secret. ``secret_hash`` is a plain SHA-256: nobody can try out 256 random bits."""

    token: str
    name: str
    roles: tuple[Role, ...]
    secret_hash: str = field(repr=False)
    created_at: datetime
    expires_at: datetime | None = None


@dataclass(frozen=True)
class Tokens:
    """Every token that is accepted."""

    tokens: tuple[Token, ...] = ()

    @cached_property
    def digest(self) -> str:
        """Another one whenever any token is."""
        return hashlib.sha256(repr([(t, t.secret_hash) for t in self.tokens]).encode()).hexdigest()

    @cached_property
    def _by_id(self) -> dict[str, Token]:
        return {token.token: token for token in self.tokens}

    def check(self, bearer: str, now: datetime) -> Token | Literal["unknown", "expired"]:
        """The token that ``bearer`` is, or why it is none. Takes as long for a wrong secret as for a wrong id."""
        match = _BEARER.fullmatch(bearer)
        token = self._by_id.get(match[1]) if match else None
        given = hashlib.sha256((match[2] if match else "").encode()).hexdigest()
        is_right = hmac.compare_digest(given, token.secret_hash if token else _NOBODY)
        if token is None or not is_right:
            return "unknown"
        if token.expires_at is not None and token.expires_at <= now:
            return "expired"
        return token

    def with_token(self, token: Token) -> Tokens:
        """These and another one."""
        return Tokens((*self.tokens, token))

    def without(self, name: str) -> Tokens:
        """These but one.

        Raises:
            ConfigError: where there is no such token.
        """
        self.find(name)
        return Tokens(tuple(t for t in self.tokens if t.token != name))

    def expiring(self, name: str, at: datetime) -> Tokens:
        """These, one of which ends at ``at`` or before.

        Raises:
            ConfigError: where there is no such token.
        """
        self.find(name)

        def ended(token: Token) -> Token:
            if token.token != name or (token.expires_at is not None and token.expires_at <= at):
                return token
            return replace(token, expires_at=at)

        return Tokens(tuple(ended(t) for t in self.tokens))

    def find(self, name: str) -> Token:
        """A token by its id.

        Raises:
            ConfigError: where there is none.
        """
        token = self._by_id.get(name)
        if token is None:
            raise ConfigError(
                f"token {shown(name)}: there is none of this id; `sisa-ray token list` shows them"
            )
        return token


def new_token(
    name: str, roles: Collection[str], *, now: datetime, lasts: timedelta | None = None
) -> tuple[Token, str]:
    """A token, and the text that its holder shows: ``sisa_<id>_<secret>``. It is kept nowhere.

    Raises:
        ConfigError: where the name or a role breaks a rule.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"--name: must be 1 to 64 letters, digits, '.', '_' and '-', not {shown(name)}; name a system, not a person"
        )
    secret = secrets.token_urlsafe(32)
    token = Token(
        token=secrets.token_hex(4),
        name=name,
        roles=checked_roles(roles),
        secret_hash=hashlib.sha256(secret.encode()).hexdigest(),
        created_at=now,
        expires_at=None if lasts is None else now + lasts,
    )
    return token, f"sisa_{token.token}_{secret}"


def checked_roles(roles: Iterable[str]) -> tuple[Role, ...]:
    """Roles in their order, once each.

    Raises:
        ConfigError: for an unknown one, or none at all.
    """
    asked = set(roles)
    for role in sorted(asked):
        if role not in ROLES:
            raise ConfigError(
                f"--role: must be {', '.join(ROLES)}, not {shown(role)}{suggestion(role, ROLES)}"
            )
    if not asked:
        raise ConfigError(f"--role: is required; give one or more of {', '.join(ROLES)}")
    return tuple(role for role in ROLES if role in asked)


def parse_span(text: str, option: str) -> timedelta:
    """A span of time such as ``90d``.

    >>> parse_span("90d", "--expires-in").days
    90

    Raises:
        ConfigError: naming the option, for anything else.
    """
    match = _SPAN.fullmatch(text.strip())
    if match is None or not int(match[1]):
        raise ConfigError(
            f"{option}: must be a number and s, m, h or d, such as 90d or 10m, not {shown(text)}"
        )
    return timedelta(seconds=int(match[1]) * _UNITS[match[2]])
