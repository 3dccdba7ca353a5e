"""Who may ask what, and how often: bearer tokens with roles, limits, and an audit that names no person."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sisa_ray.core.bearer import Role, Token
from sisa_ray.core.tokens import Tokens, Verdict
from sisa_ray.serving.problems import Problem

ANYBODY: Final = "anybody"
_BURST_S = 2.0
"""A caller that was silent may ask for so many seconds' worth at once."""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks: a token's id and name, or anybody where authentication is off."""

    token: str
    name: str


class Gate:
    """Admits callers to one replica.

    Args:
        tokens: those that hold now.
        is_open: authentication is off.
        per_s: for each kind of request, how many a caller may make in a second at this replica.
    """

    def __init__(self, tokens: Callable[[], Tokens], *, is_open: bool, per_s: Mapping[str, float]) -> None:
        self._tokens = tokens
        self.is_open = is_open
        self._per_s = per_s
        self._left: dict[tuple[str, str], tuple[float, float]] = {}

    def admit(
        self, authorization: str | None, roles: tuple[Role, ...], *, kind: str, cost: int = 1
    ) -> Caller:
        """Who asks, if they may.

        Args:
            authorization: the header of that name.
            roles: any of which is enough.
            kind: whose rate it counts for.
            cost: how much it counts.

        Raises:
            Problem: 401 without a token that holds, 403 without a role, 429 above the rate.
        """
        caller = Caller(token=ANYBODY, name=ANYBODY)
        if not self.is_open:
            token = self._token(authorization)
            if not token.may(*roles):
                raise Problem(
                    403,
                    "role",
                    f"the token's roles ({', '.join(token.roles)}) do not allow this; one of "
                    f"{', '.join(roles)} does",
                )
            caller = Caller(token=token.token_id, name=token.name)
        self._check_rate(caller, kind, cost)
        return caller

    def _token(self, authorization: str | None) -> Token:
        scheme, _, bearer = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not bearer:
            raise _refused(
                "a bearer token is required: send 'Authorization: Bearer sisa_…'", "invalid_request"
            )
        verdict, token = self._tokens().judge(bearer.strip(), datetime.now(UTC))
        if verdict is Verdict.VALID and token is not None:
            return token
        reason = "has expired; ask for another one" if verdict is Verdict.EXPIRED else "is not valid here"
        raise _refused(f"the bearer token {reason}", "invalid_token")

    def _check_rate(self, caller: Caller, kind: str, cost: int) -> None:
        rate = self._per_s[kind]
        now = time.monotonic()
        left, since = self._left.get((caller.token, kind), (rate * _BURST_S, now))
        left = min(rate * _BURST_S, left + (now - since) * rate)
        # Whoever has anything left is let through: a request may cost more than a burst.
        if left < min(cost, 1):
            self._left[caller.token, kind] = (left, now)
            wait_s = max(1, round((1 - left) / rate))
            raise Problem(
                429,
                "rate",
                f"more than {rate:g} a second; wait and try again",
                headers={"retry-after": str(wait_s)},
            )
        self._left[caller.token, kind] = (left - cost, now)


def _refused(detail: str, error: str) -> Problem:
    return Problem(
        401,
        "authentication",
        detail,
        headers={"www-authenticate": f'Bearer realm="sisa-ray", error="{error}"'},
    )


class Audit:
    """Who asked what, when and with which outcome; written together, since predictions are many."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._lines: list[dict[str, Any]] = []

    def note(self, **facts: Any) -> None:
        """Remember one request."""
        self._lines.append({"at": time.time(), **facts})

    def flush(self) -> None:
        """Write what was remembered, a JSON object a line."""
        lines, self._lines = self._lines, []
        if lines:
            for line in lines:
                line["at"] = datetime.fromtimestamp(line["at"], UTC).isoformat(timespec="milliseconds")
            self._logger.info("\n".join(json.dumps(line) for line in lines))
