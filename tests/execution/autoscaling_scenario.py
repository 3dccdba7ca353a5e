"""What a team does on a cluster that goes down to zero between batches: a program of its own, for the test.

It prints, as JSON lines, what is done, and how many nodes are up at the end of it and once they had time to leave.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path

import ray

from sisa_ray.execution import commands
from tests.execution.tables import make_config, make_table

_LEAVE_S = 60.0


def num_nodes() -> int:
    """Nodes that have GPUs."""
    return sum(node["Alive"] and "GPU" in node["Resources"] for node in ray.nodes())


def num_nodes_later() -> int:
    """Nodes once those that are idle have left."""
    deadline = time.monotonic() + _LEAVE_S
    while (count := num_nodes()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return count


def tell(done: str, before: int, num_rebuilt: int) -> None:
    """Print what was done, and how many nodes there were before, are, and will be."""
    said = {"done": done, "rebuilt": num_rebuilt, "before": before, "during": num_nodes()}
    sys.stdout.write(json.dumps({**said, "after": num_nodes_later()}) + "\n")


def main(directory: Path) -> None:
    """Train on at most two nodes, then forget one person."""
    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    config = make_config(
        directory,
        make_table(120),
        recipe={"class": "tests.execution.recipes.Small"},
        resources={"gpus_per_shard": 1, "cpus_per_shard": 1, "max_slots": 2, "wait_for_nodes_s": 120},
    )
    before = num_nodes()
    commands.train(config)
    tell("train", before, 3)
    before = num_nodes()
    result = commands.unlearn(config, ["p7"])
    tell("unlearn", before, len(result.shards_rebuilt))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
