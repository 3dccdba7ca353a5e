"""One bearer token: its text form, its roles, and how it is written in the file."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Literal, get_args

from sisa_ray.core.errors import ConfigError
from sisa_ray.core.fields import shown, suggestion

Role = Literal["predict", "request", "operate", "read"]
"""``predict`` asks the ensemble. ``request`` files and follows unlearning requests. ``operate`` does what an
operator does: extend, reject, see requests. ``read`` sees the run's state, its requests and certificates."""

ROLES: tuple[Role, ...] = get_args(Role)

_SECRET_BYTES = 32
_ID = re.compile(r"[0-9a-f]{8}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BEARER = re.compile(r"sisa_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token. ``token_id`` is public; times have a time zone; ``replaced_by`` is the id that it was rotated to.

    Raises:
        ConfigError: naming the field that is wrong, its value, the rule and the fix.
    """

    token_id: str
    name: str
    roles: tuple[Role, ...]
    created_at: datetime
    expires_at: datetime | None
    replaced_by: str | None = None
    secret_sha256: str = field(repr=False)

    def __post_init__(self) -> None:
        _require_text("token_id", self.token_id, _ID, "be 8 digits from 0-9a-f")
        rule = "be 1 to 64 letters, digits and . _ -, and no person: such as web-shop"
        _require_text("name", self.name, _NAME, rule)
        object.__setattr__(self, "roles", checked_roles(self.roles))
        _require_time("created_at", self.created_at)
        if self.expires_at is not None:
            _require_time("expires_at", self.expires_at)
        if self.replaced_by is not None:
            _require_text("replaced_by", self.replaced_by, _ID, "be null or 8 digits from 0-9a-f")
        # Its value is not shown: somebody may have put the secret itself there.
        if not isinstance(self.secret_sha256, str) or not _DIGEST.fullmatch(self.secret_sha256):
            raise ConfigError(
                "secret_sha256: must be 64 digits from 0-9a-f (not shown here); make the token anew"
            )

    def may(self, *roles: Role) -> bool:
        """Whether it has one of these roles. No role includes another."""
        return any(role in self.roles for role in roles)

    def has_expired(self, now: datetime) -> bool:
        """Whether it is valid no more."""
        return self.expires_at is not None and self.expires_at <= now

    def public(self) -> dict[str, Any]:
        """What may be shown of it, as plain JSON data."""
        return {
            "id": self.token_id,
            "name": self.name,
            "roles": list(self.roles),
            "created_at": self.created_at.isoformat(),
            "expires_at": None if self.expires_at is None else self.expires_at.isoformat(),
            "replaced_by": self.replaced_by,
        }


def new_secret(random_bytes: Callable[[int], bytes]) -> str:
    """A secret of 256 bits, as text."""
    return base64.urlsafe_b64encode(random_bytes(_SECRET_BYTES)).rstrip(b"=").decode("ascii")


def bearer_of(token_id: str, secret: str) -> str:
    """The text form of a token, as its holder sends it."""
    return f"sisa_{token_id}_{secret}"


def split_bearer(bearer: str) -> tuple[str, str]:
    """The id and the secret of a text form; two empty strings where it is none."""
    match = _BEARER.fullmatch(bearer)
    return (match[1], match[2]) if match else ("", "")


def shown_safely(value: object) -> str:
    """A value as error messages show it, unless a token was given in its place: that must not end in a log."""
    return "a whole token" if _BEARER.search(str(value)) else shown(value)


def secret_digest(secret: str) -> str:
    """SHA-256 (hex) of a secret: what is kept of it."""
    # One pass of SHA-256 is enough: the secret is 256 random bits, so there is no dictionary to try against a
    # digest that leaked, and a slow hash would only slow down every request.
    return hashlib.sha256(secret.encode("ascii")).hexdigest()


_MEMBERS = {"id" if f.name == "token_id" else f.name for f in fields(Token)}


def parse_token(document: object, where: str) -> Token:
    """Read a token from plain JSON data. ``where`` names its place, for messages.

    Raises:
        ConfigError: naming the member that is wrong. Secrets are not shown.
    """
    if not isinstance(document, dict):
        raise ConfigError(f"{where}: must be an object with the members {', '.join(sorted(_MEMBERS))}")
    try:
        require_members(document, _MEMBERS)
        values = {name: value for name, value in document.items() if name != "id"}
        for name in ("created_at", "expires_at"):
            if values[name] is not None:
                values[name] = _time(name, values[name])
        return Token(token_id=document["id"], **values)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from None


def require_members(document: Mapping[str, Any], members: set[str]) -> None:
    """Refuse an object that has other members than these.

    Raises:
        ConfigError: naming the one that is missing; one that is unknown is not shown.
    """
    for name in sorted(members - document.keys()):
        raise ConfigError(f"{name}: is missing; restore the file from a backup, or make the token anew")
    for _ in sorted(document.keys() - members):
        # Its name is not shown: whatever was pasted there may be a secret.
        raise ConfigError(f"(unknown member): the members are {', '.join(sorted(members))}; remove others")


def _require_text(name: str, value: object, pattern: re.Pattern[str], rule: str) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value) or _BEARER.search(value):
        raise ConfigError(f"{name}: must {rule}, not {shown_safely(value)}")


def _require_time(name: str, value: object) -> None:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ConfigError(f"{name}: must be a time with a time zone, not {shown_safely(value)}")


def _time(name: str, value: object) -> datetime:
    try:
        at = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise ConfigError(
            f"{name}: must be a time with a time zone such as 2026-11-02T09:30:00+00:00, not {shown_safely(value)}"
        )
    return at


def checked_roles(roles: object) -> tuple[Role, ...]:
    """Roles in a fixed order, each once.

    Raises:
        ConfigError: where there is none, or one is unknown.
    """
    given = list(roles) if isinstance(roles, Iterable) and not isinstance(roles, (str, Mapping)) else None
    if not given:
        raise ConfigError(
            f"roles: must be a list of one or more of {', '.join(ROLES)}, not {shown_safely(roles)}"
        )
    for role in given:
        if role not in ROLES:
            raise ConfigError(
                f"roles: must be of {', '.join(ROLES)}, not {shown_safely(role)}{suggestion(role, ROLES)}"
            )
    return tuple(role for role in ROLES if role in given)
