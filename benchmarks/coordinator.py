"""The coordinator under load: requests accepted a second and how long each waits; and opening a long log.

    python benchmarks/coordinator.py                       # a local directory
    python benchmarks/coordinator.py --storage s3://bucket  # S3, as the AWS_* variables say
    python benchmarks/coordinator.py --requests 10000 --clients 8 --in-flight 16

Each client is a thread that keeps so many requests in flight to the coordinator's actor. Acceptance is timed from
sending a request to the answer that says that it is durable. Afterwards every request must be in the log, once.
Then a log is written of 100,000 entries, and opened with and without its snapshots.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.keys import canonical_json
from sisa_ray.core.records import LOG_VERSION, RequestsFenced, dump_record
from sisa_ray.execution import commands, desk, hosting
from sisa_ray.execution.acceptance import Submission
from sisa_ray.execution.client import find_actor
from sisa_ray.execution.opening import existing_run
from sisa_ray.storage import layout
from sisa_ray.storage.log import CommitLog, Head
from sisa_ray.storage.objects import open_store
from sisa_ray.storage.run import Run


def configuration(directory: Path, storage: str) -> SisaConfig:
    """A small trained run whose batches wait for more requests than there will be."""
    rng = np.random.default_rng(0)
    features = rng.random((400, 8), dtype=np.float32)
    table = pa.table(
        {
            "id": [f"p{i}" for i in range(400)],
            "x": pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), 8),
            "y": pa.array(rng.integers(0, 3, 400)),
        }
    )
    pq.write_table(table, directory / "train.parquet")
    return SisaConfig.from_mapping(
        {
            "name": f"load-{uuid.uuid4().hex[:8]}",
            "storage_path": storage,
            "data": {
                "train": str(directory / "train.parquet"),
                "record_id": "id",
                "columns": {"features": "x", "label": "y"},
            },
            "recipe": {
                "class": "sisa_ray.recipes.MLPClassifier",
                "args": {"hidden": [16], "num_classes": 3, "lr": 0.01, "batch_size": 16},
            },
            "sisa": {"num_shards": 2, "num_slices": 2, "epochs": 1},
            "unlearning": {"batching": "size", "batch_size": 1_000_000},
        }
    )


def one_client(handle: Any, keys: list[str], in_flight: int) -> list[float]:
    """Send one request a key, so many at a time; seconds until each was accepted."""
    latencies: list[float] = []
    waiting: dict[Any, float] = {}
    left = list(keys)
    while left or waiting:
        while left and len(waiting) < in_flight:
            key = left.pop()
            submission = Submission(subjects=(f"person {key}",), key=key)
            waiting[handle.submit.remote([submission])] = time.perf_counter()
        done, _ = ray.wait(list(waiting), num_returns=1)
        for ref in done:
            latencies.append(time.perf_counter() - waiting.pop(ref))
            (answer,) = ray.get(ref)
            assert answer.is_new, answer
    return latencies


def load(config: SisaConfig, *, num_requests: int, num_clients: int, in_flight: int) -> dict[str, object]:
    """Accept requests from several clients at once."""
    hosting.start_coordinator(config.address)
    handle = find_actor(config.address)

    def clients(name: str, count: int) -> list[float]:
        keys = [[f"{name}-{n}-{i}" for i in range(count)] for n in range(num_clients)]
        with ThreadPoolExecutor(num_clients) as pool:
            done = pool.map(lambda k: one_client(handle, k, in_flight), keys)
            return [latency for latencies in done for latency in latencies]

    num_warm = len(clients("warm", 50))
    entries_before = existing_run(config).head.seq
    started = time.perf_counter()
    latencies = clients("request", num_requests // num_clients)
    seconds = time.perf_counter() - started
    hosting.stop_coordinator(config.address)
    run = existing_run(config)
    assert len(desk.list_requests(config).rows) == len(latencies) + num_warm, "a request was lost or doubled"
    return {
        "requests": len(latencies),
        "clients": num_clients,
        "in_flight_each": in_flight,
        "per_second": round(len(latencies) / seconds),
        "p50_ms": round(1000 * statistics.median(latencies), 1),
        "p99_ms": round(1000 * statistics.quantiles(latencies, n=100)[98], 1),
        "log_entries": run.head.seq - entries_before,
        "lost": 0,
        "doubled": 0,
    }


def long_log(config: SisaConfig, *, num_entries: int) -> dict[str, object]:
    """Open a run after so many more entries (requests fenced again and again), from its snapshot and without."""
    run = existing_run(config)
    store = open_store(config.address)
    with run.lock:
        requests = tuple(list(run.state.requests)[:2])
    head = run.head
    for _ in range(num_entries):
        head = _write_entry(store, head, requests, run)
    started = time.perf_counter()
    for info in list(store.list(layout.SNAPSHOTS)):
        store.delete([info.path])
    whole = existing_run(config)
    without = time.perf_counter() - started
    whole.snapshot()
    for _ in range(499):
        head = _write_entry(store, head, requests, run)
    started = time.perf_counter()
    opened = existing_run(config)
    seconds = time.perf_counter() - started
    assert opened.head == head
    return {
        "entries": opened.head.seq + 1,
        "open_s": round(seconds, 2),
        "open_without_snapshot_s": round(without, 2),
    }


def _write_entry(store: object, head: Head, requests: tuple[str, ...], run: Run) -> Head:
    """As :meth:`CommitLog.append`, but not durable: what is measured is reading."""
    log = CommitLog(store)  # type: ignore[arg-type]
    data = canonical_json(
        {
            "version": LOG_VERSION,
            "seq": head.seq + 1,
            "prev": head.digest,
            "commit": uuid.uuid4().hex,
            "at": log.now().isoformat(),
            "records": [dump_record(RequestsFenced(requests=requests))],
        }
    )
    path = layout.entry_path(head.seq + 1)
    if run.address.startswith("s3://"):
        store.put(path, data)  # type: ignore[attr-defined]
    else:
        Path(run.address, path).write_bytes(data)
    from sisa_ray.core.keys import file_digest

    return Head(seq=head.seq + 1, digest=file_digest(data))


def main() -> None:
    """Run the benchmark and print its figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--storage", default=None, help="where runs lie (default: a temporary directory)")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument(
        "--entries", type=int, default=100_000, help="length of the long log; 0: leave it out"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        os.environ.setdefault("SISA_RAY_KEYRING", f"{directory}/keys")
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        config = configuration(Path(directory), args.storage or f"{directory}/runs")
        commands.train(config)
        figures: dict[str, object] = {"storage": args.storage or "local directory"}
        figures |= load(
            config, num_requests=args.requests, num_clients=args.clients, in_flight=args.in_flight
        )
        if args.entries:
            figures["long_log"] = long_log(config, num_entries=args.entries)
        print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
