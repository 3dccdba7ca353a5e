"""Forgetting: every kind of request ends in the bits of a run that never knew the people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.partition import Layout, place
from sisa_ray.execution import commands
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.results import UnlearnResult
from sisa_ray.storage.layout import PERMANENT
from tests.execution.tables import make_config, make_table
from tests.support.inline import InlineWorkers


def train(config: SisaConfig) -> None:
    commands.train(config, new_workers=InlineWorkers)


def unlearn(config: SisaConfig, subjects: list[str]) -> UnlearnResult:
    return commands.unlearn(config, subjects, new_workers=InlineWorkers)


def bits(config: SisaConfig) -> dict[tuple[int, int], tuple[str, int]]:
    """File digest and records of every stage: what must be equal."""
    state = existing_run(config).state
    return {p: (ref.file_digest, state.slices[p].num_records) for p, ref in state.stages.items()}


def scratch_bits(
    directory: Path, table: pa.Table, forgotten: list[str], **changes: Any
) -> dict[tuple[int, int], tuple[str, int]]:
    """The oracle: a run of its own, trained on a table that never had these people."""
    left = table.filter(pc.invert(pc.is_in(table["person"], pa.array(forgotten))))
    config = make_config(directory / "oracle", left, **changes)
    train(config)
    return bits(config)


def places(config: SisaConfig, table: pa.Table) -> dict[str, tuple[int, int]]:
    people = list(dict.fromkeys(table["person"].to_pylist()))
    sisa = config.sisa
    shards, slices = place(
        people, Layout(num_shards=sisa.num_shards, num_slices=sisa.num_slices, seed=sisa.seed)
    )
    return {p: (k, r) for p, k, r in zip(people, shards.tolist(), slices.tolist(), strict=True)}


CHAINS: list[dict[str, Any]] = [
    {"schedule": "sweep", "warm_start": {"shrink": "1/2", "perturb": "1/10"}},
    {"schedule": {"sweep": "1/3", "power": 1}},
    {"schedule": [4, 1, 2], "warm_start": {}},
]
"""Other stages than the default's, and other starts of them."""


@pytest.mark.parametrize("sisa", CHAINS)
def test_stages_of_every_kind(tmp_path: Path, sisa: dict[str, Any]) -> None:
    table = make_table(120)
    config = make_config(tmp_path, table, sisa=sisa)
    train(config)
    unlearn(config, ["p7", "p19"])
    assert bits(config) == scratch_bits(tmp_path, table, ["p7", "p19"], sisa=sisa)


def test_one_subject(tmp_path: Path) -> None:
    table = make_table(120)
    config = make_config(tmp_path, table)
    train(config)
    before = bits(config)
    result = unlearn(config, ["p7"])
    shard, slice_ = places(config, table)["p7"]
    assert (result.num_forgotten, result.num_unknown, result.num_records) == (1, 0, 1)
    assert result.shards_rebuilt == (shard,)
    assert result.stages_rebuilt == 3 - slice_ + 1
    assert result.record_visits == result.predicted_record_visits > 0
    assert result.record_visits < result.full_retrain_record_visits
    after = bits(config)
    assert after == scratch_bits(tmp_path, table, ["p7"])
    assert {p for p in before if before[p] != after[p]} == {(shard, r) for r in range(slice_, 4)}


def everybody_in(config: SisaConfig, table: pa.Table, what: str) -> list[str]:
    where = places(config, table)
    chosen = {
        "a whole slice": {(1, 2)},
        "a whole shard": {(2, r) for r in range(1, 4)},
        "first slices": {(k, 1) for k in range(3)},
        "everybody": {(k, r) for k in range(3) for r in range(1, 4)},
    }[what]
    return [p for p in where if where[p] in chosen]


@pytest.mark.parametrize("what", ["a whole slice", "a whole shard", "first slices", "everybody"])
def test_many_subjects(tmp_path: Path, what: str) -> None:
    table = make_table(90)
    config = make_config(tmp_path, table)
    train(config)
    people = everybody_in(config, table, what)
    result = unlearn(config, people)
    assert result.num_forgotten == len(people)
    state = existing_run(config).state
    assert sum(s.num_records for s in state.slices.values()) == 90 - len(people)
    if what != "everybody":  # an empty table is refused at ingest, so there is no oracle for it
        assert bits(config) == scratch_bits(tmp_path, table, people)


