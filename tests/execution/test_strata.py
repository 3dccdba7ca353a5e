"""Distribution-aware sharding, whole: a request names only the person, and what is left is what scratch would give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.errors import DataError, RunConflict
from sisa_ray.execution import commands
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.verify import verify
from tests.execution.tables import make_config, make_table
from tests.support.inline import InlineWorkers

STRATA = [{"name": "eu", "slices": [3, 3]}, {"name": "us", "slices": [1, 2]}]


def stratum_of(person: str) -> str:
    return "eu" if int(person.lstrip("ap")) % 5 == 0 else "us"


def with_strata(table: pa.Table) -> pa.Table:
    return table.append_column("country", pa.array([stratum_of(p) for p in table["person"].to_pylist()]))


def configured(directory: Path, table: pa.Table, **data: str) -> SisaConfig:
    return make_config(
        directory, table, data={"stratum": "country", **data}, sisa={"strata": STRATA, "epochs": 4}
    )


def train(config: SisaConfig) -> SisaConfig:
    commands.train(config, new_workers=InlineWorkers)
    return config


def bits(config: SisaConfig) -> dict[Any, str]:
    return {place: ref.file_digest for place, ref in existing_run(config).state.stages.items()}


def test_a_person_is_found_without_their_stratum_and_forgotten_to_the_bit(tmp_path: Path) -> None:
    table = with_strata(make_table(120, records_per_subject=2))
    config = train(configured(tmp_path, table))
    asked = ["p5", "p7"]  # one of each stratum
    result = commands.unlearn(config, asked, new_workers=InlineWorkers)
    assert (result.num_forgotten, result.num_records) == (2, 4)
    assert {row.slice for row in result.rows} in ({1, 3}, {2, 3})
    assert result.record_visits == result.predicted_record_visits
    left = table.filter(pc.invert(pc.is_in(table["person"], pa.array(asked))))
    assert bits(config) == bits(train(configured(tmp_path / "oracle", left)))
    shown = verify(config, new_workers=InlineWorkers)
    assert (shown.outcome, shown.source) == ("bit-identical", "source tables")
    (tmp_path / "train.parquet").unlink()
    shown = verify(config, new_workers=InlineWorkers)
    assert (shown.outcome, shown.source) == ("bit-identical", "slices")


def test_whoever_is_likely_to_go_is_in_late_slices_and_costs_less(tmp_path: Path) -> None:
    table = with_strata(make_table(120))
    config = train(configured(tmp_path, table))
    likely = commands.unlearn(config, ["p0", "p5", "p10"], new_workers=InlineWorkers)
    others = commands.unlearn(config, ["p1", "p2", "p3"], new_workers=InlineWorkers)
    assert all(row.slice == 3 for row in likely.rows)
    assert likely.record_visits < others.record_visits


def test_a_table_of_subjects_gives_the_bits_of_a_column(tmp_path: Path) -> None:
    table = make_table(120)
    people = table["person"].to_pylist()
    by_column = train(configured(tmp_path / "column", with_strata(table)))
    strata = pa.table({"person": people, "country": [stratum_of(p) for p in people]})
    pq.write_table(strata, tmp_path / "strata.parquet")
    by_table = train(configured(tmp_path / "table", table, strata_table=str(tmp_path / "strata.parquet")))
    assert bits(by_column) == bits(by_table)
    assert verify(by_table, new_workers=InlineWorkers).bit_identical


def test_appended_people_are_found_too(tmp_path: Path) -> None:
    table = with_strata(make_table(100))
    config = train(configured(tmp_path, table))
    more = make_table(40, seed=7)
    more = more.set_column(0, "id", pa.array([f"a{i}" for i in range(40)]))
    more = with_strata(more.set_column(1, "person", pa.array([f"a{i}" for i in range(40)])))
    pq.write_table(more, tmp_path / "more.parquet")
    commands.append(config, str(tmp_path / "more.parquet"), new_workers=InlineWorkers)
    result = commands.unlearn(config, ["a5", "a6", "p5"], new_workers=InlineWorkers)
    assert (result.num_forgotten, result.num_records) == (3, 3)
    assert result.slices_rewritten == 3
    assert verify(config, new_workers=InlineWorkers).bit_identical


def test_an_unknown_stratum_leaves_no_run_behind(tmp_path: Path) -> None:
    table = make_table(120).append_column("country", pa.array(["eu"] * 119 + ["uk"]))
    config = configured(tmp_path, table)
    with pytest.raises(DataError, match=r"stratum \(column 'country'\) is none of sisa.strata: row 119"):
        train(config)
    assert [path for path in (tmp_path / "storage" / "run").rglob("*") if path.is_file()] == []


def test_a_run_keeps_the_strata_it_was_made_with(tmp_path: Path) -> None:
    config = train(configured(tmp_path, with_strata(make_table(120))))
    other = SisaConfig.from_mapping(
        {
            **config.model_dump(mode="json"),
            "sisa": {
                **config.model_dump(mode="json")["sisa"],
                "strata": [{"name": "eu"}, {"name": "us"}],
            },
        }
    )
    with pytest.raises(RunConflict, match=r"strata\.eu"):
        train(other)
