"""Groups of shards that vote in replicas of their own: one view an answer, and the labels of a replica that has all."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sisa_ray.core.config import SisaConfig
from sisa_ray.serving.config import ServeConfig
from sisa_ray.serving.fan_out import FanOut, GroupMember
from sisa_ray.serving.service import Service
from sisa_ray.storage.objects import open_store
from sisa_ray.storage.run import read_spec
from tests.execution.coordinators import running, trained
from tests.serving.services import ROWS, Here, Silent, forget, predict, reaches, serving
from tests.serving.witness import Witness


@pytest.fixture
def config(tmp_path: Path) -> SisaConfig:
    return trained(tmp_path, serving={"lease_s": 1})


def parts(config: SisaConfig, here: Here) -> tuple[Service, list[GroupMember]]:
    store = open_store(config.address)
    spec = read_spec(store)
    assert spec is not None
    given: dict[str, Any] = {"run": config.address, "authentication": False, "requests_per_s": 10_000}
    serve = ServeConfig.from_mapping(given)
    members = [GroupMember(serve, spec, store, here, (shard,)) for shard in range(2)]
    audit = logging.getLogger("tests.audit")
    forward = FanOut([member.vote for member in members])
    return Service(serve, spec, store, here, audit_log=audit, meters=Silent(), forward=forward), members


def test_groups_answer_like_one_replica_also_while_people_are_forgotten(config: SisaConfig) -> None:
    async def story() -> None:
        with running(config) as one:
            here = Here(one)
            counter, members = parts(config, here)
            await asyncio.gather(counter.start(), *(member.start() for member in members))
            async with serving(config, here) as whole:
                witness = Witness(config=config, coordinator=one)
                witness.watch(counter)
                async with witness.asking([counter]):
                    for person in ("p3", "p11"):
                        name = await forget(whole, person)
                        witness.note(name)
                        await reaches(whole, name, "certified")
                assert {r.status for r in witness.responses} == {200}
                witness.check()
                mine, others = (await predict(counter, ROWS)).json, (await predict(whole, ROWS)).json
                assert mine["labels"] == others["labels"]
                # A group that is silent: nobody answers in its place.
                await members[0].stop()
                assert (await predict(counter)).status == 503
            await asyncio.gather(counter.stop(), members[1].stop())

    asyncio.run(story())


def test_votes_of_before_what_the_counter_has_heard_are_not_handed_out(config: SisaConfig) -> None:
    async def story() -> None:
        with running(config) as one:
            here = Here(one)
            counter, members = parts(config, here)
            await asyncio.gather(counter.start(), *(member.start() for member in members))
            witness = Witness(config=config, coordinator=one)
            witness.watch(counter)
            table = counter.predictor.rows.from_json(ROWS[:1])
            votes = await asyncio.gather(*(member.vote(table) for member in members))
            assert all(v.votes is not None for v in votes)
            name = await forget(counter, "p3")
            witness.note(name)
            await reaches(counter, name, "certified")
            electorate = counter.keeper.electorate
            assert electorate is not None
            old = replace(
                electorate, voters=votes[0].voters + votes[1].voters, at_most=min(v.position for v in votes)
            )
            assert counter.keeper.may_hand_off(electorate)
            assert not counter.keeper.may_hand_off(old)
            await asyncio.gather(counter.stop(), *(m.stop() for m in members))

    asyncio.run(story())
