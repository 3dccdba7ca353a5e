"""What a replica hands out while people are forgotten one after the other, and while its parts are slow or fail."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, get_args

import pytest

from sisa_ray.core.config import FencePolicy
from sisa_ray.core.errors import IntegrityError
from sisa_ray.core.leases import LeaseHolder, boot_time
from sisa_ray.core.view import View
from sisa_ray.execution.leases import Lease, Renewal
from sisa_ray.serving.electorate import Electorate, ModelLoader
from sisa_ray.serving.service import Service
from tests.execution.coordinators import running, trained
from tests.serving.services import Here, forget, predict, reaches, serving
from tests.serving.witness import Holding, Witness, until, within

POLICIES: tuple[FencePolicy, ...] = get_args(FencePolicy)
Story = Callable[[Service, Witness, Here], Coroutine[Any, Any, None]]


class Cut(Here):
    """The way to the coordinator, which can be cut."""

    is_cut = False
    asked: list[Renewal]

    async def renew(self, asked: Renewal) -> Lease:
        self.__dict__.setdefault("asked", []).append(asked)
        lease = await super().renew(asked)
        while self.is_cut:
            await asyncio.sleep(0.01)
        return lease


def tell(directory: Path, story: Story, *, fence: str = "rollback", **settings: Any) -> None:
    config = trained(directory, serving={"fence": fence, "lease_s": 1})

    async def told() -> None:
        with running(config) as one:
            here = Cut(one)
            async with serving(config, here, **settings) as service:
                witness = Witness(config=config, coordinator=one)
                witness.watch(service)
                await story(service, witness, here)

    asyncio.run(told())


async def forgotten(service: Service, witness: Witness, person: str) -> str:
    """Somebody whose request is accepted; its id."""
    name = await forget(service, person)
    witness.note(name)
    return name


@pytest.mark.parametrize("policy", POLICIES)
def test_every_question_is_answered_and_nobody_fenced_is_in_any_answer(
    tmp_path: Path, policy: FencePolicy
) -> None:
    async def story(service: Service, witness: Witness, here: Here) -> None:
        async with witness.asking([service]):
            for person in ("p3", "p11", "p26"):
                name = await forgotten(service, witness, person)
                await reaches(service, name, "certified")
        assert {r.status for r in witness.responses} == {200}
        assert all(witness.was_fenced(name) for name in witness.places)
        assert {h.generation for h in witness.handed} == {1, 2, 3, 4}
        witness.check()

    tell(tmp_path, story, fence=policy)


@pytest.mark.parametrize("policy", POLICIES)
def test_an_answer_that_waits_to_be_handed_out_is_made_anew(
    tmp_path: Path, policy: FencePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(service: Service, witness: Witness, here: Here) -> None:
        held = Holding(monkeypatch)
        answer = asyncio.create_task(predict(service))
        await until(lambda: held.num_held)
        name = await forgotten(service, witness, "p3")
        await until(lambda: name in witness.fenced())
        held.is_open.set()
        assert (await within(answer)).status == 200
        witness.check()

    tell(tmp_path, story, fence=policy)


def test_without_a_look_at_the_electorate_it_would_be_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(service: Service, witness: Witness, here: Here) -> None:
        held = Holding(monkeypatch)
        answer = asyncio.create_task(predict(service))
        await until(lambda: held.num_held)
        name = await forgotten(service, witness, "p3")
        await until(lambda: name in witness.fenced())
        monkeypatch.setattr(LeaseHolder, "is_clean", lambda *_: True)
        held.is_open.set()
        assert (await within(answer)).status == 200
        assert witness.stale()

    tell(tmp_path, story)


@pytest.mark.parametrize("is_broken", [False, True])
def test_a_replica_that_is_cut_off_hands_out_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_broken: bool
) -> None:
    """``is_broken``: with leases that never run out the same story ends with a stale answer."""

    async def story(service: Service, witness: Witness, here: Here) -> None:
        assert isinstance(here, Cut)
        held = Holding(monkeypatch)
        answer = asyncio.create_task(predict(service))
        await until(lambda: held.num_held)
        here.is_cut = True
        if is_broken:
            monkeypatch.setattr(LeaseHolder, "is_valid", lambda *_: True)
        started = boot_time()
        name = await forgotten(service, witness, "p3") if is_broken else await accepted(here, witness)
        await until(lambda: name in witness.fenced())
        assert boot_time() - started < 1.5
        held.is_open.set()
        response = await within(answer)
        if is_broken:
            assert response.status == 200
            assert witness.stale()
            return
        assert response.status == 503
        assert not witness.handed
        here.is_cut = False
        await until(lambda: service.keeper.is_serving)
        assert (await predict(service)).status == 200
        witness.check()

    tell(tmp_path, story)


async def accepted(here: Here, witness: Witness) -> str:
    from tests.execution.coordinators import ask, names

    (name,) = names(await here.submit([ask("p3")]))
    witness.note(name)
    return name


def test_a_clock_that_jumps_between_pass_and_hand_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a machine was suspended."""
    jump = [0.0]

    async def story(service: Service, witness: Witness, here: Here) -> None:
        held = Holding(monkeypatch)
        answer = asyncio.create_task(predict(service))
        await until(lambda: held.num_held)
        jump[0] = 2.0
        held.is_open.set()
        assert (await within(answer)).status == 503
        assert not witness.handed
        await until(lambda: service.keeper.is_serving)
        assert (await predict(service)).status == 200

    tell(tmp_path, story, clock=lambda: boot_time() + jump[0])


