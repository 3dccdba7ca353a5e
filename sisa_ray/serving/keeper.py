"""The replica's side of the fence: it renews its lease, drops at once what it must, and loads what is new beside it."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from sisa_ray.core.errors import SisaError
from sisa_ray.core.leases import LeaseHolder, boot_time
from sisa_ray.core.tokens import Tokens
from sisa_ray.core.view import View
from sisa_ray.execution.leases import Lease, Renewal
from sisa_ray.serving.electorate import Electorate

logger = logging.getLogger("sisa_ray.serving")

_PAUSE_S = 0.2
_MOMENT_S = 0.01
_PATIENCE_S = 3.0
"""For an answer of the coordinator; it says nothing for a second at most."""

Load = Callable[[View, Electorate | None], Electorate]


class Keeper:
    """Keeps the electorate of one replica. Everything but loading happens on one event loop.

    Args:
        replica: its id.
        ask: asks the coordinator.
        load: brings a view into memory; on a thread of its own.
        clock: see :func:`~sisa_ray.core.leases.boot_time`.
        on_change: told of every other electorate.
    """

    def __init__(
        self,
        replica: str,
        ask: Callable[[Renewal], Awaitable[Lease]],
        load: Load,
        *,
        clock: Callable[[], float] = boot_time,
        on_change: Callable[[Electorate], None] = lambda *_: None,
    ) -> None:
        self._replica = replica
        self._ask = ask
        self._load = load
        self._clock = clock
        self._on_change = on_change
        self._lease = LeaseHolder()
        self._seen: View | None = None
        self._loading: asyncio.Task[None] | None = None
        self._has_loaded = asyncio.Event()
        self._first_serial = 0
        """Of the view that votes now."""
        self._lingering: list[tuple[int, weakref.ref[Any]]] = []
        self.electorate: Electorate | None = None
        self.position = -1
        self.tokens = Tokens()
        self.problem = "the coordinator has not answered yet"
        """Why nothing can be answered, where that is so."""

    async def run(self) -> None:
        """Renew the lease for as long as the replica lives."""
        while True:
            asked, asked_at = self._renewal(), self._clock()
            self._has_loaded.clear()
            try:
                lease = await self._answer(asked)
            except (SisaError, TimeoutError) as error:
                self.problem = f"the coordinator does not answer: {str(error) or 'it takes too long'}"
                await asyncio.sleep(_PAUSE_S)
                continue
            if lease is not None:
                self._take(asked, lease, asked_at)
                if not lease.is_published:
                    await asyncio.sleep(_PAUSE_S)

    async def _answer(self, asked: Renewal) -> Lease | None:
        """The coordinator's answer; None once there is something else to tell it, which is not to wait."""
        answer = asyncio.ensure_future(self._ask(asked))
        loaded = asyncio.ensure_future(self._has_loaded.wait())
        try:
            done, _ = await asyncio.wait(
                (answer, loaded), timeout=_PATIENCE_S, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            loaded.cancel()
        if answer in done:
            return answer.result()
        # Left to itself: what it would grant, the next one grants too.
        answer.add_done_callback(lambda late: late.cancelled() or late.exception())
        if not done:
            raise TimeoutError
        return None

    def may_hand_off(self, electorate: Electorate) -> bool:
        """Whether what this electorate said may be handed out at this moment."""
        if not (self._lease.is_valid(self._clock()) and self._lease.is_clean(electorate.serial)):
            return False
        if electorate.at_most is None or electorate.at_most >= self.position:
            return True
        # Others voted, who may have dropped since what they voted by: only they who vote in this view are known clean.
        return self._seen is not None and all(v in self._seen.voters for v in electorate.voters)

    def give_up(self) -> None:
        """Nothing is handed out any more, also nothing that is being computed now."""
        self._lease.give_up()

    @property
    def is_serving(self) -> bool:
        """Whether there is a lease, and somebody votes."""
        return (
            self._lease.is_valid(self._clock())
            and self.electorate is not None
            and bool(self.electorate.voters)
        )

    def _renewal(self) -> Renewal:
        return Renewal(
            replica=self._replica,
            position=self.position,
            voting=self._loaded_version(),
            version=self._version_in_memory(),
            seen=-1 if self._seen is None else self._seen.version,
            tokens=self.tokens.digest,
        )

    def _version_in_memory(self) -> int:
        """The earliest view that anything in memory is of: a pass that is under way holds on to its models."""
        self._lingering = [(version, ref) for version, ref in self._lingering if ref() is not None]
        now = -1 if self.electorate is None else self.electorate.version
        return min([now, *(version for version, _ in self._lingering)])

    def _take(self, asked: Renewal, lease: Lease, asked_at: float) -> None:
        if lease.tokens is not None:
            self.tokens = lease.tokens
        if lease.view is not None:
            self._seen = lease.view
        if not lease.is_published:
            self.problem = "nothing is published yet"
            return
        electorate = self.electorate
        if electorate is not None and self._seen is not None:
            drop = lease.drop
            if drop is None or asked.voting != electorate.version:  # about others than those that vote now
                drop = electorate.differing(self._seen)
            drop = drop.intersection(v.ref.shard for v in electorate.voters)
            if drop:
                self._install(electorate.without(drop))
                self._lease.drop_before(self.electorate.serial)  # type: ignore[union-attr]
            if lease.position > self.position:
                # What was said is of those who vote now: passes of an earlier view that are under way are made anew.
                self._lease.drop_before(self._first_serial)
                self.position = lease.position
        # Only now: what the lease is for has been dropped.
        self._lease.grant(asked_at=asked_at, held_s=lease.held_s, lasts_s=lease.lasts_s)
        if self._loading is None and self._seen is not None and self._seen.version != self._loaded_version():
            self._loading = asyncio.get_running_loop().create_task(self._bring(self._seen))

    def _loaded_version(self) -> int:
        return -1 if self.electorate is None else self.electorate.version

    async def _bring(self, view: View) -> None:
        """Load a view beside the one in use, and switch to it between two passes."""
        try:
            await self._switch(view)
        except SisaError as error:
            # Its checkpoints may have been purged meanwhile: ask for the latest view.
            # Its words alone: the error itself holds on to the models of this moment, for as long as the record lives.
            logger.warning("view %d cannot be loaded: %s", view.version, str(error))
            self.problem = f"the models cannot be loaded: {error}"
            self._seen = None
            await asyncio.sleep(_PAUSE_S)
        finally:
            self._loading = None
        # Frames and passes that are just ending hold on to the old models for a moment.
        while self._loading is None and self._version_in_memory() != self._loaded_version():
            await asyncio.sleep(_MOMENT_S)
        self._has_loaded.set()

    async def _switch(self, view: View) -> None:
        fresh = await asyncio.to_thread(self._load, view, self.electorate)
        before = self.electorate
        fresh = replace(fresh, serial=0 if before is None else before.serial + 1)
        if self._seen is not None and self._seen is not view:
            # What a later view has not may have been fenced since.
            fresh = replace(fresh, voters=fresh.without(fresh.differing(self._seen)).voters)
        if before is None:
            self.position = view.position if self._seen is None else self._seen.position
        elif before.stack is not fresh.stack:
            self._lingering.append((before.version, weakref.ref(before.stack)))
        self._first_serial = fresh.serial
        self._install(fresh)

    def _install(self, electorate: Electorate) -> None:
        self.electorate = electorate
        self._on_change(electorate)
