from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from sisa_ray.core.errors import ConfigError, DataError, ExecutionError, RecipeError, StorageDenied
from sisa_ray.core.keys import tags
from sisa_ray.core.partition import Layout
from sisa_ray.execution.ingest import ingest_with_ray
from sisa_ray.storage.ingest import IngestJob, ingest_direct
from sisa_ray.storage.local import LocalStore
from tests.storage.source_tables import KEY, data_config, make_job, people, write_parts

pytestmark = [
    pytest.mark.usefixtures("ray_local"),
    # Ray Data's own, at its import and in its defaults.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def objects(job: IngestJob) -> dict[str, bytes]:
    return {info.path: job.store.get(info.path) for info in job.store.list("", all_versions=True)}


def test_ray_ends_in_the_same_bytes_as_one_process(tmp_path: Path) -> None:
    table = people(2000)
    config = data_config(write_parts(tmp_path / "table", table, num_files=3, row_group_size=300))
    settings = {"order_buckets": 2, "suppressed": frozenset(tags(KEY, ["p3", "p600"]))}
    direct, parallel = (make_job(config, tmp_path / name, **settings) for name in ("direct", "ray"))
    told: list[int] = []
    done = ingest_with_ray(parallel, piece_bytes=20_000, on_progress=told.append)
    assert done == ingest_direct(direct)
    assert objects(parallel) == objects(direct)
    assert (done.num_rows, done.num_refused) == (2000, 6)
    assert len(told) > 2
    assert told == sorted(told)
    assert told[-1] == 2000


def test_the_terminal_belongs_to_our_own_display(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = next(h for h in logging.getLogger("ray.data").handlers if h.name == "console")
    shown: list[logging.LogRecord] = []
    monkeypatch.setattr(console, "emit", shown.append)
    level = console.level
    config = data_config(write_parts(tmp_path / "table", people(300)))
    ingest_with_ray(make_job(config, tmp_path / "store"), piece_bytes=5000)
    assert shown == []
    assert console.level == level


def test_chosen_shards_alone(tmp_path: Path) -> None:
    config = data_config(write_parts(tmp_path / "table", people(300)))
    direct, parallel = (make_job(config, tmp_path / name, only_shards=(1,)) for name in ("direct", "ray"))
    assert ingest_with_ray(parallel, piece_bytes=5000) == ingest_direct(direct)


def no_reds(columns: Mapping[str, pa.Array]) -> Iterable[tuple[int, str]]:
    return ((row, "no reds") for row, word in enumerate(columns["word"].to_pylist()) if word == "red")


@pytest.mark.parametrize("piece_bytes", [3000, None])
def test_broken_rules_from_all_over_the_table_are_one_error_and_nothing_stays(
    tmp_path: Path, piece_bytes: int | None
) -> None:
    table = people(300).set_column(
        6, "word", pa.array(["red" if i in (7, 290) else "blue" for i in range(300)])
    )
    table = pa.concat_tables([table, table.slice(2, 1), table.slice(299, 1)])
    config = data_config(write_parts(tmp_path / "table", table))
    job = make_job(config, tmp_path / "store", problems=no_reds)
    with pytest.raises(DataError) as caught:
        ingest_with_ray(job, piece_bytes=piece_bytes)
    assert str(caught.value).splitlines()[1:] == [
        "  record id is not unique: rows 2, 299, 300, 301",
        "  no reds: rows 7, 290",
    ]
    assert objects(job) == {}


def test_more_shards_than_subjects_leave_nothing(tmp_path: Path) -> None:
    config = data_config(write_parts(tmp_path / "table", people(12)))
    job = make_job(config, tmp_path / "store", layout=Layout(num_shards=5, num_slices=1, seed=0))
    with pytest.raises(ConfigError, match="num_shards: is 5"):
        ingest_with_ray(job, piece_bytes=500)
    assert objects(job) == {}


class ReadOnly(LocalStore):
    """A store whose server refuses to take data objects, in whichever process."""

    def put(self, path: str, data: bytes | memoryview) -> None:
        if path.startswith("data/"):
            raise StorageDenied(f"{path}: not here")
        super().put(path, data)


def test_errors_of_storage_come_back_as_they_are(tmp_path: Path) -> None:
    config = data_config(write_parts(tmp_path / "table", people(60)))
    job = make_job(config, tmp_path / "store", store=ReadOnly(str(tmp_path / "store")))
    with pytest.raises(StorageDenied, match="not here"):
        ingest_with_ray(job, piece_bytes=500)
    assert objects(job) == {}


def fail(columns: Mapping[str, pa.Array]) -> Iterable[tuple[int, str]]:
    raise RuntimeError("Ada Lovelace")


def test_a_recipe_that_fails_is_named_without_what_it_quotes(tmp_path: Path) -> None:
    config = data_config(write_parts(tmp_path / "table", people(60)))
    job = make_job(config, tmp_path / "store", problems=fail)
    with pytest.raises(
        RecipeError, match=r"failed on rows \d+ to \d+: RuntimeError at .*test_ingest"
    ) as caught:
        ingest_with_ray(job, piece_bytes=500)
    assert "Ada" not in str(caught.value)
    assert objects(job) == {}


class Broken(LocalStore):
    """A store with a bug."""

    def put(self, path: str, data: bytes | memoryview) -> None:
        raise ZeroDivisionError(path)


def test_a_task_that_fails_for_another_reason_is_an_error_of_execution(tmp_path: Path) -> None:
    config = data_config(write_parts(tmp_path / "table", people(60)))
    job = make_job(config, tmp_path / "store", store=Broken(str(tmp_path / "store")))
    with pytest.raises(ExecutionError, match=r"ingest failed: ZeroDivisionError at .*test_ingest\.py:\d+$"):
        ingest_with_ray(job, piece_bytes=500)


def die_once(marker: str, columns: Mapping[str, pa.Array]) -> Iterable[tuple[int, str]]:
    if not Path(marker).exists():
        Path(marker).touch()
        os._exit(1)
    return iter(())


@pytest.mark.crash
def test_a_worker_that_dies_changes_nothing(tmp_path: Path) -> None:
    config = data_config(write_parts(tmp_path / "table", people(300)))
    direct = make_job(config, tmp_path / "direct")
    problems = partial(die_once, str(tmp_path / "died"))
    parallel = make_job(config, tmp_path / "ray", problems=problems)
    assert ingest_with_ray(parallel, piece_bytes=5000) == ingest_direct(direct)
    assert objects(parallel) == objects(direct)
    assert (tmp_path / "died").exists()
