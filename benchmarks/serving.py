"""The HTTP service of an ensemble: its rates against bare ones, and 50 people forgotten while it is asked.

    python benchmarks/serving.py                  # both parts
    python benchmarks/serving.py ratios --rounds 5 --seconds 4
    python benchmarks/serving.py under-load --requests 50 --over 60

The ensemble has 20 constituents (MLPs 784-128-10) trained on MNIST, which lies in ``../shared/data`` or where
``SISA_DATA`` says. One Ray, one replica and HAProxy in front of it are started on this machine; callers are a process
of their own with 16 connections, each of which asks again once it is answered. All of them share the machine's
processors, the rebuilding shards as well.

``ratios`` goes through its measurements in turn, round by round: a machine whose speed drifts does not matter to the
median of a ratio. ``under-load`` files its requests one by one, evenly, and looks at every answer: one whose question
was sent after `fenced` was logged for a request must come from a view that knows of the request. It ends with an error
where a prediction failed or an answer came from a fenced state.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray import serve

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.records import GenerationPublished, RequestAccepted, RequestsFenced
from sisa_ray.execution import commands, hosting
from sisa_ray.learning.arithmetic import applied, resolved_device
from sisa_ray.learning.passes import padded_batch
from sisa_ray.learning.recipe import RecipeSpec, new_recipe
from sisa_ray.learning.stacked import StackedModel
from sisa_ray.serving.app import build_app
from sisa_ray.serving.config import ServeConfig
from sisa_ray.serving.hosting import THROUGHPUT
from sisa_ray.storage.checkpoints import read_checked
from sisa_ray.storage.log import CommitLog
from sisa_ray.storage.objects import open_store
from sisa_ray.storage.run import open_run, read_spec

PORT, CONNECTIONS, NUM_ROWS, SWAP_S = 8123, 16, 256, 1.0
JSON, ARROW = "application/json", "application/vnd.apache.arrow.stream"
DATA = Path(os.environ.get("SISA_DATA") or Path(__file__).parents[2] / "shared" / "data")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Calls:
    """What callers do. ``warm_s`` are seconds at the start that do not count, ``records`` keeps every answer's view."""

    path: str
    body: str
    seconds: float
    content_type: str = JSON
    warm_s: float = 0.5
    records: bool = False
    host: str = "127.0.0.1"
    port: int = PORT
    connections: int = CONNECTIONS

    def start(self) -> subprocess.Popen[str]:
        """Callers in a process of their own."""
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("_callers.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(vars(self)))
        process.stdin.close()
        return process

    def measure(self, rows: int = 1) -> dict[str, float]:
        """Rate and latencies, once these calls are over."""
        found = result_of(self.start())
        assert not found["failed"], found["failed"][:3]
        count = len(found["seconds"])
        p50, p99 = milliseconds(found["seconds"])
        return {"per_s": count * rows / self.seconds, "p50_ms": p50, "p99_ms": p99}


def result_of(callers: subprocess.Popen[str]) -> Any:
    """What callers measured."""
    assert callers.stdout is not None
    with callers:
        return json.load(callers.stdout)


def milliseconds(seconds: Any) -> tuple[float, float]:
    """p50 and p99 of so many seconds."""
    if not len(seconds):
        return float("nan"), float("nan")
    p50, p99 = np.percentile(np.asarray(seconds), [50, 99])
    return round(1e3 * float(p50), 2), round(1e3 * float(p99), 2)


def configuration(directory: Path, name: str, *, num_shards: int, epochs: int) -> SisaConfig:
    """A run on MNIST."""
    return SisaConfig.from_mapping(
        {
            "name": name,
            "storage_path": str(directory / "runs"),
            "data": {
                "train": str(DATA / "mnist-train.parquet"),
                "record_id": "id",
                "columns": {"features": "pixels", "label": "label"},
            },
            "recipe": {
                "class": "sisa_ray.recipes.MLPClassifier",
                "args": {"hidden": [128], "num_classes": 10, "lr": 0.001, "batch_size": 64, "scale": 255},
            },
            "sisa": {"num_shards": num_shards, "num_slices": 5, "epochs": epochs},
        }
    )


def write_bodies(directory: Path) -> pa.Table:
    """Bodies of one row and of many, in both forms; the rows themselves."""
    table = pq.read_table(DATA / "mnist-test.parquet", columns=["pixels"]).slice(0, NUM_ROWS)
    rows = [{"pixels": base64.b64encode(p.as_py()).decode()} for p in table["pixels"]]
    (directory / "one.json").write_text(json.dumps({"rows": rows[:1]}))
    (directory / "many.json").write_text(json.dumps({"rows": rows}))
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (directory / "many.arrow").write_bytes(sink.getvalue())
    return table


@contextmanager
def ray_of_its_own() -> Iterator[None]:
    """Ray on this machine, and HAProxy."""
    os.environ.update(THROUGHPUT)
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        yield
    finally:
        # All at once: HAProxy that is being told of a deletion would outlive its manager.
        serve.shutdown()
        ray.shutdown()


def serve_run(config: SisaConfig, name: str, prefix: str) -> None:
    """Start the coordinator of a run, and a replica that answers under ``prefix``."""
    hosting.start_coordinator(config)
    settings = ServeConfig(run=config.address, authentication=False, cpus_per_replica=0.5)
    serve.run(build_app(settings), name=name, route_prefix=prefix)


def serve_nothing() -> None:
    """A deployment that does nothing, under the same ingress."""

    @serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0.1})
    class Nothing:
        async def __call__(self, request: object) -> str:
            return "ok"

    serve.run(Nothing.bind(), name="nothing", route_prefix="/nothing")  # type: ignore[attr-defined]


