from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sisa_ray.core.errors import ConfigError, DataError, RecipeError
from sisa_ray.core.keys import file_digest, tags
from sisa_ray.core.partition import Layout, place
from sisa_ray.storage.ingest import Ingested, IngestJob, ingest_direct
from sisa_ray.storage.staging import Staging
from sisa_ray.storage.tables import read_slice
from tests.storage.source_tables import (
    KEY,
    data_config,
    digests,
    expected_slices,
    make_job,
    people,
    write_parts,
)

Ingest = Callable[[IngestJob], Ingested]


def ingest_staged(job: IngestJob, *, piece_bytes: int = 700) -> Ingested:
    """What the execution layer does with Ray, here in one process and in a perverse order."""
    staging: Staging = pickle.loads(pickle.dumps(Staging.plan(job, piece_bytes=piece_bytes)))
    reports = [staging.stage(part) for part in reversed(range(len(staging.parts)))]
    reports = [type(report).model_validate_json(report.model_dump_json()) for report in reports]
    try:
        pieces, tally = staging.checked(reports)
        slices = [ref for g in reversed(range(len(staging.groups))) for ref in staging.store_group(g, pieces)]
        return staging.finished(slices, tally)
    finally:
        staging.clear()


BOTH = pytest.mark.parametrize("ingest", [ingest_direct, ingest_staged])


def objects(job: IngestJob) -> dict[str, bytes]:
    return {info.path: job.store.get(info.path) for info in job.store.list("")}


def summary(done: Ingested) -> dict[tuple[int, int], tuple[str, int, int]]:
    return {(s.shard, s.slice): (s.content_digest, s.num_records, s.num_subjects) for s in done.slices}


@BOTH
def test_every_slice_holds_its_records_and_is_described_truly(tmp_path: Path, ingest: Ingest) -> None:
    table = people()
    job = make_job(data_config(write_parts(tmp_path / "table", table, num_files=3)), tmp_path / "store")
    done = ingest(job)
    expected = expected_slices(table, job.layout)
    assert summary(done) == digests(expected)
    assert [(s.shard, s.slice) for s in done.slices] == sorted(expected)
    assert (done.num_rows, done.num_refused) == (60, 0)
    stored = objects(job)
    assert set(stored) == {s.path for s in done.slices if s.path is not None}
    for ref in done.slices:
        if ref.path is None:
            assert (ref.num_records, ref.file_digest, ref.size_bytes) == (0, None, 0)
            continue
        assert (
            ref.path
            == f"data/shard={ref.shard:05d}/slice={ref.slice:04d}/attempt/{ref.content_digest[:16]}.parquet"
        )
        assert (file_digest(stored[ref.path]), len(stored[ref.path])) == (ref.file_digest, ref.size_bytes)
        back = read_slice(stored[ref.path])
        wanted = expected[ref.shard, ref.slice].sort_by("record_id")
        assert back.equals(wanted)
        assert done.role_schema.names == back.schema.names[2:]


@settings(max_examples=40)
@given(
    num_rows=st.integers(1, 80),
    records_per_person=st.integers(1, 9),
    num_files=st.integers(1, 3),
    row_group_size=st.integers(1, 40),
    order_buckets=st.integers(1, 3),
    piece_bytes=st.integers(1, 4000),
    num_slices=st.integers(1, 5),
    shuffle=st.randoms(use_true_random=False),
)
def test_one_table_ends_in_the_same_bytes_by_either_way_however_it_is_cut_and_ordered(
    tmp_path_factory: pytest.TempPathFactory,
    num_rows: int,
    records_per_person: int,
    num_files: int,
    row_group_size: int,
    order_buckets: int,
    piece_bytes: int,
    num_slices: int,
    shuffle: np.random.RandomState,
) -> None:
    tmp_path = tmp_path_factory.mktemp("run")
    table = people(num_rows, records_per_person=records_per_person)
    order = list(range(num_rows))
    shuffle.shuffle(order)
    layout = Layout(num_shards=1, num_slices=num_slices, seed=3)
    make = partial(make_job, order_buckets=order_buckets, layout=layout)
    one = write_parts(tmp_path / "one", table, row_group_size=row_group_size)
    other = write_parts(
        tmp_path / "other", table.take(order), num_files=num_files, row_group_size=row_group_size
    )
    direct, staged = make(data_config(one), tmp_path / "a"), make(data_config(other), tmp_path / "b")
    first, second = ingest_direct(direct), ingest_staged(staged, piece_bytes=piece_bytes)
    assert first == second
    assert summary(first) == digests(expected_slices(table, layout))
    assert objects(direct) == objects(staged)


@BOTH
def test_the_record_is_its_own_subject_by_default(tmp_path: Path, ingest: Ingest) -> None:
    table = people(40)
    job = make_job(data_config(write_parts(tmp_path / "table", table), subject="id"), tmp_path / "store")
    done = ingest(job)
    shards, slices = place([str(i) for i in table["id"].to_pylist()], job.layout)
    for ref in done.slices:
        here = (shards == ref.shard) & (slices == ref.slice)
        assert ref.num_records == ref.num_subjects == int(here.sum())
        if ref.path is not None:
            assert "subject_id" not in read_slice(job.store.get(ref.path)).schema.names


