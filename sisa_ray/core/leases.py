"""Leases: by which a replica may answer from its view, and by which the coordinator knows that it may not.

Both sides measure on a clock of their own that counts the time a machine is suspended; only durations are told. The
replica counts from before it asked, the coordinator from after it was asked, so the coordinator never believes that
a lease has ended which its holder still relies on.

A coordinator that was superseded must not go on granting leases. So every lease ends a fixed time after a moment at
which the log still said that the coordinator had the run; whoever takes the run waits for as long before it relies
on what replicas do not know.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

_DRIFT = 0.01
"""Two clocks may differ by so much in rate."""


def boot_time() -> float:
    """Seconds on a clock that goes on while the machine, or this process, is suspended."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


@dataclass(kw_only=True)
class _Held:
    position: int
    version: int
    ends_at: float


class LeaseBook:
    """The coordinator's side. Times are seconds on its own clock, given by the caller.

    Args:
        lease_s: how long after a look at the log the leases last that rest on it.
        blind_until: until when replicas may have leases of a predecessor.
    """

    def __init__(self, *, lease_s: float, blind_until: float = float("-inf")) -> None:
        self._lease_s = lease_s
        self._blind_until = blind_until
        self._held: dict[str, _Held] = {}

    def renew(
        self,
        replica: str,
        *,
        position: int,
        version: int,
        checked_at: float,
        received_at: float,
        now: float,
    ) -> float:
        """Grant a lease to a replica that answers from ``position``; how many seconds it lasts from ``now`` on.

        Args:
            replica: its id.
            position: what it acknowledges: it will never again answer from anything before.
            version: of the view whose voters it has in memory, and no others.
            checked_at: when the log was last looked at and said that this coordinator has the run; taken before.
            received_at: when the question came. A lease does not rest on a longer time than its own, of which the
                replica's clock might count less: also where the question waited while this machine was suspended.
            now: at the answer.
        """
        ends_at = min(checked_at, received_at) + self._lease_s
        lasts_s = max(0.0, ends_at - now)
        self._held[replica] = _Held(
            position=position, version=version, ends_at=ends_at + _DRIFT * self._lease_s
        )
        return lasts_s

    def acknowledge(self, replica: str, *, position: int, version: int) -> None:
        """A replica will never again answer from anything before ``position``; its lease stays as it is."""
        if replica in self._held:
            self._held[replica].position = position
            self._held[replica].version = version

    def leave(self, replica: str) -> None:
        """A replica that answers no more."""
        self._held.pop(replica, None)

    def position_of(self, now: float) -> float:
        """The earliest position that anybody may answer from; infinity where nobody may."""
        return self._earliest(now, lambda held: held.position)

    def version_of(self, now: float) -> float:
        """The earliest view whose voters anybody with a lease has in memory; infinity where nobody has a lease."""
        return self._earliest(now, lambda held: held.version)

    def _earliest(self, now: float, what: Callable[[_Held], int]) -> float:
        if now < self._blind_until:
            return float("-inf")
        self._held = {name: held for name, held in self._held.items() if now < held.ends_at}
        return min((what(held) for held in self._held.values()), default=float("inf"))

    def num_replicas(self, now: float) -> int:
        """Replicas whose lease has not run out."""
        return sum(now < held.ends_at for held in self._held.values())

    def is_idle(self, now: float) -> bool:
        """Whether nobody may answer."""
        return now >= self._blind_until and self.num_replicas(now) == 0


class LeaseHolder:
    """The replica's side: until when it may answer, and from what."""

    def __init__(self) -> None:
        self._ends_at = float("-inf")
        self._clean_from = 0
        self._is_given_up = False

    def grant(self, *, asked_at: float, held_s: float, lasts_s: float) -> None:
        """A lease was granted: ``held_s`` after it was asked for, for ``lasts_s``.

        The coordinator's clock may be a little faster.
        """
        if (
            lasts_s > 0
        ):  # else there is none, whatever a slow clock makes of the time that the question waited
            self._ends_at = max(self._ends_at, asked_at + held_s + lasts_s)

    def give_up(self) -> None:
        """Before the coordinator is told that this replica answers no more: what is under way is not handed out."""
        self._is_given_up = True

    def drop_before(self, serial: int) -> None:
        """From here on nothing is handed out that the replica's models before ``serial`` gave."""
        self._clean_from = max(self._clean_from, serial)

    def is_clean(self, serial: int) -> bool:
        """Whether what the models of ``serial`` gave may be handed out, as long as the lease lasts."""
        return serial >= self._clean_from

    def is_valid(self, now: float) -> bool:
        """Whether anything may be handed out."""
        return now < self._ends_at and not self._is_given_up

    def left_s(self, now: float) -> float:
        """Seconds until the lease ends."""
        return max(0.0, self._ends_at - now)