def test_a_whole_class(tmp_path: Path) -> None:
    table = make_table(100)
    config = make_config(tmp_path, table)
    train(config)
    people = table.filter(pc.equal(table["y"], 1))["person"].to_pylist()
    unlearn(config, people)
    assert bits(config) == scratch_bits(tmp_path, table, people)


def test_a_subject_with_hundreds_of_records(tmp_path: Path) -> None:
    table = make_table(600, records_per_subject=200)
    table = table.set_column(1, "person", pa.array(["p0"] * 200 + [f"q{i}" for i in range(400)]))
    config = make_config(tmp_path, table)
    train(config)
    result = unlearn(config, ["p0"])
    assert (result.num_records, len(result.shards_rebuilt)) == (200, 1)
    assert bits(config) == scratch_bits(tmp_path, table, ["p0"])


def test_unknown_and_repeated_subjects(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    train(config)
    first = unlearn(config, ["p1", "nobody", "p1"])
    assert (first.num_subjects, first.num_forgotten, first.num_unknown) == (2, 1, 1)
    assert [row.outcome for row in first.rows] == ["forgotten", "unknown", "forgotten"]
    entries = existing_run(config).head.seq
    again = unlearn(config, ["p1", "nobody"])
    assert (again.num_already_forgotten, again.num_unknown, again.record_visits) == (1, 1, 0)
    assert again.stages_rebuilt == again.slices_rewritten == 0
    assert existing_run(config).head.seq == entries + 2  # the attempt opened and closed, nothing else


def test_before_anything_is_trained(tmp_path: Path) -> None:
    table = make_table(60)
    config = make_config(tmp_path, table)
    commands.ingest(config, new_workers=InlineWorkers)
    result = unlearn(config, ["p3"])
    assert (result.num_forgotten, result.stages_rebuilt, result.generation) == (1, 0, 0)
    train(config)
    assert bits(config) == scratch_bits(tmp_path, table, ["p3"])


def test_two_ways_to_forget_the_same_people_end_in_the_same_bits(tmp_path: Path) -> None:
    table = make_table(90)
    one, two = make_config(tmp_path / "one", table), make_config(tmp_path / "two", table)
    for config in (one, two):
        train(config)
    unlearn(one, ["p1", "p2", "p3", "p4"])
    unlearn(two, ["p4", "p2"])
    unlearn(two, ["p3", "nobody"])
    unlearn(two, ["p1", "p2"])
    assert bits(one) == bits(two)


@pytest.mark.parametrize("keep", ["all", [2], [], 1])
def test_with_fewer_checkpoints_kept(tmp_path: Path, keep: object) -> None:
    table = make_table(90)
    config = make_config(tmp_path, table, keep_checkpoints=keep)
    train(config)
    people = ["p1", "p5"]
    result = unlearn(config, people)
    assert result.record_visits == result.predicted_record_visits
    assert bits(config) == scratch_bits(tmp_path, table, people)
    state = existing_run(config).state
    kept = {r for (_, r), ref in state.stages.items() if ref.path}
    assert kept == {"all": {1, 2, 3}, "[2]": {2, 3}}.get(str(keep), {3})


def test_nothing_of_the_forgotten_is_left_in_the_run(tmp_path: Path) -> None:
    table = make_table(80)
    marks = pa.array([f"mark-{i:04d}-of-person" for i in range(80)])
    table = table.append_column("note", marks.dictionary_encode())
    config = make_config(
        tmp_path,
        table,
        recipe={"class": "tests.execution.recipes.WithNote", "args": {"batch_size": 8}},
        data={"columns": {"features": "x", "label": "y", "note": "note"}},
    )
    train(config)
    root = Path(config.storage_path)

    def files_with(word: bytes) -> list[Path]:
        return [p for p in root.rglob("*") if p.is_file() and word in p.read_bytes()]

    assert files_with(b"mark-0012"), "the search must be able to find something"
    unlearn(config, ["p11"])
    features = np.asarray(table["x"].to_pylist()[11], np.float32).tobytes()
    assert not [word for word in (b"mark-0011", b'"p11"', features) if files_with(word)]
    state = existing_run(config).state
    named = {s.path for s in state.slices.values()} | {s.path for s in state.stages.values()}
    payload = {str(p.relative_to(root / "run")) for p in root.rglob("*") if p.is_file()}
    assert {p for p in payload if not p.startswith(PERMANENT)} == {p for p in named if p}