def bare_torch(config: SisaConfig, table: pa.Table) -> Callable[[float], dict[str, float]]:
    """Forward passes of the stacked constituents in this process, and nothing else."""
    store = open_store(config.address)
    spec, state = read_spec(store), open_run(config.address).state
    assert spec is not None
    schema = pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(state.columns)))
    recipe = RecipeSpec(
        class_path=spec.config.recipe.class_path,
        args=spec.config.recipe.args,
        search_dirs=spec.code_dirs,
        code=spec.code,
    ).factory(schema)
    sisa, arithmetic = spec.config.sisa, spec.config.arithmetic
    states = [read_checked(store, state.stages[shard, sisa.num_slices]) for shard in range(sisa.num_shards)]
    role = table.rename_columns(["features"]).combine_chunks()
    batch = padded_batch(new_recipe(recipe), role, NUM_ROWS, resolved_device(arithmetic))
    with applied(arithmetic):
        stack = StackedModel.build(recipe, states, arithmetic, probe=batch)
        stack.forward(batch)

    def passes(seconds: float) -> dict[str, float]:
        taken: list[float] = []
        with applied(arithmetic):
            ends_at = time.perf_counter() + seconds
            while (started := time.perf_counter()) < ends_at:
                stack.forward(batch)
                taken.append(time.perf_counter() - started)
        p50, p99 = milliseconds(taken)
        return {"per_s": len(taken) * NUM_ROWS / sum(taken), "p50_ms": p50, "p99_ms": p99}

    return passes


