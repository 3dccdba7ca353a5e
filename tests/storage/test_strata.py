"""Strata at ingest: by a column or by a table of subjects, by either way of ingest."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sisa_ray.core.errors import DataError
from sisa_ray.core.keys import UInt64Array
from sisa_ray.core.partition import Layout, Region, place
from sisa_ray.storage import staging as staging_module
from sisa_ray.storage import strata as strata_module
from sisa_ray.storage.ingest import Ingested, IngestJob, ingest_direct
from sisa_ray.storage.source import open_source
from sisa_ray.storage.staging import Staging
from sisa_ray.storage.tables import read_slice
from tests.storage.source_tables import data_config, make_job, people, write_parts
from tests.storage.test_ingest import BOTH

Ingest = Callable[[IngestJob], Ingested]

EARLY = Region(first_shard=0, end_shard=3, first_slice=1, last_slice=3)
LATE = Region(first_shard=1, end_shard=3, first_slice=4, last_slice=4)
LAYOUT = Layout(num_shards=3, num_slices=4, seed=5, regions=(("eu", LATE), ("us", EARLY)))


def stratum_of(person: str) -> str:
    """One person in three is in the EU."""
    return "eu" if int(person[1:]) % 3 == 0 else "us"


def with_strata(table: pa.Table, name: str = "country") -> pa.Table:
    return table.append_column(name, pa.array([stratum_of(p) for p in table["person"].to_pylist()]))


def replaced(table: pa.Table, rows: list[int], stratum: str | None) -> pa.Table:
    strata = table["country"].to_pylist()
    for row in rows:
        strata[row] = stratum
    return table.set_column(table.schema.get_field_index("country"), "country", pa.array(strata, pa.string()))


def job_of(tmp_path: Path, table: pa.Table, *, num_files: int = 3, **data: Any) -> IngestJob:
    directory = write_parts(tmp_path / "table", table, num_files=num_files)
    config = data_config(directory).model_copy(update={"stratum": "country", **data})
    return make_job(config, tmp_path / "store", layout=LAYOUT)


def strata_table(tmp_path: Path, rows: dict[str, str | None]) -> str:
    """Who is in which stratum, in two files."""
    (tmp_path / "strata").mkdir()
    for number in range(2):
        part = list(rows.items())[number::2]
        columns = {
            "person": pa.array([p for p, _ in part], pa.string()),
            "country": pa.array([s for _, s in part], pa.string()),
        }
        pq.write_table(pa.table(columns), tmp_path / "strata" / f"{number}.parquet")
    return str(tmp_path / "strata")


def refusal(job: IngestJob, ingest: Ingest) -> str:
    """What is said when the table is refused, without the files."""
    with pytest.raises(DataError) as refused:
        ingest(job)
    assert list(job.store.list("")) == []
    return re.sub(r" \(part-\d\.parquet: \d+\)", "", str(refused.value))


def held(job: IngestJob, done: Ingested) -> dict[str, set[tuple[int, int]]]:
    found: dict[str, set[tuple[int, int]]] = {}
    for ref in done.slices:
        if ref.path is not None:
            table = read_slice(job.store.get(ref.path))
            names = table["subject_id" if "subject_id" in table.column_names else "record_id"].to_pylist()
            for person in names:
                found.setdefault(person, set()).add((ref.shard, ref.slice))
    return found


def expected(names: list[str]) -> dict[str, set[tuple[int, int]]]:
    found = {}
    for name in names:
        shards, slices = place([name], LAYOUT, stratum_of(name))
        found[name] = {(int(shards[0]), int(slices[0]))}
    return found


@BOTH
@pytest.mark.parametrize("is_dictionary", [False, True])
def test_everybody_is_where_the_stratum_and_the_key_say(
    tmp_path: Path, ingest: Ingest, is_dictionary: bool
) -> None:
    table = with_strata(people(90))
    if is_dictionary:
        table = table.set_column(8, "country", table["country"].dictionary_encode())
    job = job_of(tmp_path, table)
    assert held(job, ingest(job)) == expected(list(dict.fromkeys(table["person"].to_pylist())))


@BOTH
def test_a_table_of_subjects_says_the_same_as_a_column(tmp_path: Path, ingest: Ingest) -> None:
    table = people(90)
    names = list(dict.fromkeys(table["person"].to_pylist()))
    url = strata_table(tmp_path, {name: stratum_of(name) for name in [*names, "p9999"]})
    job = job_of(tmp_path, table, strata_table=url)
    assert held(job, ingest(job)) == expected(names)


@BOTH
def test_where_the_subject_is_the_record(tmp_path: Path, ingest: Ingest) -> None:
    table = people(90, records_per_person=1)
    table = with_strata(table).drop_columns(["id"])
    job = job_of(tmp_path, table, record_id="person", subject_id="person")
    assert held(job, ingest(job)) == expected(table["person"].to_pylist())


@BOTH
def test_strata_that_are_missing_or_not_declared_are_refused_by_row(tmp_path: Path, ingest: Ingest) -> None:
    table = replaced(replaced(with_strata(people()), [3, 4, 5], "uk"), [33, 34, 35], None)
    message = refusal(job_of(tmp_path, table), ingest)
    assert "stratum (column 'country') is none of sisa.strata: rows 3" in message
    assert "stratum (column 'country') is null: rows 33" in message
    assert "uk" not in message


@BOTH
@pytest.mark.parametrize("rows", [[17], [0], [59], [0, 17, 59]])
def test_a_subject_in_two_strata_is_refused(tmp_path: Path, ingest: Ingest, rows: list[int]) -> None:
    """Their records are in different batches, pieces and files, for people are cut anywhere."""
    table = with_strata(people(60))
    shuffled = table.take(np.random.default_rng(3).permutation(60))
    names = shuffled["person"].to_pylist()
    for row in rows:
        other = "us" if stratum_of(names[row]) == "eu" else "eu"
        shuffled = replaced(shuffled, [row], other)
    torn = [i for i, name in enumerate(names) if name in {names[row] for row in rows}]
    more = f" and {len(torn) - 5} more" if len(torn) > 5 else ""
    message = refusal(job_of(tmp_path, shuffled), ingest)
    assert message.endswith(f"\n  subject is in two strata: rows {', '.join(map(str, torn[:5]))}{more}")


def colliding(keys: list[str], *, seed: int) -> UInt64Array:
    """Hashes that tell little."""
    return np.array([len(k) % 3 for k in keys], dtype=np.uint64) << np.uint64(62)


@pytest.mark.parametrize("is_torn", [False, True])
def test_hashes_that_collide_tear_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_torn: bool
) -> None:
    monkeypatch.setattr(staging_module, "record_hashes", colliding)
    monkeypatch.setattr(staging_module, "_INDEX_BYTES", 200)
    table = with_strata(people())
    if is_torn:
        table = replaced(table, [20], "us" if stratum_of(table["person"][20].as_py()) == "eu" else "eu")
    plan = Staging.plan(job_of(tmp_path, table), piece_bytes=700)
    reports = [plan.stage(part) for part in range(len(plan.parts))]
    assert sum(len(report.pieces) for report in reports) > 3
    if is_torn:
        with pytest.raises(
            DataError, match=r"in two strata: rows 18 \(.*\), 19 \(.*\), 20 \(part-1.parquet: 0\)$"
        ):
            plan.checked(reports)
    else:
        plan.checked(reports)


@BOTH
def test_whoever_the_table_of_strata_lacks_is_refused(tmp_path: Path, ingest: Ingest) -> None:
    table = people()
    names = dict.fromkeys(table["person"].to_pylist())
    url = strata_table(tmp_path, {n: stratum_of(n) for n in names if n != "p7"})
    message = refusal(job_of(tmp_path, table, strata_table=url), ingest)
    assert message.endswith("\n  subject is not in data.strata_table: rows 21, 22, 23")


def test_an_empty_table_of_strata_knows_nobody(tmp_path: Path) -> None:
    url = strata_table(tmp_path, {})
    message = refusal(job_of(tmp_path, people(), strata_table=url), ingest_direct)
    assert message.endswith("\n  subject is not in data.strata_table: rows 0, 1, 2, 3, 4 and 55 more")


def test_a_table_of_strata_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    url = strata_table(tmp_path, {"p0": "eu", "p1": "us", "p2": None})
    pq.write_table(
        pa.table({"person": ["p0", "p1"], "country": ["eu", "eu"]}), tmp_path / "strata" / "2.parquet"
    )
    job = job_of(tmp_path, people(), strata_table=url)
    with pytest.raises(DataError, match="column 'country' is null: row 1"):
        ingest_direct(job)
    (tmp_path / "strata" / "0.parquet").unlink()
    with pytest.raises(DataError, match=r"strata: breaks rules(.|\n)*subject is in two strata: row 2$"):
        ingest_direct(job)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"persn": ["a"], "country": ["eu"]},
            r"must have one column 'person' \(data.subject_id\); did you mean",
        ),
        ({"person": ["a"], "land": ["eu"]}, r"must have one column 'country' \(data.stratum\)"),
        ({"person": [1.5], "country": ["eu"]}, "column 'person' is of type double, but keys are"),
    ],
)
def test_a_table_of_strata_needs_its_columns(
    tmp_path: Path, columns: dict[str, list[object]], message: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "s.parquet")
    with pytest.raises(DataError, match=f"data.strata_table: {message}"):
        ingest_direct(job_of(tmp_path, people(), strata_table=str(tmp_path / "s.parquet")))


def test_the_column_of_strata_must_be_there_and_be_keys(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.stratum: the table has no column 'country'"):
        job_of(tmp_path, people())
    with pytest.raises(DataError, match=r"data\.stratum: column 'a' is of type double"):
        job_of(tmp_path / "b", people(), stratum="a")


def test_integers_are_strata_by_their_digits(tmp_path: Path) -> None:
    table = people().append_column("country", pa.array([p % 2 for p in range(60)]))
    regions = (("0", EARLY), ("1", LATE))
    layout = Layout(num_shards=3, num_slices=4, seed=5, regions=regions)
    data = data_config(write_parts(tmp_path / "table", table), subject="id").model_copy(
        update={"stratum": "country"}
    )
    done = ingest_direct(make_job(data, tmp_path / "store", layout=layout))
    assert sum(ref.num_records for ref in done.slices if ref.slice == 4) == 30


def test_workers_read_the_table_of_strata_themselves(tmp_path: Path) -> None:
    table = people(30)
    url = strata_table(tmp_path, {n: stratum_of(n) for n in dict.fromkeys(table["person"].to_pylist())})
    source = job_of(tmp_path, table, strata_table=url).source
    before = len(pickle.dumps(source))
    assert next(iter(source.read())).strata is not None
    assert len(pickle.dumps(source)) == before
    again = next(iter(pickle.loads(pickle.dumps(source)).read())).strata
    assert again.to_pylist() == [stratum_of(p) for p in table["person"].to_pylist()][: len(again)]


def test_prediction_needs_no_strata(tmp_path: Path) -> None:
    data = data_config(write_parts(tmp_path / "table", people())).model_copy(update={"stratum": "country"})
    assert next(iter(open_source(data, for_training=False).read())).strata is None


def test_a_large_table_of_strata_is_read_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strata_module, "_BATCH_ROWS", 2)
    names = [f"p{i}" for i in range(30)]
    url = strata_table(tmp_path, {n: stratum_of(n) for n in names})
    data = data_config("x").model_copy(update={"stratum": "country", "strata_table": url})
    found = strata_module.read_strata(data).of(pa.array([*names, "nobody", None]))
    assert found.to_pylist() == [*map(stratum_of, names), None, None]
