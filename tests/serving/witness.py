"""Watches what a replica hands out, and tells from the log alone whose records those models were trained on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.records import BatchPlanned, RequestsFenced, SlicesRewritten, StageBuilt
from sisa_ray.core.view import Voter
from sisa_ray.execution.coordinator import Coordinator
from sisa_ray.execution.forget import places_of
from sisa_ray.serving.answers import Source
from sisa_ray.serving.electorate import Electorate
from sisa_ray.serving.passes import Answer, Passes
from sisa_ray.serving.service import Service
from tests.execution.coordinators import logged
from tests.serving.services import Response, predict


@dataclass(frozen=True, kw_only=True)
class Handed:
    """An answer, and the requests that were fenced when it was handed out."""

    voters: tuple[Voter, ...]
    generation: int
    position: int
    fenced: frozenset[str]


@dataclass(kw_only=True)
class Witness:
    config: SisaConfig
    coordinator: Coordinator
    handed: list[Handed] = field(default_factory=list)
    places: dict[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    """Of each request, where its people's records were."""
    responses: list[Response] = field(default_factory=list)

    def watch(self, service: Service) -> None:
        say = service.predictor.source_of

        def source_of(electorate: Electorate) -> Source:
            fenced = self.fenced()  # before the look at the lease
            source = say(electorate)
            self.handed.append(
                Handed(
                    voters=electorate.voters,
                    generation=electorate.generation,
                    position=source.position,
                    fenced=fenced,
                )
            )
            return source

        service.predictor.source_of = source_of  # type: ignore[method-assign]

    def note(self, name: str) -> None:
        """Before the request is done with."""
        self.places.update(places_of(self.coordinator.run, [name]))

    def fenced(self) -> frozenset[str]:
        run = self.coordinator.run
        with run.lock:
            known = (*run.state.requests.values(), *run.state.closed_requests.values())
            return frozenset(r.request for r in known if r.fenced_at is not None)

    def stale(self) -> list[Handed]:
        """What was handed out of models that knew somebody whose request was fenced by then."""
        built = {record.ref.path: seq for seq, record in logged(self.config, StageBuilt)}
        batch_of = {
            name: record.batch for _, record in logged(self.config, BatchPlanned) for name in record.requests
        }
        erased = {record.batch: seq for seq, record in logged(self.config, SlicesRewritten)}

        def knew(voter: Voter, name: str) -> bool:
            is_before = built[voter.ref.path] < erased.get(batch_of.get(name, ""), 10**9)
            return is_before and any(
                voter.ref.shard == shard and voter.ref.stage >= slice_ for shard, slice_ in self.places[name]
            )

        return [
            h
            for h in self.handed
            if any(knew(v, name) for v in h.voters for name in h.fenced & {*self.places})
        ]

    def check(self) -> None:
        """The promise, for everything that was handed out; and each answer is of one generation and in order."""
        assert self.handed
        assert not self.stale()
        accepted = {name: self._seq(name) for name in self.places}
        for handed in self.handed:
            assert all(handed.position >= accepted[name] for name in handed.fenced & {*self.places})
        assert sorted(h.generation for h in self.handed) == [h.generation for h in self.handed]

    def _seq(self, name: str) -> int:
        request = self.coordinator.run.state.find_request(name)
        assert request is not None
        return request.seq

    def was_fenced(self, name: str) -> bool:
        return any(name in record.requests for _, record in logged(self.config, RequestsFenced))

    @asynccontextmanager
    async def asking(self, services: Iterable[Service], count: int = 3) -> AsyncIterator[None]:
        """Some who ask all the time."""
        is_over = asyncio.Event()

        async def caller(service: Service) -> None:
            while not is_over.is_set():
                self.responses.append(await predict(service))
                await asyncio.sleep(0.002)

        tasks = [asyncio.create_task(caller(service)) for service in services for _ in range(count)]
        try:
            yield
        finally:
            is_over.set()
            await asyncio.gather(*tasks)


class Holding:
    """Keeps answers back between the pass and the look at the lease."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.is_open = asyncio.Event()
        self.num_held = 0
        plain = Passes.ask

        async def ask(passes: Passes, *args: object) -> tuple[Answer, Electorate]:
            found: tuple[Answer, Electorate] = await plain(passes, *args)  # type: ignore[arg-type]
            if not self.is_open.is_set():
                self.num_held += 1
                await self.is_open.wait()
            return found

        patch.setattr(Passes, "ask", ask)


async def until(condition: Callable[[], object], within_s: float = 30.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


async def within(awaitable: Awaitable[Response], seconds: float = 30.0) -> Response:
    async with asyncio.timeout(seconds):
        return await awaitable
