"""Leases, by simulation: nobody can hand out what is fenced, and each way to break that shows."""

from __future__ import annotations

from typing import get_args

import pytest

from sisa_ray.core.leases import LeaseBook, LeaseHolder, boot_time
from tests.core.lease_world import LEASE_S, Broken, LeaseWorld, StaleAnswer

NUM_SEEDS = 2000
WITHIN: dict[Broken, int] = {
    "a lease never runs out": 5,
    "a lease is counted from the answer": 10,
    "leases rest on no look at the log": 5,
    "the successor does not wait": 10,
    "acknowledged before it is dropped": 5,
    "the clock stands still while frozen": 5,
    "whoever leaves goes on answering": 50,
    "clocks that drift more than is allowed": 50,
}
"""In so many seeds the simulation finds what is broken."""


def test_nothing_is_handed_out_that_is_fenced() -> None:
    num_fenced = num_usable = 0
    for seed in range(NUM_SEEDS):
        world = LeaseWorld(seed).run()
        num_fenced += world.log.num_fenced
        num_usable += world.num_usable
    assert num_fenced > 10 * NUM_SEEDS
    assert num_usable > 10 * NUM_SEEDS


@pytest.mark.parametrize("broken", get_args(Broken))
def test_what_is_broken_shows(broken: Broken) -> None:
    for seed in range(WITHIN[broken]):
        try:
            LeaseWorld(seed, broken).run()
        except StaleAnswer:
            return
    pytest.fail(f"{broken}: not found")


class TestBook:
    def test_a_lease_ends_a_fixed_time_after_the_look_at_the_log(self) -> None:
        book = LeaseBook(lease_s=4)
        assert book.renew("a", position=7, version=3, checked_at=10, received_at=11, now=12) == 2
        assert book.position_of(13) == 7
        assert book.version_of(13) == 3
        assert book.num_replicas(13) == 1
        # A little longer than its holder believes.
        assert book.position_of(14.03) == 7
        assert book.position_of(14.05) == float("inf")
        assert book.is_idle(14.05)

    def test_a_question_that_waited_for_long_gets_no_more_for_it(self) -> None:
        book = LeaseBook(lease_s=4)
        assert book.renew("a", position=7, version=3, checked_at=12, received_at=10, now=12) == 2
        assert book.renew("b", position=7, version=3, checked_at=90, received_at=10, now=90) == 0

    def test_nothing_is_known_while_a_predecessors_leases_may_last(self) -> None:
        book = LeaseBook(lease_s=4, blind_until=20)
        assert book.position_of(19) == book.version_of(19) == float("-inf")
        assert not book.is_idle(19)
        assert book.is_idle(20)

    def test_whoever_is_behind_counts(self) -> None:
        book = LeaseBook(lease_s=4)
        for name, position in (("a", 7), ("b", 9)):
            book.renew(name, position=position, version=3, checked_at=0, received_at=0, now=0)
        assert book.position_of(1) == 7
        book.acknowledge("a", position=10, version=8)
        assert (book.position_of(1), book.version_of(1)) == (9, 3)
        book.leave("b")
        assert (book.position_of(1), book.version_of(1)) == (10, 8)
        book.acknowledge("stranger", position=1, version=1)
        assert book.position_of(1) == 10


class TestHolder:
    def test_counts_from_the_question(self) -> None:
        holder = LeaseHolder()
        assert not holder.is_valid(0)
        holder.grant(asked_at=100, held_s=1, lasts_s=3)
        assert holder.is_valid(103.9)
        assert not holder.is_valid(104)
        assert holder.left_s(101) == 3

    def test_an_earlier_answer_takes_nothing_away(self) -> None:
        holder = LeaseHolder()
        holder.grant(asked_at=100, held_s=1, lasts_s=3)
        holder.grant(asked_at=99, held_s=0, lasts_s=0)
        assert holder.is_valid(103.9)

    def test_whoever_gives_up_gets_nothing_more(self) -> None:
        holder = LeaseHolder()
        holder.grant(asked_at=100, held_s=0, lasts_s=LEASE_S)
        holder.give_up()
        assert not holder.is_valid(100)
        holder.grant(asked_at=100, held_s=0, lasts_s=LEASE_S)
        assert not holder.is_valid(100)

    def test_nothing_was_granted_however_long_the_question_waited(self) -> None:
        holder = LeaseHolder()
        holder.grant(asked_at=0, held_s=100, lasts_s=0)
        assert not holder.is_valid(99.5)  # on a clock that is a little slower

    def test_what_was_dropped_is_not_clean_again(self) -> None:
        holder = LeaseHolder()
        assert holder.is_clean(0)
        holder.drop_before(3)
        holder.drop_before(1)
        assert not holder.is_clean(2)
        assert holder.is_clean(3)


def test_the_clock_goes_on() -> None:
    assert boot_time() <= boot_time()
