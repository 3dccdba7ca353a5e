"""The fence of a coordinator, asked by replicas that are nothing but their questions."""

from __future__ import annotations

import asyncio
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.errors import ConfigError
from sisa_ray.core.records import BatchCertified, BatchClosed, RequestsFenced, ServingClosed, ServingOpened
from sisa_ray.core.tokens import Tokens
from sisa_ray.execution import commands, hosting
from sisa_ray.execution.coordinator import Coordinator
from sisa_ray.execution.forget import places_of
from sisa_ray.execution.leases import Lease, Renewal, longest_s
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.served import spend
from tests.execution.coordinators import ask, eventually, logged, names, running, trained
from tests.support.inline import InlineWorkers

LEASE_S = 1.0


@pytest.fixture
def config(tmp_path: Path) -> SisaConfig:
    return trained(tmp_path, serving={"lease_s": LEASE_S, "epsilon_budget": 1, "epsilon_per_answer": "1/10"})


def question(position: int = -1, voting: int = -1, **changes: Any) -> Renewal:
    given = {"replica": "a", "version": voting, "seen": voting, **changes}
    return Renewal(position=position, voting=voting, **given)


async def lease_of(one: Coordinator, replica: str = "a") -> Lease:
    """Ask until there is a lease, as a replica does that has loaded what it was shown."""
    asked, version = question(replica=replica), -1
    async with asyncio.timeout(20):
        while (lease := await one.fence.renew(asked)).lasts_s == 0:
            version = version if lease.view is None else lease.view.version
            asked = question(lease.position, version, replica=replica)
    return lease


def is_fenced(one: Coordinator, name: str) -> bool:
    request = one.run.state.find_request(name)
    return request is not None and request.fenced_at is not None


def accepted(one: Coordinator, person: str = "p3") -> str:
    (name,) = names(one.submit([ask(person)]).result(30))
    return name


def test_the_log_says_so_before_there_is_a_lease_and_after_there_is_none(config: SisaConfig) -> None:
    with running(config) as one:
        assert not logged(config, ServingOpened)
        lease = asyncio.run(lease_of(one))
        assert 0 < lease.lasts_s <= LEASE_S
        assert len(logged(config, ServingOpened)) == 1
        one.fence.leave("a")
        assert not one.fence.num_replicas
        eventually(lambda: logged(config, ServingClosed), 10 * LEASE_S)


def test_whoever_never_acknowledges_delays_the_fence_by_its_lease_at_most(config: SisaConfig) -> None:
    with running(config) as one:
        lease = asyncio.run(lease_of(one))
        granted_at = time.monotonic()
        name = accepted(one)
        eventually(lambda: is_fenced(one, name))
        waited_s = time.monotonic() - granted_at
        assert lease.lasts_s - 0.05 < waited_s < LEASE_S + 1


def test_a_successor_waits_for_the_leases_of_its_predecessor(config: SisaConfig) -> None:
    with running(config) as one:
        asyncio.run(lease_of(one))
    started = time.monotonic()
    with running(config) as one:
        name = accepted(one)
        eventually(lambda: is_fenced(one, name))
        assert time.monotonic() - started > longest_s(LEASE_S)


def test_a_session_without_replicas_waits_and_closes(config: SisaConfig) -> None:
    with running(config) as one:
        asyncio.run(lease_of(one))
    started = time.monotonic()
    commands.unlearn(config, subjects=["p3"], new_workers=InlineWorkers)
    assert time.monotonic() - started > longest_s(LEASE_S)
    ((closed_at, _),) = logged(config, ServingClosed)
    ((fenced_at, _),) = logged(config, RequestsFenced)
    assert closed_at < fenced_at


def test_a_question_that_was_overtaken_gets_no_lease(config: SisaConfig) -> None:
    async def story(one: Coordinator) -> None:
        lease = await lease_of(one)
        version = one.fence.view.version if one.fence.view else -1
        asked = question(lease.position, version, tokens=Tokens().digest)
        first = asyncio.create_task(one.fence.renew(asked))
        await asyncio.sleep(0.01)
        second = await one.fence.renew(asked)
        assert (await first).lasts_s == 0
        assert second.lasts_s > 0

    with running(config) as one:
        asyncio.run(story(one))