class Loads:
    """Loading, which can be kept waiting, or fail."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.may_go = threading.Event()
        self.may_go.set()
        self.num_waiting = 0
        self.num_to_fail = 0
        plain = ModelLoader.load

        def load(loader: ModelLoader, view: View, before: Electorate | None) -> Electorate:
            self.num_waiting += 1
            assert self.may_go.wait(30)
            if self.num_to_fail:
                self.num_to_fail -= 1
                raise IntegrityError("checkpoints/…: is gone")
            return plain(loader, view, before)

        patch.setattr(ModelLoader, "load", load)


def test_the_rest_answers_while_the_fallback_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = Loads(monkeypatch)

    async def story(service: Service, witness: Witness, here: Here) -> None:
        loads.may_go.clear()
        loads.num_waiting = 0
        name = await forgotten(service, witness, "p3")
        await until(lambda: name in witness.fenced())
        for _ in range(5):
            response = await predict(service)
            assert response.json["voters"] == 1
        # Another one, while the view from before is still being loaded: whom that one fenced does not come back.
        await until(lambda: loads.num_waiting)
        for person in ("p11", "p26", "p7"):
            later = await forgotten(service, witness, person)
            await until(lambda name=later: name in witness.fenced())  # type: ignore[misc]
        async with witness.asking([service]):
            loads.may_go.set()
            await reaches(service, later, "certified")
        assert (await predict(service)).json["voters"] == 2
        witness.check()

    tell(tmp_path, story)


def test_a_view_that_cannot_be_loaded_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = Loads(monkeypatch)

    async def story(service: Service, witness: Witness, here: Here) -> None:
        assert isinstance(here, Cut)
        loads.num_to_fail = 2
        async with witness.asking([service]):
            name = await forgotten(service, witness, "p3")
            await reaches(service, name, "certified")
            await until(lambda: {h.generation for h in witness.handed} == {1, 2})
        assert not loads.num_to_fail
        assert any(asked.seen == -1 and asked.position > 0 for asked in here.asked)
        assert {r.status for r in witness.responses} == {200}
        witness.check()

    tell(tmp_path, story)


def test_memory_returns_to_what_it_was(tmp_path: Path) -> None:
    async def story(service: Service, witness: Witness, here: Here) -> None:
        stacks: weakref.WeakSet[Any] = weakref.WeakSet()
        for person in ("p3", "p11", "p26"):
            assert service.keeper.electorate is not None
            stacks.add(service.keeper.electorate.stack)
            async with witness.asking([service]):
                await reaches(service, await forgotten(service, witness, person), "certified")
        assert service.keeper.electorate is not None
        stacks.add(service.keeper.electorate.stack)
        await until(lambda: len(stacks) == 1, 5)

    tell(tmp_path, story)


def test_whoever_has_left_hands_out_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(service: Service, witness: Witness, here: Here) -> None:
        held = Holding(monkeypatch)
        answer = asyncio.create_task(predict(service))
        await until(lambda: held.num_held)
        await service.stop()
        name = await accepted(here, witness)
        await until(lambda: name in witness.fenced())
        held.is_open.set()
        assert (await within(answer)).status == 503
        assert not witness.handed

    tell(tmp_path, story)


def test_what_is_kept_until_rebuilt_is_fenced_once_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = Loads(monkeypatch)

    async def story(service: Service, witness: Witness, here: Here) -> None:
        loads.may_go.clear()
        name = await forgotten(service, witness, "p3")
        async with witness.asking([service]):
            await reaches(service, name, "published", "purging")
            await asyncio.sleep(1.5)  # longer than a lease
            assert name not in witness.fenced()
            loads.may_go.set()
            await reaches(service, name, "certified")
        assert {r.status for r in witness.responses} == {200}
        witness.check()

    tell(tmp_path, story, fence="keep-until-rebuilt")