@BOTH
@pytest.mark.parametrize("names", [["p3"], ["p0", "p7", "nobody"], [f"p{i}" for i in range(20)]])
def test_suppressed_people_are_refused_and_counted(tmp_path: Path, ingest: Ingest, names: list[str]) -> None:
    table = people()
    job = make_job(
        data_config(write_parts(tmp_path / "table", table)),
        tmp_path / "store",
        suppressed=frozenset(tags(KEY, names)),
    )
    done = ingest(job)
    assert summary(done) == digests(expected_slices(table, job.layout, erased=frozenset(names)))
    assert done.num_refused == 3 * sum(name != "nobody" for name in names)
    assert done.num_rows == 60


@BOTH
def test_suppressed_people_may_break_any_rule(tmp_path: Path, ingest: Ingest) -> None:
    table = people()
    bad = pa.concat_tables([table, table.slice(0, 3)])  # record ids of p0, twice
    a = bad["a"].to_pylist()
    a[1] = None
    bad = bad.set_column(2, "a", pa.array(a, pa.float64()))
    config = data_config(write_parts(tmp_path / "table", bad))
    job = make_job(config, tmp_path / "store", suppressed=frozenset(tags(KEY, ["p0"])))
    done = ingest(job)
    assert summary(done) == digests(expected_slices(table, job.layout, erased=frozenset({"p0"})))
    assert done.num_refused == 6


@BOTH
@pytest.mark.parametrize("shards", [(0,), (2, 1)])
def test_chosen_shards_are_ingested_alone(tmp_path: Path, ingest: Ingest, shards: tuple[int, ...]) -> None:
    table = people()
    config = data_config(write_parts(tmp_path / "table", table))
    job = make_job(config, tmp_path / "store", only_shards=shards)
    expected = {where: t for where, t in expected_slices(table, job.layout).items() if where[0] in shards}
    assert summary(ingest(job)) == digests(expected)


def break_column(name: str, row: int, cell: object) -> Callable[[pa.Table], pa.Table]:
    def broken(table: pa.Table) -> pa.Table:
        cells = table[name].to_pylist()
        cells[row] = cell
        kind = table.schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return table.set_column(table.schema.get_field_index(name), name, pa.array(cells, kind))

    return broken


def break_text(name: str, row: int) -> Callable[[pa.Table], pa.Table]:
    def broken(table: pa.Table) -> pa.Table:
        raw = [text.encode() for text in table[name].to_pylist()]
        raw[row] = b"\xff"
        column = pa.array(raw, pa.binary())
        text = pa.Array.from_buffers(pa.string(), len(raw), column.buffers())
        return table.set_column(table.schema.get_field_index(name), name, text)

    return broken


def no_reds(columns: Mapping[str, pa.Array]) -> Iterable[tuple[int, str]]:
    """A rule that needs sound columns: it would fail on a null."""
    for row, word in enumerate(columns["word"].to_pylist()):
        assert np.isfinite(columns["x"][row].as_py()).all()
        if word.startswith("red"):
            yield row, "word must not be red"


@BOTH
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (break_column("id", 17, None), r"record id \(column 'id'\) is null: row 17$"),
        (break_column("person", 17, None), r"subject \(column 'person'\) is null: row 17$"),
        (break_column("a", 17, None), r"features \(columns 'a' … 'c'\) is null: row 17$"),
        (
            break_column("a", 17, float("inf")),
            r"features \(columns .*\) is not finite \(NaN or infinite\): row 17$",
        ),
        (break_column("x", 17, None), r"x \(column 'x'\) is null: row 17$"),
        (break_column("x", 17, [1.0, float("nan")]), r"x \(column 'x'\) is not finite .*: row 17$"),
        (break_column("label", 17, None), r"label \(column 'label'\) is null: row 17$"),
        (break_column("word", 17, None), r"word \(column 'word'\) is null: row 17$"),
        (break_text("word", 17), r"word \(column 'word'\) is not valid UTF-8: row 17$"),
        (break_text("person", 17), r"subject \(column 'person'\) is not valid UTF-8: row 17$"),
        (lambda t: break_column("id", 17, t["id"][40].as_py())(t), r"record id is not unique: rows 17, 40$"),
        (break_column("word", 17, "red wine"), r"word must not be red: row 17$"),
    ],
)
def test_broken_rules_are_listed_by_row_and_nothing_is_kept(
    tmp_path: Path, ingest: Ingest, change: Callable[[pa.Table], pa.Table], says: str
) -> None:
    blue = people().set_column(6, "word", pa.array(["blue"] * 60))
    config = data_config(write_parts(tmp_path / "table", change(blue)))
    job = make_job(config, tmp_path / "store", problems=no_reds)
    with pytest.raises(DataError, match=says) as caught:
        ingest(job)
    assert len(str(caught.value).splitlines()) == 2
    assert objects(job) == {}