def test_whoever_votes_by_an_unknown_view_drops_what_the_latest_has_not(config: SisaConfig) -> None:
    async def story(one: Coordinator) -> None:
        await lease_of(one)
        lease = await one.fence.renew(question(0, 1))
        assert lease.drop is None
        assert lease.view == one.fence.view
        assert lease.lasts_s == 0

    with running(config) as one:
        asyncio.run(story(one))


def test_whoever_was_superseded_grants_nothing_for_long(config: SisaConfig) -> None:
    with running(config) as one:
        lease = asyncio.run(lease_of(one))
        fence, version = one.fence, one.fence.view.version if one.fence.view else -1
        with running(config):
            asyncio.run(asyncio.sleep(longest_s(LEASE_S)))
            assert asyncio.run(fence.renew(question(lease.position, version))).lasts_s == 0


def test_a_broken_file_of_tokens_keeps_those_that_are_known(config: SisaConfig) -> None:
    is_broken = False

    def tokens() -> Tokens:
        if is_broken:
            raise ConfigError("tokens: cannot be read")
        return Tokens()

    one = Coordinator(config.address, tasks=hosting.TASKS, new_workers=InlineWorkers, tokens=tokens)
    one.start()
    try:
        asyncio.run(lease_of(one))
        is_broken = True
        time.sleep(LEASE_S)
        assert asyncio.run(lease_of(one)).lasts_s > 0
    finally:
        one.stop()


def test_what_answers_in_private_mode_cost_is_durable(config: SisaConfig) -> None:
    run = existing_run(config)
    assert [spend(run, 7), spend(run, 7), spend(run, 1)] == [7, 3, 0]
    assert Fraction(existing_run(config).state.epsilon_spent) == 1
    assert spend(existing_run(config), 1) == 0


def test_a_certificate_waits_until_the_old_models_have_left_memory(config: SisaConfig) -> None:
    async def story(one: Coordinator) -> None:
        lease = await lease_of(one)
        assert one.fence.view is not None
        old = one.fence.view.version
        (name,) = [await asyncio.to_thread(accepted, one)]
        # It has acknowledged every view, and still has models of the first one in memory.
        until = asyncio.get_running_loop().time() + 3 * LEASE_S
        while asyncio.get_running_loop().time() < until:
            voting = one.fence.view.version
            lease = await one.fence.renew(question(lease.position, voting, version=old))
        assert is_fenced(one, name)
        assert logged(config, BatchClosed)
        assert not logged(config, BatchCertified)
        while not logged(config, BatchCertified):
            voting = one.fence.view.version
            lease = await one.fence.renew(question(lease.position, voting))

    with running(config) as one:
        asyncio.run(asyncio.wait_for(story(one), 30))


def test_one_that_is_slow_holds_up_the_fence_for_all(config: SisaConfig) -> None:
    async def story(one: Coordinator) -> None:
        slow, fast = await lease_of(one, "slow"), await lease_of(one, "fast")
        assert one.fence.view is not None
        first = one.fence.view.version
        (name,) = [await asyncio.to_thread(accepted, one)]
        while one.fence.view.version == first:
            await asyncio.sleep(0.01)
        for _ in range(5):
            voting = one.fence.view.version
            fast = await one.fence.renew(question(fast.position, voting, replica="fast"))
        assert not is_fenced(one, name)
        late = await one.fence.renew(question(slow.position, first, replica="slow"))
        assert late.drop == frozenset(where[0] for where in places_of(one.run, [name])[name])
        await one.fence.renew(question(late.position, first, replica="slow", seen=one.fence.view.version))
        async with asyncio.timeout(LEASE_S / 2):
            while not is_fenced(one, name):
                await asyncio.sleep(0.01)

    with running(config) as one:
        asyncio.run(asyncio.wait_for(story(one), 30))
