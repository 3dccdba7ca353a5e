"""Growing data: appended records become further slices, and the whole stays what training from scratch gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.errors import DataError, RunConflict
from sisa_ray.execution import commands, desk
from sisa_ray.execution.acceptance import Submission
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.verify import verify
from sisa_ray.storage.ingest import ingest_direct
from tests.execution.tables import make_config, make_table
from tests.support.inline import InlineWorkers


def renamed(table: pa.Table, prefix: str) -> pa.Table:
    """Other records, half of them of people who are there already."""
    ids = pa.array([f"{prefix}{i}" for i in range(table.num_rows)])
    people = pa.array([f"p{i}" if i % 2 else f"{prefix}{i}" for i in range(table.num_rows)])
    return table.set_column(0, "id", ids).set_column(1, "person", people)


def write(directory: Path, name: str, table: pa.Table) -> str:
    path = directory / name
    pq.write_table(table, path)
    return str(path)


def append(config: SisaConfig, table: str, **options: Any) -> Any:
    return commands.append(config, table, new_workers=InlineWorkers, **options)


def bits(config: SisaConfig) -> dict[Any, str]:
    return {place: ref.file_digest for place, ref in existing_run(config).state.stages.items()}


def test_only_new_stages_train_and_the_bits_are_those_from_scratch(tmp_path: Path) -> None:
    config = make_config(tmp_path, make_table(100))
    commands.train(config, new_workers=InlineWorkers)
    before = bits(config)
    first = write(tmp_path, "a.parquet", renamed(make_table(40, seed=7), "a"))
    result = append(config, first, num_slices=2)
    assert result.num_slices == 5
    assert result.num_records == 140
    assert result.stages_built == 3 * 2
    assert result.generation == 2
    after = bits(config)
    assert before.items() <= after.items()
    append(config, write(tmp_path, "b.parquet", renamed(make_table(30, seed=8), "b")))
    shown = verify(config, new_workers=InlineWorkers)
    assert shown.outcome == "bit-identical"
    assert shown.source == "source tables"
    assert shown.num_checkpoints == 3 * 6
    Path(first).unlink()
    assert verify(config, new_workers=InlineWorkers).source == "slices"
    assert verify(config, new_workers=InlineWorkers).bit_identical


def test_a_person_is_forgotten_in_every_ingest_at_once(tmp_path: Path) -> None:
    config = make_config(tmp_path, make_table(100))
    commands.train(config, new_workers=InlineWorkers)
    append(config, write(tmp_path, "a.parquet", renamed(make_table(40, seed=7), "a")))
    result = commands.unlearn(config, ["p1", "a2", "p99"], new_workers=InlineWorkers)
    assert result.num_forgotten == 3
    assert result.num_records == 4
    assert result.slices_rewritten == len(
        {(r.shard, r.slice) for r in result.rows} | {(result.rows[0].shard, 4)}
    )
    assert result.record_visits == result.predicted_record_visits
    shown = verify(config, new_workers=InlineWorkers)
    assert shown.bit_identical
    assert commands.status(config).complete


def test_who_asked_before_is_refused_in_an_append(tmp_path: Path) -> None:
    config = make_config(tmp_path, make_table(100))
    commands.train(config, new_workers=InlineWorkers)
    commands.unlearn(config, ["p1", "a2"], new_workers=InlineWorkers)
    result = append(config, write(tmp_path, "a.parquet", renamed(make_table(40, seed=7), "a")))
    assert result.num_refused == 2
    assert verify(config, new_workers=InlineWorkers).bit_identical


def test_an_append_that_breaks_rules_changes_nothing(tmp_path: Path) -> None:
    config = make_config(tmp_path, make_table(100))
    with pytest.raises(Exception, match="there is no run here"):
        append(config, str(tmp_path / "train.parquet"))
    commands.ingest(config, new_workers=InlineWorkers)
    before = existing_run(config).state.slices
    with pytest.raises(DataError, match="record id is in the run already"):
        append(config, str(tmp_path / "train.parquet"))
    other = make_table(20, seed=3).set_column(3, "y", pa.array([0.5] * 20))
    with pytest.raises(
        DataError, match=r"its columns differ \(label: int64 in the run, double in the table\)"
    ):
        append(config, write(tmp_path, "other.parquet", renamed(other, "o")))
    assert existing_run(config).state.slices == before
    assert commands.status(config).num_records == 100


def test_nothing_is_appended_before_the_first_table(tmp_path: Path) -> None:
    from sisa_ray.execution.opening import create_run

    config = make_config(tmp_path, make_table(100))
    create_run(config)
    with pytest.raises(RunConflict, match="nothing is ingested yet"):
        append(config, str(tmp_path / "train.parquet"))


def test_appended_before_training(tmp_path: Path) -> None:
    """The order of appending and training does not show."""
    table = renamed(make_table(40, seed=7), "a")
    one = make_config(tmp_path / "one", make_table(100))
    commands.train(one, new_workers=InlineWorkers)
    append(one, write(tmp_path, "a.parquet", table))
    two = make_config(tmp_path / "two", make_table(100))
    commands.ingest(two, new_workers=InlineWorkers)
    append(two, str(tmp_path / "a.parquet"))
    commands.train(two, new_workers=InlineWorkers)
    assert bits(one) == bits(two)
    three = make_config(tmp_path / "three", make_table(100))
    commands.ingest(three, new_workers=InlineWorkers)
    append(three, str(tmp_path / "a.parquet"), num_slices=2)
    commands.train(three, new_workers=InlineWorkers)
    mine, others = bits(one), bits(three)
    assert all((mine[p] == others[p]) == (p[1] <= 3) for p in mine)


def test_who_asks_while_an_append_is_under_way_is_forgotten_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, make_table(100))
    commands.train(config, new_workers=InlineWorkers)

    def asked_meanwhile(job: Any) -> Any:
        done = ingest_direct(job)
        desk.request(config, [Submission(subjects=("a2", "p7"))])
        return done

    monkeypatch.setattr("sisa_ray.execution.intake.ingest_direct", asked_meanwhile)
    result = append(config, write(tmp_path, "a.parquet", renamed(make_table(40, seed=7), "a")))
    monkeypatch.undo()
    assert result.num_refused == 0
    assert result.num_records == 140 - 3  # a2 once, p7 in both tables
    (row,) = desk.list_requests(config).rows
    assert row.state == "certified"
    assert verify(config, new_workers=InlineWorkers).bit_identical
