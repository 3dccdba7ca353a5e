"""A replica and its coordinator: what it answers from while people are being forgotten."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from sisa_ray.core.config import SisaConfig
from tests.execution.coordinators import running, trained
from tests.serving.services import ROWS, Here, ask, forget, predict, reaches, serving


@pytest.fixture
def config(tmp_path: Path) -> SisaConfig:
    return trained(tmp_path)


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(coroutine)


class TestForgetting:
    def test_is_fenced_answered_from_the_rest_and_rebuilt(self, config: SisaConfig) -> None:
        async def story() -> None:
            with running(config) as one:
                async with serving(config, Here(one)) as service:
                    before = (await predict(service, ROWS)).json
                    assert before["voters"] == before["shards"] == 2
                    name = await forget(service, "p3")
                    row = await reaches(
                        service, name, "fenced", "batched", "rebuilding", "published", "purging", "certified"
                    )
                    assert row["time_to_fence_s"] < 5
                    position = (await predict(service)).json["view"]["position"]
                    assert position > before["view"]["position"]
                    await reaches(service, name, "certified")
                    after = (await predict(service, ROWS)).json
                    assert after["voters"] == 2
                    assert after["view"]["generation"] == before["view"]["generation"] + 1

        run(story())

    def test_old_models_leave_memory_before_the_certificate(self, config: SisaConfig) -> None:
        async def story() -> None:
            with running(config) as one:
                async with serving(config, Here(one)) as service:
                    assert service.keeper.electorate is not None
                    old = weakref.ref(service.keeper.electorate.stack)
                    for _ in range(5):
                        await predict(service)
                    await reaches(service, await forget(service, "p3"), "certified")
                    assert old() is None

        gc.disable()  # nothing may wait for a collection
        try:
            run(story())
        finally:
            gc.enable()


def test_a_service_answers_under_a_route_prefix(config: SisaConfig) -> None:
    async def story() -> None:
        with running(config) as one:
            async with serving(config, Here(one)) as service:
                body = {"rows": ROWS[:1]}
                found = await ask(service.http, "POST", "/v1/predict", body, root_path="/digits")
                assert (found.status, len(found.json["labels"])) == (200, 1)
                found = await ask(service.http, "GET", "/v1/run", root_path="/digits")
                assert (found.status, found.json["num_replicas"]) == (200, 1)

    run(story())
