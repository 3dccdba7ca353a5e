"""A seeded simulation of coordinators, clients and storage around the pure core.

Several coordinators carry out what :mod:`sisa_ray.core.step` decides, in an order and with faults that one seed
decides. ``python -m tests.core.cluster --seeds 5000`` (``make test-sim``) plays many histories;
``--seed N`` replays one, with every action.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.core.cluster_checks import Violation
from tests.core.cluster_world import World


def play(seed: int, *, is_traced: bool = False) -> World:
    """The history of one seed.

    Raises:
        Violation: of what must hold.
    """
    world = World(seed, is_traced=is_traced)
    world.play()
    return world


def main(arguments: list[str] | None = None) -> int:
    """The command: 1 where something did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.core.cluster", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5000, help="how many histories")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="replay one history, with every action")
    given = parser.parse_args(arguments)
    write = sys.stdout.write
    if given.seed is not None:
        world = World(given.seed, is_traced=True)
        try:
            world.play()
        except Violation as violation:
            world.say("referee", str(violation))
            return 1
        finally:
            write("\n".join(world.trace) + "\n")
        return 0
    started = time.perf_counter()
    faults: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    broken = 0
    for seed in range(given.first, given.first + given.seeds):
        world = World(seed)
        try:
            world.play()
        except Violation as violation:
            broken += 1
            write(f"seed {seed}: {violation}\n  replay it: python -m tests.core.cluster --seed {seed}\n")
        faults += world.faults
        seen += world.seen
    seconds = time.perf_counter() - started
    write(f"{given.seeds} seeds in {seconds:.1f} s, {broken} broken\n")
    for title, counts in (("faults", faults), ("seen", seen)):
        write(f"{title}: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