@BOTH
def test_all_that_is_wrong_is_said_at_once(tmp_path: Path, ingest: Ingest) -> None:
    table = people()
    ids = table["id"].to_pylist()
    ids[3], ids[44], ids[59] = None, ids[5], ids[5]
    table = table.set_column(0, "id", pa.array(ids))
    table = break_column("label", 2, None)(break_column("a", 2, None)(break_column("a", 50, None)(table)))
    job = make_job(data_config(write_parts(tmp_path / "table", table, num_files=2)), tmp_path / "store")
    with pytest.raises(DataError) as caught:
        ingest(job)
    assert str(caught.value).splitlines()[1:] == [
        "  features (columns 'a' … 'c') is null: rows 2 (part-0.parquet: 2), 50 (part-1.parquet: 20)",
        "  label (column 'label') is null: row 2 (part-0.parquet: 2)",
        "  record id (column 'id') is null: row 3 (part-0.parquet: 3)",
        "  record id is not unique: rows 5 (part-0.parquet: 5), 44 (part-1.parquet: 14), 59 (part-1.parquet: 29)",
    ]


@BOTH
def test_rows_keep_their_numbers_when_others_are_left_out(tmp_path: Path, ingest: Ingest) -> None:
    words = pa.array(["red" if i in (1, 3, 30, 47) else "blue" for i in range(60)])
    table = break_column("a", 44, None)(people().set_column(6, "word", words))
    config = data_config(write_parts(tmp_path / "table", table, row_group_size=60))
    erased = frozenset(tags(KEY, ["p0", "p2", "p13"]))
    job = make_job(config, tmp_path / "store", suppressed=erased, problems=no_reds)
    with pytest.raises(DataError) as caught:
        ingest(job)
    assert str(caught.value).splitlines()[1:] == [
        "  word must not be red: rows 3, 30, 47",
        "  features (columns 'a' … 'c') is null: row 44",
    ]


@BOTH
def test_errors_name_rows_and_never_people(tmp_path: Path, ingest: Ingest) -> None:
    table = people()
    table = pa.concat_tables([table, table.slice(7, 1)])
    job = make_job(data_config(write_parts(tmp_path / "table", table)), tmp_path / "store")
    with pytest.raises(DataError) as caught:
        ingest(job)
    assert str(table["id"][7]) not in str(caught.value).replace(str(tmp_path), "")
    assert "p2" not in str(caught.value).replace(str(tmp_path), "")


def quoting(columns: Mapping[str, pa.Array]) -> Iterable[tuple[int, str]]:
    yield 0, "first"
    raise ValueError(columns["word"][0].as_py())


@BOTH
def test_a_recipe_that_fails_is_named_without_what_it_quotes(tmp_path: Path, ingest: Ingest) -> None:
    table = people().set_column(6, "word", pa.array(["Lovelace"] * 60))
    job = make_job(data_config(write_parts(tmp_path / "table", table)), tmp_path / "store", problems=quoting)
    with pytest.raises(
        RecipeError, match=r"problems\(\) failed on rows \d+ to \d+: ValueError at .*py:\d+$"
    ) as caught:
        ingest(job)
    assert "Lovelace" not in str(caught.value)
    assert objects(job) == {}


@BOTH
def test_more_shards_than_subjects_are_refused(tmp_path: Path, ingest: Ingest) -> None:
    config = data_config(write_parts(tmp_path / "table", people(12)))
    job = make_job(config, tmp_path / "store", layout=Layout(num_shards=5, num_slices=1, seed=0))
    with pytest.raises(
        ConfigError, match=r"num_shards: is 5, but .* has only 4 subject\(s\) .*'person'.*at most 4"
    ):
        ingest(job)
    assert objects(job) == {}


@BOTH
def test_people_who_are_suppressed_still_count_as_subjects(tmp_path: Path, ingest: Ingest) -> None:
    config = data_config(write_parts(tmp_path / "table", people(12)))
    layout = Layout(num_shards=4, num_slices=1, seed=0)
    job = make_job(
        config, tmp_path / "store", layout=layout, suppressed=frozenset(tags(KEY, ["p0", "p1", "p2", "p3"]))
    )
    assert sum(ref.num_records for ref in ingest(job).slices) == 0


def test_progress_is_told_in_rows(tmp_path: Path) -> None:
    job = make_job(data_config(write_parts(tmp_path / "table", people(), num_files=2)), tmp_path / "store")
    told: list[int] = []
    ingest_direct(job, on_progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 60


def test_secrets_are_not_printed(tmp_path: Path) -> None:
    job = make_job(
        data_config(write_parts(tmp_path / "table", people())), tmp_path / "store", content_key=b"hush" * 8
    )
    assert "hush" not in repr(job) + repr(Staging.plan(job, piece_bytes=1000))