def ratios(directory: Path, *, rounds: int, seconds: float) -> dict[str, Any]:
    """Rates and latencies of the service against bare ones, in turn."""
    twenty = configuration(directory, "twenty", num_shards=20, epochs=2)
    one = configuration(directory, "one", num_shards=1, epochs=1)
    table = write_bodies(directory)
    for config in (twenty, one):
        commands.train(config)
    serve_nothing()
    bare = bare_torch(twenty, table)
    body = str(directory / "one.json")
    many, arrow = str(directory / "many.json"), str(directory / "many.arrow")
    serve_run(one, "one", "/one")
    serve_run(twenty, "twenty", "/twenty")
    path = "/twenty/v1/predict"
    measures: dict[str, Callable[[], dict[str, float]]] = {
        "nothing": Calls(path="/nothing", body=body, seconds=seconds).measure,
        "twenty": Calls(path=path, body=body, seconds=seconds).measure,
        "one": Calls(path="/one/v1/predict", body=body, seconds=seconds).measure,
        "bare_rows": lambda: bare(seconds),
        "json_rows": lambda: Calls(path=path, body=many, seconds=seconds).measure(NUM_ROWS),
        "arrow_rows": lambda: Calls(path=path, body=arrow, seconds=seconds, content_type=ARROW).measure(
            NUM_ROWS
        ),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            found[name].append(measure())
    figures: dict[str, Any] = {
        name: {key: round(statistics.median(m[key] for m in measured), 2) for key in measured[0]}
        for name, measured in found.items()
    }

    def ratio(a: str, b: str, key: str) -> float:
        pairs = zip(found[a], found[b], strict=True)
        return round(statistics.median(x[key] / y[key] for x, y in pairs), 3)

    return figures | {
        "single_rows_of_nothing": ratio("twenty", "nothing", "per_s"),
        "p50_of_one_constituent": ratio("twenty", "one", "p50_ms"),
        "p99_of_one_constituent": ratio("twenty", "one", "p99_ms"),
        "arrow_rows_of_bare": ratio("arrow_rows", "bare_rows", "per_s"),
        "json_rows_of_bare": ratio("json_rows", "bare_rows", "per_s"),
    }


def ask(method: str, path: str, document: object = None) -> Any:
    """A request of its own connection."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    try:
        body = None if document is None else json.dumps(document)
        connection.request(method, path, body, {"content-type": JSON})
        response = connection.getresponse()
        data = response.read()
        assert response.status in (200, 202), data
        return json.loads(data)
    finally:
        connection.close()


def under_load(directory: Path, *, num_requests: int, over_s: float) -> dict[str, Any]:
    """People are forgotten, one request each, while others ask all the time."""
    config = configuration(directory, "forgetting", num_shards=20, epochs=2)
    commands.train(config)
    write_bodies(directory)
    ids = pq.read_table(config.data.train, columns=["id"])["id"]
    chosen = np.random.default_rng(7).choice(len(ids), num_requests, replace=False)
    base = "/v1/unlearning-requests"
    serve_run(config, "forgetting", "/")
    calls = Calls(path="/v1/predict", body=str(directory / "one.json"), seconds=3600, records=True)
    callers = calls.start()
    try:
        time.sleep(5)
        started = time.monotonic()
        filed = []
        for number, person in enumerate(chosen):
            time.sleep(max(0.0, started + number * over_s / num_requests - time.monotonic()))
            filed.append(ask("POST", base, {"subjects": [str(ids[int(person)])]})["id"])
        while ask("GET", "/v1/run")["num_closed"] < num_requests:
            time.sleep(0.5)
        erased_s = time.monotonic() - started
        time.sleep(2)
        load = os.getloadavg()[0]
    finally:
        callers.terminate()
    found = result_of(callers)
    hosting.stop_coordinator(config)
    return judged(config, found, filed) | {"all_erased_after_s": round(erased_s, 1), "load": round(load, 2)}


def judged(config: SisaConfig, found: Mapping[str, Any], filed: list[str]) -> dict[str, Any]:
    """What the answers and the log say together."""
    accepted: dict[str, tuple[int, float]] = {}
    fenced: dict[str, float] = {}
    published: list[float] = []
    for entry in CommitLog(open_store(config.address)).read():
        at = entry.at.timestamp()
        for record in entry.records:
            if isinstance(record, RequestAccepted):
                accepted[record.request] = (entry.head.seq, at)
            elif isinstance(record, RequestsFenced):
                fenced |= {name: at for name in record.requests if name not in fenced}
            elif isinstance(record, GenerationPublished):
                published.append(at)
    answers = np.array(found["answers"])
    sent, taken, position, generation = answers.T
    stale = 0
    for name in filed:
        stale += int(((sent > fenced[name]) & (position < accepted[name][0])).sum())
    to_fence = [fenced[name] - accepted[name][1] for name in filed]
    first, last = min(at for _, at in accepted.values()), published[-1] + SWAP_S
    swaps = [sent[generation == g].min() for g in np.unique(generation)[1:]]
    order = np.argsort(sent)
    sent, taken = sent[order], taken[order]
    is_swap = np.zeros(len(sent), bool)
    for at in swaps:
        is_swap |= (sent > at - SWAP_S) & (sent < at + SWAP_S)
    is_rebuild = (sent > first) & (sent < last)
    quiet = milliseconds(taken[sent < first])
    rebuilding = milliseconds(taken[is_rebuild & ~is_swap])
    swapping = milliseconds(taken[is_rebuild & is_swap])
    p50_s, p99_s = np.percentile(to_fence, [50, 99])
    return {
        "predictions": len(sent),
        "failed": len(found["failed"]),
        "first_failures": found["failed"][:3],
        "from_a_fenced_state": stale,
        "requests": len(filed),
        "time_to_fence_p50_s": round(float(p50_s), 3),
        "time_to_fence_p99_s": round(float(p99_s), 3),
        "generations": len(swaps),
        "quiet_p50_p99_ms": quiet,
        "rebuilding_p50_p99_ms": rebuilding,
        "swapping_p50_p99_ms": swapping,
        "swapping_of_rebuilding_p99": round(swapping[1] / rebuilding[1], 2),
    }


def show(title: str, figures: Mapping[str, Any]) -> None:
    """A table."""
    print(f"{title} (load {os.getloadavg()[0]:.2f}, {os.cpu_count()} processors)")
    for name, value in figures.items():
        shown = "  ".join(f"{k} {v:g}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"  {name:28} {shown}")
    sys.stdout.flush()


def main() -> None:
    """Run what is asked for, and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", choices=["both", "ratios", "under-load"], default="both")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--requests", type=int, default=50, help="to be forgotten under load")
    parser.add_argument("--over", type=float, default=60.0, help="seconds in which they are filed")
    args = parser.parse_args()
    if not DATA.is_dir():
        print(f"skipped: {DATA} does not exist; set SISA_DATA to the directory of the data sets")
        return
    is_bad = False
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        os.environ.setdefault("SISA_RAY_KEYRING", f"{directory}/keys")
        if args.part != "under-load":
            with ray_of_its_own():
                show("ratios", ratios(directory, rounds=args.rounds, seconds=args.seconds))
        if args.part != "ratios":
            with ray_of_its_own():
                found = under_load(directory, num_requests=args.requests, over_s=args.over)
            show("under load", found)
            is_bad = bool(found["failed"] or found["from_a_fenced_state"])
    sys.exit(1 if is_bad else 0)


if __name__ == "__main__":
    main()
