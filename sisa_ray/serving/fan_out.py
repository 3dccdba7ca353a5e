"""Fan-out: groups of shards vote in replicas of their own, and one that holds no models counts the votes.

For constituents too large to share a device. Every member of a group keeps a lease like any other replica, so the
fence holds for each of them; an answer is made of votes on one and the same view alone.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from sisa_ray.core.errors import SisaError
from sisa_ray.core.identity import Spec
from sisa_ray.core.view import Voter
from sisa_ray.learning.ensemble import Floats
from sisa_ray.serving.config import ServeConfig
from sisa_ray.serving.electorate import Electorate, ModelLoader
from sisa_ray.serving.keeper import Keeper
from sisa_ray.serving.passes import Answer, Finish, Passes
from sisa_ray.serving.problems import unavailable
from sisa_ray.serving.service import Coordinator
from sisa_ray.storage.objects import ObjectStore

_NUM_TRIES = 100
_PAUSE_S = 0.02
_READY_PAUSE_S = 0.02


@dataclass(frozen=True, kw_only=True)
class GroupVotes:
    """What a group says; ``votes`` has shape ``(voters, N, ...)``. No voters: it may not answer now."""

    version: int
    generation: int
    position: int
    voters: tuple[Voter, ...]
    votes: Floats | None


class GroupMember:
    """A replica that holds the models of some shards, and votes for whoever counts."""

    def __init__(
        self,
        config: ServeConfig,
        spec: Spec,
        store: ObjectStore,
        coordinator: Coordinator,
        shards: tuple[int, ...],
    ) -> None:
        self._coordinator = coordinator
        self._replica = uuid.uuid4().hex
        self._passes = Passes(config.rows_per_pass)
        self.keeper = Keeper(self._replica, coordinator.renew, ModelLoader(spec, store, shards).load)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return once this member has a lease and its models; its shards may all be fenced."""
        self._task = asyncio.create_task(self.keeper.run())
        while self.keeper.electorate is None or not self.keeper.may_hand_off(self.keeper.electorate):
            self.check()
            await asyncio.sleep(_READY_PAUSE_S)

    def check(self) -> None:
        """Raise where this member has to be replaced."""
        if self._task is not None and self._task.done():
            self._task.result()

    async def stop(self) -> None:
        """Leave."""
        if self._task is not None:
            self._task.cancel()
        self.keeper.give_up()
        with suppress(SisaError):
            await self._coordinator.leave(self._replica)
        self._passes.stop()

    async def vote(self, table: pa.Table) -> GroupVotes:
        """The votes of this group's shards on every row.

        Raises:
            Exception: whatever the recipe raised for these rows.
        """
        electorate = self.keeper.electorate
        if electorate is None:
            return _silent(-1)
        votes: Floats | None = None
        if electorate.voters:
            answer, _ = await self._passes.ask(table, electorate, _raw)
            votes = np.moveaxis(answer["votes"], 0, 1)
        if not self.keeper.may_hand_off(electorate):
            return _silent(electorate.version)
        return GroupVotes(
            version=electorate.version,
            generation=electorate.generation,
            position=self.keeper.position,
            voters=electorate.voters,
            votes=votes,
        )


AskGroup = Callable[[pa.Table], Awaitable[GroupVotes]]


class FanOut:
    """Asks every group, and puts their votes together in the order of the shards."""

    def __init__(self, groups: Sequence[AskGroup]) -> None:
        self._groups = tuple(groups)

    async def ask(self, table: pa.Table, electorate: Electorate, finish: Finish) -> tuple[Answer, Electorate]:
        """See :class:`~sisa_ray.serving.replica.Forward`.

        Raises:
            Problem: where the groups do not come to stand on one view.
        """
        for _ in range(_NUM_TRIES):
            said = await asyncio.gather(*(group(table) for group in self._groups))
            versions = {votes.version for votes in said}
            if len(versions) == 1 and all(votes.position >= 0 for votes in said):
                return _counted(said, electorate, finish)
            # A generation is being loaded, here earlier and there later.
            await asyncio.sleep(_PAUSE_S)
        raise unavailable("the groups of shards do not stand on the same view", kind="fenced")


def groups_of(num_shards: int, num_groups: int) -> list[tuple[int, ...]]:
    """Shards in groups of nearly equal size.

    >>> groups_of(5, 2)
    [(0, 1, 2), (3, 4)]
    """
    cuts = np.array_split(np.arange(num_shards), min(num_groups, num_shards))
    return [tuple(int(shard) for shard in cut) for cut in cuts]


def _counted(said: Sequence[GroupVotes], electorate: Electorate, finish: Finish) -> tuple[Answer, Electorate]:
    found = [
        (voter, votes.votes[i])
        for votes in said
        if votes.votes is not None
        for i, voter in enumerate(votes.voters)
    ]
    if not found:
        raise unavailable("no shard has a clean model now; wait for the next generation", kind="no-voters")
    found.sort(key=lambda pair: pair[0].ref.shard)
    voted = replace(
        electorate,
        generation=said[0].generation,
        voters=tuple(voter for voter, _ in found),
        at_most=min(votes.position for votes in said),
    )
    return finish(np.stack([votes for _, votes in found]), voted), voted


def _raw(votes: Floats, electorate: Electorate) -> Answer:
    del electorate
    return {"votes": np.moveaxis(votes, 0, 1)}


def _silent(version: int) -> GroupVotes:
    return GroupVotes(version=version, generation=-1, position=-1, voters=(), votes=None)
