"""How far it goes: what a coordinator costs with many shards, slices and people; many actors; two workers for one.

    python benchmarks/scale.py                                         # everything, which takes half an hour
    python benchmarks/scale.py --only coordinator --runs 100x10 1000x100    # runs of so many shards x slices
    python benchmarks/scale.py --only actors --actors 200
    python benchmarks/scale.py --only speedup

coordinator: the stages are simulated, since what is measured is everything around them: the pure core decides, the log
lies in a local directory, requests are accepted, routed, fenced, batched, purged and certified as ever. Slices and
checkpoints are names in the listing of the store. Each size has a process of its own, whose memory is told.
actors: real ones, as they are before their first work (torch is not loaded).
speedup: one run trained by one worker, then by two; needs two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _scale_ray import many_actors, speedup
from _simulated import SimulatedWorkers, trained_run

from sisa_ray.core.step import Moment
from sisa_ray.core.view import View, next_view
from sisa_ray.execution.acceptance import Submission
from sisa_ray.execution.events import ignore
from sisa_ray.execution.forget import fenced_from, route
from sisa_ray.execution.session import Session

PARTS = ("coordinator", "actors", "speedup")
RUNS = ("100x10", "1000x10", "1000x100", "10000x10", "10000x100")
NUM_SUBJECTS = 10**9
_NUM_BATCHES = 5
_BATCH_PEOPLE = 2


class Watch:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started


def coordinate(directory: Path, *, num_shards: int, num_slices: int) -> dict[str, Any]:
    """Carry out batches of two people each on a run of that size; seconds a batch, and memory."""
    batches = [[f"person {n}-{i}" for i in range(_BATCH_PEOPLE)] for n in range(_NUM_BATCHES)]
    people = [person for batch in batches for person in batch]
    watch = Watch()
    with watch("make"):
        run, store = trained_run(
            directory,
            num_shards=num_shards,
            num_slices=num_slices,
            num_subjects=NUM_SUBJECTS,
            people=people,
        )
    made_mib = _peak_mib()
    num_stages = 0
    view: View | None = None
    with watch("open"):
        session = Session(
            run,
            SimulatedWorkers(store),
            command="benchmark",
            on_event=ignore,
            moment=lambda: Moment(now=run.now(), num_slots=8),
        )
        session.__enter__()
        session.reconcile(train=False)
        view = next_view(run.spec, run.state, fenced_from(run), None)
    log_before = _log_bytes(run.store.url)
    for number, batch in enumerate(batches):
        with watch("accept"):
            session.accept(Submission(subjects=tuple(batch)))
        with watch("fence"):
            view = next_view(run.spec, run.state, fenced_from(run), view)
        with watch("reconcile" if number else "first reconcile"):  # which looks everywhere under the run
            session.reconcile(train=False)
        num_stages += list(run.state.closed_batches.values())[-1].closed.stages_rebuilt
    with watch("route"):
        route(run, [f"person {i}" for i in range(1000)])
    session.__exit__(None, None, None)
    assert not run.state.requests
    assert not run.state.uncertified
    each = {name: watch.seconds[name] / _NUM_BATCHES for name in ("accept", "fence")}
    each |= {
        "first_reconcile": watch.seconds["first reconcile"],
        "reconcile": watch.seconds["reconcile"] / (_NUM_BATCHES - 1),
    }
    return {
        "shards": num_shards,
        "slices": num_slices,
        "subjects": NUM_SUBJECTS,
        "make_s": round(watch.seconds["make"], 1),
        "open_s": round(watch.seconds["open"], 2),
        "stages_a_batch": num_stages / _NUM_BATCHES,
        **{f"{name}_s": round(seconds, 4) for name, seconds in each.items()},
        "log_kib_a_batch": round((_log_bytes(run.store.url) - log_before) / _NUM_BATCHES / 1024, 1),
        "route_1000_people_ms": round(1000 * watch.seconds["route"], 1),
        "made_mib": made_mib,
        "peak_mib": _peak_mib(),
    }


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _log_bytes(url: str) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(Path(url, "log")))


def main() -> None:
    """Run the parts that were asked for, each in a process of its own, and print their figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to be run")
    parser.add_argument("--runs", nargs="+", default=RUNS, help="shards x slices of simulated runs")
    parser.add_argument("--actors", type=int, default=200, help="how many real actors to start")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        print(json.dumps(_part(args.inside)))
        return
    sizes = {"coordinator": args.runs, "actors": [str(args.actors)], "speedup": [""]}
    for part in args.only:
        for size in sizes[part]:
            print(f"{part} {size}".strip(), "...", file=sys.stderr, flush=True)
            done = subprocess.run(
                [sys.executable, __file__, "--inside", f"{part}:{size}"], check=True, stdout=subprocess.PIPE
            )
            figures = {"part": part, **json.loads(done.stdout.splitlines()[-1])}  # Ray may warn before it
            said = json.dumps(figures) if args.json else "  ".join(f"{k}={v}" for k, v in figures.items())
            print(said, flush=True)


def _part(name: str) -> dict[str, Any]:
    """Figures of one part, in this process."""
    part, _, size = name.partition(":")
    with tempfile.TemporaryDirectory() as directory:
        os.environ["SISA_RAY_KEYRING"] = f"{directory}/keys"
        if part == "actors":
            return many_actors(Path(directory), num_actors=int(size))
        if part == "speedup":
            return speedup(Path(directory))
        num_shards, num_slices = map(int, size.split("x"))
        return coordinate(Path(directory), num_shards=num_shards, num_slices=num_slices)


if __name__ == "__main__":
    main()
