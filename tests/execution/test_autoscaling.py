"""A cluster that an autoscaler takes down to zero between batches, and brings up for the next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.autoscaling import autoscaling_cluster

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_from_zero_to_what_a_batch_needs_and_back(tmp_path: Path) -> None:
    with autoscaling_cluster({"CPU": 1, "GPU": 1}, max_nodes=3) as joining:
        done = subprocess.run(
            [sys.executable, "-m", "tests.execution.autoscaling_scenario", str(tmp_path)],
            cwd=ROOT,
            env={**os.environ, **joining},
            capture_output=True,
            text=True,
            timeout=420,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    trained, forgotten = map(json.loads, done.stdout.splitlines())
    # Three shards, two slots; then one shard, one slot.
    assert trained == {"done": "train", "rebuilt": 3, "before": 0, "during": 2, "after": 0}
    assert forgotten == {"done": "unlearn", "rebuilt": 1, "before": 0, "during": 1, "after": 0}
