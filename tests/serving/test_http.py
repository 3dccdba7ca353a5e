"""The HTTP interface of a real replica: bad input, tokens, limits, bits, private mode."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sisa_ray.core.bearer import Role
from sisa_ray.core.config import SisaConfig
from sisa_ray.core.tokens import Tokens
from sisa_ray.execution.coordinator import Coordinator
from sisa_ray.serving.rows import ARROW_STREAM
from sisa_ray.serving.service import Service
from tests.execution.coordinators import running, trained
from tests.execution.tables import make_table
from tests.serving.services import (
    ROWS,
    Here,
    Response,
    arrow,
    ask,
    forget,
    is_problem,
    predict,
    reaches,
    serving,
)

Story = Callable[[Service], Awaitable[None]]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SisaConfig:
    return trained(tmp_path_factory.mktemp("http"))


@pytest.fixture(scope="module")
def one(config: SisaConfig) -> Iterator[Coordinator]:
    with running(config) as coordinator:
        yield coordinator


@pytest.fixture
def told(config: SisaConfig, one: Coordinator) -> Callable[..., None]:
    """Run a story with a replica."""

    def tell(story: Story, **settings: Any) -> None:
        async def whole() -> None:
            async with serving(config, Here(one), **settings) as service:
                await story(service)

        run(whole())

    return tell


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(coroutine)


BAD_BODIES: list[tuple[str, bytes, int, str]] = [
    ("empty", b"", 400, "JSON"),
    ("no JSON", b"{", 400, "JSON"),
    ("no UTF-8", b'{"rows": "\xff"}', 400, "JSON"),
    ("NaN", b'{"rows": [{"x": [NaN,0,0,0,0,0,0,0]}]}', 400, "JSON"),
    ("deep", b"[" * 100_000 + b"]" * 100_000, 400, "JSON"),
    ("no object", b"[]", 422, "object"),
    ("no rows", b"{}", 422, "rows"),
    ("rows no list", b'{"rows": {}}', 422, "rows"),
    ("empty rows", b'{"rows": []}', 422, "at least one row"),
    ("row no object", b'{"rows": [1]}', 422, "rows[0]"),
    ("missing column", b'{"rows": [{}]}', 422, "rows[0].x"),
    ("other column", b'{"rows": [{"x": [0,0,0,0,0,0,0,0], "secret": 1}]}', 422, "rows[0]"),
    ("too short", b'{"rows": [{"x": [1,2]}]}', 422, "list of 8"),
    ("wrong type", b'{"rows": [{"x": "annabel"}]}', 422, "rows[0].x"),
    ("wrong element", b'{"rows": [{"x": [0,0,0,0,0,0,0,"annabel"]}]}', 422, "rows[0].x"),
    ("true", b'{"rows": [{"x": true}]}', 422, "rows[0].x"),
    ("null", b'{"rows": [{"x": null}]}', 422, "null"),
    ("null element", b'{"rows": [{"x": [0,0,0,0,0,0,0,null]}]}', 422, "rows[0].x"),
    ("infinite", b'{"rows": [{"x": [1e999,0,0,0,0,0,0,0]}]}', 422, "finite"),
    ("second row", b'{"rows": [{"x": [0,0,0,0,0,0,0,0]}, {"x": []}]}', 422, "rows[1].x"),
    ("unknown option", b'{"rows": [{"x": [0,0,0,0,0,0,0,0]}], "annabel": 1}', 422, "keys other than"),
    ("bad rule", b'{"rows": [{"x": [0,0,0,0,0,0,0,0]}], "aggregation": "median"}', 422, "aggregation"),
    ("rule no text", b'{"rows": [{"x": [0,0,0,0,0,0,0,0]}], "aggregation": 1}', 422, "aggregation"),
    ("flag no flag", b'{"rows": [{"x": [0,0,0,0,0,0,0,0]}], "probabilities": 1}', 422, "probabilities"),
    (
        "private mean",
        b'{"rows": [{"x": [0,0,0,0,0,0,0,0]}], "private": true, "aggregation": "mean"}',
        422,
        "private",
    ),
]


class TestPredictionsOfBadInput:
    def test_name_what_is_wrong_and_repeat_nothing(
        self, told: Callable[..., None], caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "sisa_ray")

        async def story(service: Service) -> None:
            for name, body, status, word in BAD_BODIES:
                answer = await ask(service.http, "POST", "/v1/predict", body)
                assert b"annabel" not in answer.body, name
                is_problem(answer, status, word)
            assert (await predict(service)).status == 200

        told(story)
        assert not any("annabel" in r.getMessage() for r in caplog.records)

    def test_as_arrow(self, told: Callable[..., None]) -> None:
        x = make_table(3)["x"]
        nan = pa.FixedSizeListArray.from_arrays(pa.array([float("nan")] * 8, pa.float32()), 8)
        bad = {
            "garbage": (b"annabel" * 10, "Arrow"),
            "nothing": (b"", "Arrow"),
            "cut": (arrow(pa.table({"x": x}))[:100], "Arrow"),
            "other columns": (arrow(pa.table({"y": [1]})), "no column 'x'"),
            "no rows": (arrow(pa.table({"x": x}).slice(0, 0)), "at least one row"),
            "text": (arrow(pa.table({"x": ["annabel"]})), "columns cannot be read"),
            "NaN": (arrow(pa.table({"x": nan})), "finite"),
            "null": (arrow(pa.table({"x": pa.array([None], x.type)})), "null"),
        }

        async def story(service: Service) -> None:
            for body, words in bad.values():
                answer = await ask(
                    service.http, "POST", "/v1/predict", body, headers={"content-type": ARROW_STREAM}
                )
                assert b"annabel" not in answer.body
                is_problem(answer, 422, words)
            is_problem(
                await ask(
                    service.http,
                    "POST",
                    "/v1/predict",
                    arrow(pa.table({"x": x})),
                    headers={"content-type": ARROW_STREAM},
                    query="probabilities=perhaps",
                ),
                422,
                "probabilities",
            )

        told(story)

    def test_of_other_kinds_and_sizes(self, told: Callable[..., None]) -> None:
        async def story(service: Service) -> None:
            text = await ask(service.http, "POST", "/v1/predict", b"x", headers={"content-type": "text/csv"})
            is_problem(text, 415, "application/json")
            is_problem(await predict(service, ROWS[:11]), 413, "11")
            large = json.dumps({"rows": [{"x": [0.123456789] * 8}] * 100}).encode()
            is_problem(await ask(service.http, "POST", "/v1/predict", large), 413, "bytes")
            hidden = await ask(service.http, "POST", "/v1/predict", large, headers={"content-length": ""})
            is_problem(hidden, 413, "bytes")
            people = {"subjects": ["p" * 100] * 100}
            is_problem(await ask(service.http, "POST", "/v1/unlearning-requests", people), 413, "bytes")
            is_problem(await ask(service.http, "GET", "/v1/predict"), 405)
            is_problem(await ask(service.http, "GET", "/v1/annabel"), 404)

        told(story, max_rows=10, max_body_bytes=2000)


class TestRequestsOfBadInput:
    def test_are_refused_and_nothing_changes(
        self, told: Callable[..., None], one: Coordinator, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        future = (datetime.now(UTC) + timedelta(days=1)).isoformat()
        subjects: list[tuple[Any, int, str]] = [
            ([], 422, "subjects"),
            (["annabel", ""], 422, "row 1"),
            ([None], 422, "subjects"),
            ([1.5], 422, "subjects"),
            ([True], 422, "subjects"),
            (["annabel" * 1000], 422, "row 0"),
            ("annabel", 422, "subjects"),
            (["p1"] * 11, 413, "at most 10"),
        ]
        bodies = [({"subjects": s}, status, word) for s, status, word in subjects] + [
            ({"subjects": ["p1"], "received_at": future}, 422, "future"),
            ({"subjects": ["p1"], "received_at": "2026-01-01T00:00:00"}, 422, "time zone"),
            ({"subjects": ["p1"], "received_at": "annabel"}, 422, "received_at"),
            ({"subjects": ["p1"], "basis": "annabel"}, 422, "basis"),
            ({"subjects": ["p1"], "surprise": 1}, 422, "surprise"),
            ({}, 422, "subjects"),
            ([], 422, ""),
        ]

        async def story(service: Service) -> None:
            before = one.run.head
            path = "/v1/unlearning-requests"
            for body, status, word in bodies:
                answer = await ask(service.http, "POST", path, body)
                assert b"annabel" not in answer.body
                is_problem(answer, status, word)
            is_problem(await ask(service.http, "POST", path, b'{"subjects": ["annabel'), 400, "JSON")
            is_problem(await ask(service.http, "POST", path, b'{"subjects": ["\\ud800"]}'), 422)
            csv = await ask(service.http, "POST", path, b"annabel", headers={"content-type": "text/csv"})
            is_problem(csv, 415)
            is_problem(await ask(service.http, "GET", f"{path}/{'0' * 32}"), 404)
            is_problem(await ask(service.http, "GET", f"{path}/{'0' * 32}/certificate"), 404)
            is_problem(
                await ask(service.http, "POST", f"{path}/{'0' * 32}/rejection", {"reason": "withdrawn"}), 404
            )
            assert one.run.head == before

        told(story, max_subjects=10)
        assert not any("annabel" in r.getMessage() for r in caplog.records)

    def test_an_idempotency_key_stands_for_one_request(self, told: Callable[..., None]) -> None:
        async def story(service: Service) -> None:
            async def file(*people: str) -> Response:
                return await ask(
                    service.http,
                    "POST",
                    "/v1/unlearning-requests",
                    {"subjects": list(people)},
                    headers={"idempotency-key": "ticket"},
                )

            first, again, other = await file("p30"), await file("p30"), await file("p31")
            assert (first.status, again.status) == (202, 200)
            assert first.json["id"] == again.json["id"]
            assert first.headers["location"] == f"/v1/unlearning-requests/{first.json['id']}"
            is_problem(other, 409, "idempotency_key")
            row = await reaches(service, first.json["id"], "certified")
            assert row["time_to_erase_s"] >= row["time_to_fence_s"] >= 0
            path = f"/v1/unlearning-requests/{first.json['id']}"
            certificate = await ask(service.http, "GET", f"{path}/certificate")
            assert certificate.json["run"]["name"] == "run" if "name" in certificate.json["run"] else True
            rejected = await ask(service.http, "POST", f"{path}/rejection", {"reason": "withdrawn"})
            is_problem(rejected, 409)

        told(story)


PATHS: list[tuple[str, str, tuple[Role, ...]]] = [
    ("POST", "/v1/predict", ("predict",)),
    ("POST", "/v1/unlearning-requests", ("request", "operate")),
    ("GET", "/v1/unlearning-requests/x", ("request", "operate", "read")),
    ("GET", "/v1/unlearning-requests/x/certificate", ("request", "operate", "read")),
    ("POST", "/v1/unlearning-requests/x/extension", ("operate",)),
    ("POST", "/v1/unlearning-requests/x/rejection", ("operate",)),
    ("GET", "/v1/run", ("operate", "read")),
]


class TestTokens:
    def test_every_path_asks_for_a_role(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "sisa_ray")
        config = trained(tmp_path)
        known = Tokens()
        bearers = {}
        now = datetime.now(UTC)
        roles: tuple[Role, ...] = ("predict", "request", "operate", "read")
        for role in roles:
            issued = known.create(
                name=f"only-{role}", roles=[role], now=now, lifetime=None, random_bytes=secrets.token_bytes
            )
            known, bearers[role] = issued.tokens, issued.bearer
        expired = known.create(
            name="old",
            roles=roles,
            now=now - timedelta(days=2),
            lifetime=timedelta(days=1),
            random_bytes=secrets.token_bytes,
        )
        known = expired.tokens
        there = [known]

        async def story() -> None:
            with running(config, tokens=lambda: there[0]) as one:
                async with serving(config, Here(one), authentication=True) as service:
                    for method, path, allowed in PATHS:
                        for headers, words in (
                            ({}, "required"),
                            ({"authorization": "Basic eDp5"}, "required"),
                            ({"authorization": "Bearer sisa_00000000_annabel"}, "not valid"),
                            ({"authorization": f"Bearer {bearers['read'][:-2]}xx"}, "not valid"),
                            ({"authorization": f"Bearer {expired.bearer}"}, "expired"),
                        ):
                            refused = await ask(service.http, method, path, {}, headers=headers)
                            is_problem(refused, 401, words)
                            assert refused.headers["www-authenticate"].startswith("Bearer")
                        for role, bearer in bearers.items():
                            headers = {"authorization": f"Bearer {bearer}"}
                            answer = await ask(service.http, method, path, {}, headers=headers)
                            assert (answer.status == 403) == (role not in allowed), (path, role, answer.body)
                            assert answer.status != 401
                    for path in ("/healthz", "/readyz", "/openapi.json"):
                        assert (await ask(service.http, "GET", path)).status == 200
                    # A token that is revoked opens nothing any more, without a restart.
                    there[0] = Tokens()
                    headers = {"authorization": f"Bearer {bearers['read']}"}
                    async with asyncio.timeout(10):
                        while (await ask(service.http, "GET", "/v1/run", headers=headers)).status != 401:
                            await asyncio.sleep(0.02)

        run(story())
        text = "\n".join(r.getMessage() for r in caplog.records)
        assert not any(bearer[15:] in text for bearer in bearers.values())


class TestLimits:
    def test_a_caller_that_asks_too_often_waits(self, told: Callable[..., None]) -> None:
        async def story(service: Service) -> None:
            statuses = [(await ask(service.http, "GET", "/v1/run")).status for _ in range(10)]
            assert 200 in statuses
            last = await ask(service.http, "GET", "/v1/run")
            is_problem(last, 429)
            assert int(last.headers["retry-after"]) >= 1
            assert (await predict(service)).status == 200

        told(story, requests_per_s=1.0)


class TestAudit:
    def test_says_who_asked_what_and_names_nobody(
        self, told: Callable[..., None], caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "tests.audit")

        async def story(service: Service) -> None:
            await predict(service, ROWS[:3])
            await forget(service, "annabel-lee")

        told(story)
        messages = [r.getMessage() for r in caplog.records if r.name == "tests.audit"]
        lines = [json.loads(line) for message in messages for line in message.splitlines()]
        told_of = sorted((line["did"], line["status"], line.get("rows", 0)) for line in lines)
        assert told_of == [("file", 202, 0), ("predict", 200, 3)]
        assert all({"at", "request", "token", "name"} <= x.keys() for x in lines)
        assert "annabel" not in caplog.text
