"""What a real replica answers: the same bits whoever else asks and in whatever form; private mode."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.records import PrivacySpent
from sisa_ray.execution.coordinator import Coordinator
from sisa_ray.learning.arithmetic import applied
from sisa_ray.serving.rows import ARROW_STREAM
from sisa_ray.serving.service import Service
from tests.execution.coordinators import logged, running, trained
from tests.execution.tables import make_table
from tests.serving.services import ROWS, Here, Response, arrow, ask, is_problem, predict, serving

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


class TestBits:
    def test_do_not_depend_on_who_else_asks(self, config: SisaConfig, told: Callable[..., None]) -> None:
        rng = np.random.default_rng(0)
        rows = [{"x": r} for r in make_table(200, seed=7)["x"].to_pylist()]

        bodies = [tuple(rng.integers(0, 200, n).tolist()) for n in (1, 1, 2, 3, 7, 8, 9, 30, 64, 70)]

        async def story(service: Service) -> None:
            async def asked(body: tuple[int, ...]) -> Any:
                chosen = [rows[i] for i in body]
                return (await predict(service, chosen, probabilities=True, aggregation="mean")).json

            with applied(config.arithmetic):
                alone = {body: await asked(body) for body in bodies}
                for _ in range(10):
                    crowd = [bodies[i] for i in rng.integers(0, len(bodies), 24).tolist()]
                    for body, answer in zip(crowd, await asyncio.gather(*map(asked, crowd)), strict=True):
                        assert answer["probabilities"] == alone[body]["probabilities"]
                        assert answer["labels"] == alone[body]["labels"]

        told(story)

    def test_are_the_same_in_json_and_arrow(self, told: Callable[..., None]) -> None:
        table = make_table(100, seed=8).select(["x"])

        async def story(service: Service) -> None:
            plain = (await predict(service, table.to_pylist(), probabilities=True)).json
            answer = await ask(
                service.http,
                "POST",
                "/v1/predict",
                arrow(table),
                headers={"content-type": ARROW_STREAM},
                query="probabilities=true",
            )
            found = pa.ipc.open_stream(answer.body).read_all()
            assert found["labels"].to_pylist() == plain["labels"]
            assert found["probabilities"].to_pylist() == plain["probabilities"]
            assert found["agreement"].to_pylist() == plain["agreement"]
            facts = json.loads(found.schema.metadata[b"sisa_ray"])
            assert facts["voters"] == plain["voters"]
            assert facts["view"]["generation"] == plain["view"]["generation"]
            assert np.allclose(np.sum(plain["probabilities"], axis=1), 1)

        told(story)


class TestPrivateMode:
    def test_spends_a_budget_that_no_restart_gives_back(self, tmp_path: Path) -> None:
        config = trained(tmp_path, serving={"epsilon_per_answer": "1/2", "epsilon_budget": 3})

        async def ask_privately(count: int) -> list[Response]:
            with running(config) as one:
                async with serving(config, Here(one)) as service:
                    return list(
                        await asyncio.gather(
                            *(predict(service, ROWS[:1], private=True) for _ in range(count))
                        )
                    )

        async def story() -> None:
            first = await ask_privately(4)
            assert [a.status for a in first] == [200] * 4
            assert first[0].json.keys() == {"labels", "aggregation", "voters", "shards", "view"}
            # What the first replica had taken and not used is lost with it.
            for answer in await ask_privately(3):
                is_problem(answer, 403, "budget")

        run(story())
        spent = sum(r.num_answers * Fraction(r.epsilon) for _, r in logged(config, PrivacySpent))
        assert spent == 3

    def test_is_refused_without_a_budget(self, told: Callable[..., None]) -> None:
        async def story(service: Service) -> None:
            is_problem(await predict(service, private=True), 403, "budget")

        told(story)
