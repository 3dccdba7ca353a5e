from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sisa_ray.core.errors import DataError
from sisa_ray.core.keys import UInt64Array
from sisa_ray.core.partition import Layout
from sisa_ray.storage import staging as staging_module
from sisa_ray.storage.ingest import IngestJob, ingest_direct
from sisa_ray.storage.objects import open_store
from sisa_ray.storage.staging import Staging
from tests.storage.source_tables import data_config, make_job, people, write_parts


def staged_job(tmp_path: Path, table: pa.Table, **changes: object) -> IngestJob:
    return make_job(data_config(write_parts(tmp_path / "table", table)), tmp_path / "store", **changes)


def test_tasks_are_cut_by_size(tmp_path: Path) -> None:
    job = staged_job(tmp_path, people(400), layout=Layout(num_shards=10, num_slices=10, seed=0))
    size = job.source.num_bytes
    plan = Staging.plan(job, piece_bytes=size // 8)
    assert 8 <= len(plan.parts) <= 10
    assert len(plan.groups) == 8
    assert [p for group in plan.groups for p in group] == list(range(100))
    assert len(Staging.plan(job, piece_bytes=10 * size).groups) == 1
    assert len(Staging.plan(job, piece_bytes=1).groups) == 100


def test_a_large_part_makes_several_pieces(tmp_path: Path) -> None:
    table = people(400)
    directory = write_parts(tmp_path / "table", table, row_group_size=400)
    job = make_job(data_config(directory), tmp_path / "store")
    plan = Staging.plan(job, piece_bytes=2000)
    assert len(plan.parts) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sisa_ray.storage.source._BATCH_BYTES", 500)
        patch.setattr(
            type(job.source).read, "__kwdefaults__", {"max_rows": 20, "max_bytes": 500, "use_threads": False}
        )
        report = plan.stage(0)
    assert len(report.pieces) > 3
    pieces, tally = plan.checked([report])
    done = plan.finished([ref for g in range(len(plan.groups)) for ref in plan.store_group(g, pieces)], tally)
    assert done == ingest_direct(job)


def test_a_task_done_twice_leaves_one_copy(tmp_path: Path) -> None:
    plan = Staging.plan(staged_job(tmp_path, people()), piece_bytes=1000)
    first, second = plan.stage(0), plan.stage(0)
    assert first == second
    store = plan.job.store
    assert [info.path for info in store.list("")] == [p.path for p in first.pieces]
    assert all(p.path.startswith("scratch/attempt/ingest/") for p in first.pieces)
    plan.clear()
    assert list(store.list("", all_versions=True)) == []


def colliding(ids: list[str], *, seed: int) -> UInt64Array:
    """Hashes that tell little."""
    return np.array([len(i) % 3 for i in ids], dtype=np.uint64) << np.uint64(62)


@pytest.mark.parametrize("num_twins", [0, 2])
def test_hashes_that_collide_are_no_duplicates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_twins: int
) -> None:
    monkeypatch.setattr(staging_module, "record_hashes", colliding)
    table = people()
    table = pa.concat_tables([table, table.slice(20, num_twins)])
    plan = Staging.plan(staged_job(tmp_path, table), piece_bytes=1000)
    reports = [plan.stage(part) for part in range(len(plan.parts))]
    if num_twins:
        with pytest.raises(DataError, match=r"record id is not unique: rows 20, 21, 60, 61$"):
            plan.checked(reports)
    else:
        plan.checked(reports)


@pytest.mark.parametrize("step_bytes", [1, 100, 10_000])
def test_duplicates_are_found_in_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_bytes: int
) -> None:
    monkeypatch.setattr(staging_module, "_INDEX_BYTES", step_bytes)
    table = people()
    plan = Staging.plan(staged_job(tmp_path, pa.concat_tables([table, table.slice(1, 3)])), piece_bytes=1000)
    with pytest.raises(DataError, match=r"record id is not unique: rows 1, 2, 3, 60, 61 and 1 more$"):
        plan.checked([plan.stage(part) for part in range(len(plan.parts))])


@pytest.mark.s3
def test_staging_on_s3(tmp_path: Path, s3_bucket: str) -> None:
    table = people(200)
    data = data_config(write_parts(tmp_path / "table", table))
    job = make_job(data, tmp_path / "local", store=open_store(f"s3://{s3_bucket}/run"))
    plan = Staging.plan(job, piece_bytes=3000)
    pieces, tally = plan.checked([plan.stage(part) for part in range(len(plan.parts))])
    done = plan.finished([ref for g in range(len(plan.groups)) for ref in plan.store_group(g, pieces)], tally)
    plan.clear()
    assert done == ingest_direct(make_job(data, tmp_path / "local"))
    stored = {info.path for info in job.store.list("", all_versions=True)}
    assert stored == {ref.path for ref in done.slices if ref.path is not None}
