"""Errors of the HTTP interface: problem details (RFC 9457). No message holds what a caller sent, only where it was."""

from __future__ import annotations

import json
from typing import Any

MEDIA_TYPE = "application/problem+json"

TITLES = {
    400: "Bad request",
    401: "Not authenticated",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    411: "Length required",
    413: "Too large",
    415: "Unsupported media type",
    422: "Unprocessable",
    429: "Too many requests",
    500: "Internal error",
    503: "Not available now",
}


class Problem(Exception):
    """Ends a request with an error that its caller can act on.

    Args:
        status: HTTP status, one of :data:`TITLES`.
        kind: a stable name for programs.
        detail: what was wrong, the rule, and the fix.
        headers: further response headers.
        extra: further members of the problem.
    """

    def __init__(
        self, status: int, kind: str, detail: str, *, headers: dict[str, str] | None = None, **extra: Any
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.headers = headers or {}
        self.extra = extra

    def body(self, request_id: str) -> bytes:
        """The problem as JSON."""
        return json.dumps(
            {
                "type": f"urn:sisa-ray:problem:{self.kind}",
                "title": TITLES[self.status],
                "status": self.status,
                "detail": self.detail,
                "instance": f"urn:sisa-ray:request:{request_id}",
                **self.extra,
            }
        ).encode()


def unavailable(detail: str, *, retry_after_s: int = 1, kind: str = "unavailable") -> Problem:
    """Something that passes: the caller should try again."""
    return Problem(503, kind, detail, headers={"retry-after": str(retry_after_s)})
