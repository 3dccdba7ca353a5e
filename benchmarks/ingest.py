"""Ingest of a large table on a local Ray: peak memory of everything, records a second, speed of routing.

    python benchmarks/ingest.py                             # 10 million records of 8 features through Ray
    python benchmarks/ingest.py --records 30000000 --max-gib 4
    python benchmarks/ingest.py --path direct               # the same in one process, without Ray

Memory is the sum over this process and all its descendants (Ray's services and workers) of what each holds
alone or its share of what it holds with others, plus what lies in shared memory (Ray's object store).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sisa_ray.core.config import DataConfig
from sisa_ray.core.keys import tags
from sisa_ray.core.partition import Layout, place
from sisa_ray.storage.ingest import IngestJob, ingest_direct
from sisa_ray.storage.objects import open_store
from sisa_ray.storage.source import open_source

NUM_SHARDS, NUM_SLICES = 20, 10
PIECE_RECORDS = 500_000
GIB = 2**30


def write_table(path: Path, *, num_records: int, num_features: int) -> None:
    """A table of float64 features, written in pieces so that its size does not show in the measurement."""
    rng = np.random.default_rng(0)
    writer = None
    for start in range(0, num_records, PIECE_RECORDS):
        size = min(PIECE_RECORDS, num_records - start)
        features = {f"x{i}": rng.standard_normal(size) for i in range(num_features)}
        table = pa.table(
            {"id": np.arange(start, start + size), **features, "label": rng.integers(0, 10, size)}
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


class MemorySampler:
    """Peak memory in bytes of this process and its descendants while the ``with`` block runs."""

    def __init__(self, every_s: float = 0.25) -> None:
        # Ray's services outlive those that start them; whoever is orphaned becomes a child of this process.
        set_child_subreaper = 36
        ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)
        self._every_s = every_s
        self._shared_before = _shared_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.peak_bytes = 0

    def __enter__(self) -> MemorySampler:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._done.set()
        self._thread.join()

    def now_bytes(self) -> int:
        private = sum(_proportional_bytes(pid) for pid in _descendants(os.getpid()))
        return private + _shared_bytes() - self._shared_before

    def _run(self) -> None:
        while not self._done.wait(self._every_s):
            self.peak_bytes = max(self.peak_bytes, self.now_bytes())


def _descendants(pid: int) -> list[int]:
    found = [pid]
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _descendants(int(child))
    except OSError:
        pass  # it has just ended
    return found


def _proportional_bytes(pid: int) -> int:
    """Proportional set size without shared memory, which is counted once and as a whole."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return sizes.get("Pss", 0) - sizes.get("Pss_Shmem", 0)


def _shared_bytes() -> int:
    usage = shutil.disk_usage("/dev/shm")
    return usage.used


def measure_routing(num_subjects: int = 1_000_000) -> float:
    """Subjects a second that one core finds the slice of."""
    subjects = [f"customer-{i:09d}" for i in range(num_subjects)]
    layout = Layout(num_shards=NUM_SHARDS, num_slices=NUM_SLICES, seed=0)
    started = time.process_time()
    place(subjects, layout)
    return num_subjects / (time.process_time() - started)


def make_job(table: Path, directory: Path, *, num_features: int) -> IngestJob:
    features = tuple(f"x{i}" for i in range(num_features))
    data = DataConfig(
        train=str(table), record_id="id", subject_id="id", columns={"features": features, "label": "label"}
    )
    key = bytes(32)
    return IngestJob(
        source=open_source(data),
        store=open_store(str(directory)),
        attempt="benchmark",
        layout=Layout(num_shards=NUM_SHARDS, num_slices=NUM_SLICES, seed=0),
        order_buckets=1,
        content_key=key,
        suppressed=frozenset(tags(key, ["17"])),
        tag=partial(tags, key),
    )


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--features", type=int, default=8)
    parser.add_argument("--path", choices=["ray", "direct"], default="ray", help="how the table is ingested")
    parser.add_argument("--cpus", type=int, default=2, help="of the local Ray")
    parser.add_argument("--object-store-mib", type=int, default=256, help="of the local Ray")
    parser.add_argument("--max-gib", type=float, default=None, help="exit with 1 where the peak is higher")
    parser.add_argument("--directory", type=Path, default=None, help="for the table and the slices")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as temporary:
        table = Path(temporary) / "train.parquet"
        store = Path(temporary) / "run"
        store.mkdir()
        write_table(table, num_records=options.records, num_features=options.features)
        pa.default_memory_pool().release_unused()
        with MemorySampler() as sampler:
            if options.path == "ray":
                import ray

                from sisa_ray.execution.ingest import ingest_with_ray

                ray.init(
                    num_cpus=options.cpus,
                    object_store_memory=options.object_store_mib * 2**20,
                    include_dashboard=False,
                    log_to_driver=False,
                )
            ingest = ingest_with_ray if options.path == "ray" else ingest_direct
            idle_bytes = sampler.now_bytes()
            started = time.perf_counter()
            done = ingest(make_job(table, store, num_features=options.features))
            seconds = time.perf_counter() - started
        assert done.num_rows == options.records
        assert sum(ref.num_records for ref in done.slices) == options.records - 1
    peak_gib = sampler.peak_bytes / GIB
    report = {
        "path": options.path,
        "records": options.records,
        "features": options.features,
        "seconds": round(seconds, 1),
        "records_per_s": round(options.records / seconds),
        "idle_gib": round(idle_bytes / GIB, 2),
        "peak_gib": round(peak_gib, 2),
        "routed_subjects_per_s_and_core": round(measure_routing()),
    }
    print(json.dumps(report, indent=2))
    if options.max_gib is not None and peak_gib > options.max_gib:
        sys.exit(1)


if __name__ == "__main__":
    main()
