"""Leases as replicas and sessions know them: what is asked and answered, and what a session waits for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sisa_ray.core.leases import boot_time
from sisa_ray.core.records import RequestsFenced, ServingClosed
from sisa_ray.core.tokens import Tokens
from sisa_ray.core.view import View
from sisa_ray.storage.run import Run

PAUSE_S = 0.02
_MARGIN_S = 0.1
"""For what happens between reading a clock and acting on it."""


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """What a replica asks, and so acknowledges.

    Attributes:
        replica: its id.
        position: it answers from here and from nothing before; -1 where it answers from nothing yet.
        voting: the version of the view of its voters; -1 where it has none.
        version: the same, or that of an earlier view of which it still has models in memory.
        seen: the version of the last view that it was shown, and may be loading; -1 to be shown it again.
        tokens: the digest of the tokens that it knows.
    """

    replica: str
    position: int
    voting: int
    version: int
    seen: int
    tokens: str = ""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A coordinator's answer: for how long a replica may answer, and from what.

    Attributes:
        held_s: how long the question waited here.
        lasts_s: from the answer on; 0 where the coordinator cannot say that it has the run.
        position: up to where requests are respected by ``view``, and by the voters that the replica has without those
            of ``drop``.
        view: None where the replica has seen it.
        drop: shards whose voters, of those that it has, must not answer any more. None: all that ``view`` has not.
        is_published: whether there is anything to answer from.
        tokens: None where they are those that the replica has.
    """

    held_s: float
    lasts_s: float
    position: int
    view: View | None
    drop: frozenset[int] | None
    is_published: bool
    tokens: Tokens | None


class Leases(Protocol):
    """How a session sees to it that nobody answers from what must not be known any more."""

    def fence(self, run: Run, requests: Sequence[str], interrupt: Callable[[], None]) -> None:
        """Commit that these requests are fenced, once they are."""

    def settle(self, run: Run, interrupt: Callable[[], None]) -> None:
        """Return once nobody answers from an earlier state than the one now."""


class NoReplicas:
    """A session that no replica asks: leases that a coordinator granted before have to run out."""

    def fence(self, run: Run, requests: Sequence[str], interrupt: Callable[[], None]) -> None:
        """See :class:`Leases`."""
        self.settle(run, interrupt)
        run.commit(RequestsFenced(requests=tuple(requests)))

    def settle(self, run: Run, interrupt: Callable[[], None]) -> None:
        """See :class:`Leases`."""
        opened = run.state.serving
        if opened is None:
            return
        until = boot_time() + longest_s(opened.lease_s)
        while boot_time() < until:
            interrupt()
            time.sleep(PAUSE_S)
        run.commit(ServingClosed())


def longest_s(lease_s: float) -> float:
    """After so long no lease of another process is valid any more."""
    return lease_s * 1.02 + _MARGIN_S
