"""The HTTP interface of a replica: the fast path of predictions, and everything else through FastAPI."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

from sisa_ray.core.errors import SisaError
from sisa_ray.execution.remote import CoordinatorAway
from sisa_ray.learning.ensemble import Task
from sisa_ray.serving.answers import Media, Question, encode
from sisa_ray.serving.gate import Audit, Gate
from sisa_ray.serving.problems import MEDIA_TYPE, Problem, unavailable
from sisa_ray.serving.replica import Predictor
from sisa_ray.serving.rows import ARROW_STREAM, parse_json

logger = logging.getLogger("sisa_ray.serving")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

PREDICT = "/v1/predict"
_JSON = b"application/json"
_FLAGS = {"true": True, "false": False, "1": True, "0": False}


class Http:
    """The ASGI application of a replica.

    Args:
        predictor: answers predictions.
        gate: admits callers.
        audit: remembers them.
        others: what answers every other path.
        task: of the run.
        max_body_bytes: of any request.
        on_answer: told of each prediction: status, rows, seconds.
    """

    def __init__(
        self,
        predictor: Predictor,
        gate: Gate,
        audit: Audit,
        others: Asgi,
        *,
        task: Task,
        max_body_bytes: int,
        on_answer: Callable[[int, int, float], None],
    ) -> None:
        self._predictor = predictor
        self._gate = gate
        self._audit = audit
        self._others = others
        self._task: Task = task
        self._max_body_bytes = max_body_bytes
        self._on_answer = on_answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] != "http":
            return
        elif scope["path"] == scope.get("root_path", "") + PREDICT:
            await self._predict(scope, receive, send)
        else:
            await self._pass_on(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What FastAPI answers; it would read a body of any size."""
        headers = dict(scope["headers"])
        try:
            body = await read_body(receive, headers, self._max_body_bytes)
        except Problem as problem:
            await respond_problem(send, problem, request_id_of(headers))
            return
        is_read = False

        async def receive_again() -> MutableMapping[str, Any]:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._others(scope, receive_again, send)

    async def _predict(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        headers = dict(scope["headers"])
        request_id = request_id_of(headers)
        rows, status, caller = 0, 200, None
        try:
            _check_method(scope["method"])
            caller = self._gate.admit(_text(headers.get(b"authorization")), ("predict",), kind="predict")
            body = await read_body(receive, headers, self._max_body_bytes)
            table, question, media = self._read(headers, scope["query_string"], body)
            rows = table.num_rows
            answer, electorate = await self._predictor.predict(table, question)
            # Nothing is awaited between the look at the lease and the first byte.
            source = self._predictor.source_of(electorate)
            payload = encode(answer, question, source, task=self._task, media=media)
            kind = b"application/json" if media == "json" else ARROW_STREAM.encode()
            await respond(send, 200, payload, kind)
        except Problem as problem:
            status = problem.status
            await respond_problem(send, problem, request_id)
        except CoordinatorAway as error:
            status = 503
            await respond_problem(send, unavailable(str(error)), request_id)
        except SisaError as error:
            status = 503
            logger.warning("request %s: %s", request_id, error)
            await respond_problem(send, unavailable("the models cannot be asked now"), request_id)
        except Exception:
            status = 500
            logger.exception("request %s failed", request_id)
            await respond_problem(
                send, Problem(500, "internal", "an error that is not the caller's"), request_id
            )
        seconds = time.perf_counter() - started
        self._on_answer(status, rows, seconds)
        self._audit.note(
            request=request_id,
            token=caller.token if caller else None,
            name=caller.name if caller else None,
            did="predict",
            rows=rows,
            status=status,
            ms=round(1e3 * seconds, 2),
        )

    def _read(self, headers: dict[bytes, bytes], query: bytes, body: bytes) -> tuple[Any, Question, Media]:
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        reader = self._predictor.rows
        if kind in (_JSON, b""):
            data = parse_json(body)
            if "rows" not in data:
                raise Problem(422, "bad-rows", "rows: is required; send a list of objects, one a row")
            rows = data.pop("rows")
            question = self._predictor.finishers.question(data)
            table = reader.from_json(rows)
        elif kind == ARROW_STREAM.encode():
            question = self._predictor.finishers.question(_options(query))
            table = reader.from_arrow(body)
        else:
            raise Problem(
                415,
                "media-type",
                f"content-type: must be application/json or {ARROW_STREAM}",
                headers={"accept": f"application/json, {ARROW_STREAM}"},
            )
        accept = headers.get(b"accept", b"")
        wants_arrow = ARROW_STREAM.encode() in accept or (
            kind == ARROW_STREAM.encode() and _JSON not in accept
        )
        return table, question, "arrow" if wants_arrow else "json"


def _options(query: bytes) -> dict[str, Any]:
    try:
        pairs = parse_qsl(query.decode(), keep_blank_values=True, max_num_fields=20)
    except (UnicodeDecodeError, ValueError):
        raise Problem(422, "bad-question", "query: is not made of UTF-8 names and values") from None
    return {name: _FLAGS.get(value, value) if name != "aggregation" else value for name, value in pairs}


def request_id_of(headers: dict[bytes, bytes]) -> str:
    """The caller's own id of the request where it is a plain one, else a new one."""
    given = headers.get(b"x-request-id", b"")
    if 0 < len(given) <= 64 and all(c in _PLAIN for c in given):
        return given.decode()
    return secrets.token_hex(8)


_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


async def read_body(receive: Receive, headers: dict[bytes, bytes], max_bytes: int) -> bytes:
    """A request's body.

    Raises:
        Problem: 413 where it is larger than allowed.
    """
    length = headers.get(b"content-length", b"0")
    too_large = Problem(
        413, "body-size", f"body: has more than {max_bytes:,} bytes; send fewer rows at a time"
    )
    if length.isdigit() and int(length) > max_bytes:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Problem(400, "disconnected", "body: ended too early")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            raise too_large
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks) if len(chunks) > 1 else chunks[0]


async def respond(
    send: Send, status: int, body: bytes, kind: bytes, headers: dict[str, str] | None = None
) -> None:
    """Send a whole response."""
    found = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store")]
    if headers:
        found += [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": found})
    await send({"type": "http.response.body", "body": body})


async def respond_problem(send: Send, problem: Problem, request_id: str) -> None:
    """Send a problem."""
    await respond(send, problem.status, problem.body(request_id), MEDIA_TYPE.encode(), problem.headers)


def _check_method(method: str) -> None:
    if method != "POST":
        raise Problem(405, "http", "this path knows POST alone", headers={"allow": "POST"})


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
