"""Replicas of small runs in this process: the real coordinator, lease, models and HTTP application, without Ray."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pyarrow as pa

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.errors import SisaError
from sisa_ray.core.leases import boot_time
from sisa_ray.execution.acceptance import Acceptance, Submission
from sisa_ray.execution.coordinator import Coordinator
from sisa_ray.execution.desk import certificate_of, find_request
from sisa_ray.execution.leases import Lease, Renewal
from sisa_ray.execution.results import RequestRow
from sisa_ray.execution.served import ServedRun, describe, spend
from sisa_ray.serving.config import ServeConfig
from sisa_ray.serving.http import Asgi
from sisa_ray.serving.service import Service
from sisa_ray.storage.objects import open_store
from sisa_ray.storage.run import read_spec
from tests.execution.tables import make_table

ROWS = [{"x": row} for row in make_table(20, seed=3)["x"].to_pylist()]


class Here:
    """A coordinator in this process, as replicas know it."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator = coordinator

    async def renew(self, asked: Renewal) -> Lease:
        return await self.coordinator.fence.renew(asked)

    async def leave(self, replica: str) -> None:
        self.coordinator.fence.leave(replica)

    async def submit(self, submissions: Sequence[Submission]) -> list[Acceptance | SisaError]:
        return await asyncio.wrap_future(self.coordinator.submit(submissions))

    async def find_request(self, name: str) -> RequestRow | None:
        return find_request(self.coordinator.run, name)

    async def certificate_of(self, name: str) -> bytes | None:
        return await asyncio.to_thread(certificate_of, self.coordinator.run, name)

    async def describe(self) -> ServedRun:
        return describe(self.coordinator.run, self.coordinator.fence)

    async def spend(self, wanted: int) -> int:
        return await asyncio.to_thread(spend, self.coordinator.run, wanted)

    async def call(self, task: str, **arguments: Any) -> Any:
        return await asyncio.wrap_future(self.coordinator.call(task, arguments))


class Silent:
    """Meters that measure nothing."""

    def on_answer(self, status: int, rows: int, seconds: float) -> None: ...

    def on_pass(self, rows: int, seconds: float) -> None: ...

    def hand_over(self, num_voters: int, generation: int) -> None: ...

    def hand_over_run(self, run: ServedRun) -> None: ...


def new_service(
    config: SisaConfig, coordinator: Any, *, clock: Callable[[], float] = boot_time, **settings: Any
) -> Service:
    store = open_store(config.address)
    spec = read_spec(store)
    assert spec is not None
    return Service(
        ServeConfig.from_mapping(
            {"run": config.address, "authentication": False, "requests_per_s": 10_000, **settings}
        ),
        spec,
        store,
        coordinator,
        audit_log=logging.getLogger("tests.audit"),
        meters=Silent(),
        clock=clock,
    )


@asynccontextmanager
async def serving(
    config: SisaConfig, coordinator: Any, *, clock: Callable[[], float] = boot_time, **settings: Any
) -> AsyncIterator[Service]:
    service = new_service(config, coordinator, clock=clock, **settings)
    try:
        async with asyncio.timeout(30):
            await service.start()
        yield service
    finally:
        await service.stop()


class Response:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def ask(
    app: Asgi,
    method: str,
    path: str,
    body: Any = None,
    *,
    headers: dict[str, str] | None = None,
    query: str = "",
    root_path: str = "",
) -> Response:
    """One HTTP request; ``body`` is JSON unless it is bytes."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    found = {"content-type": "application/json", "content-length": str(len(data)), **(headers or {})}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": root_path + path,
        "raw_path": (root_path + path).encode(),
        "root_path": root_path,
        "scheme": "http",
        "query_string": query.encode(),
        "headers": [(k.lower().encode(), v.encode()) for k, v in found.items() if v],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }
    sent: list[Any] = []
    received = iter([{"type": "http.request", "body": data, "more_body": False}])

    async def receive() -> Any:
        return next(received, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start = sent[0]
    return Response(
        start["status"],
        {k.decode().lower(): v.decode() for k, v in start["headers"]},
        b"".join(m.get("body", b"") for m in sent[1:]),
    )


async def predict(service: Service, rows: Sequence[Any] = ROWS[:1], **options: Any) -> Response:
    return await ask(service.http, "POST", "/v1/predict", {"rows": list(rows), **options})


async def forget(service: Service, *people: str) -> str:
    """File a request; its id."""
    filed = await ask(service.http, "POST", "/v1/unlearning-requests", {"subjects": list(people)})
    assert filed.status == 202, filed.body
    name: str = filed.json["id"]
    return name


async def follow(service: Service, name: str) -> Any:
    found = await ask(service.http, "GET", f"/v1/unlearning-requests/{name}")
    assert found.status == 200, found.body
    return found.json


async def reaches(service: Service, name: str, *states: str, within_s: float = 30.0) -> Any:
    async with asyncio.timeout(within_s):
        while (row := await follow(service, name))["state"] not in states:
            await asyncio.sleep(0.01)
    return row


def arrow(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def is_problem(answer: Response, status: int, *words: str) -> None:
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json
    assert document["status"] == status
    assert document.keys() >= {"type", "title", "detail", "instance"}
    for word in words:
        assert word in document["detail"], document
