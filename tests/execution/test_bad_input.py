"""Bad input: the message says what, where and how to mend it, and nothing has changed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.errors import (
    ConfigError,
    DataError,
    ExecutionError,
    IntegrityError,
    RecipeError,
    RunConflict,
    RunNotFound,
    SelfCheckError,
    SisaError,
    StorageFull,
)
from sisa_ray.execution import commands
from sisa_ray.execution.events import Event, Notice
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.verify import verify
from tests.execution.tables import make_config, make_table
from tests.support.inline import InlineWorkers


def snapshot(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def refused(config: SisaConfig, error: type[SisaError], match: str) -> None:
    """Training is refused with this message, and leaves storage and keyring as they were."""
    storage, keyring = Path(config.storage_path), Path(os.environ["SISA_RAY_KEYRING"])
    storage.mkdir(exist_ok=True)
    before = (snapshot(storage), snapshot(keyring))
    with pytest.raises(error, match=match):
        commands.train(config, new_workers=InlineWorkers)
    assert (snapshot(storage), snapshot(keyring)) == before


def edit(column: str, row: int, value: Any) -> Callable[[pa.Table], pa.Table]:
    def apply(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = value
        index = table.schema.get_field_index(column)
        return table.set_column(index, column, pa.array(values, table.schema.field(column).type))

    return apply


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.drop_columns(["x"]), r"no column 'x'"),
        (lambda t: t.drop_columns(["id"]).append_column("idd", t["id"]), r"no column 'id'.*'idd'"),
        (
            lambda t: t.set_column(0, "id", pa.array(np.arange(120.0))),
            r"record_id.*double.*integers, strings or binary",
        ),
        (edit("id", 7, None), r"record id.*null(.|\n)*7"),
        (edit("id", 9, "r3"), r"not unique(.|\n)*3(.|\n)*9"),
        (edit("person", 5, None), r"subject.*null(.|\n)*5"),
        (edit("y", 11, 3), r"label(.|\n)*11"),
        (edit("y", 11, -1), r"label(.|\n)*11"),
        (edit("x", 13, [float("nan")] * 8), r"features.*not finite(.|\n)*13"),
        (edit("x", 13, None), r"features.*null(.|\n)*13"),
        (lambda t: t.slice(0, 0), r"empty table"),
    ],
)
def test_bad_tables(tmp_path: Path, change: Callable[[pa.Table], pa.Table], match: str) -> None:
    refused(make_config(tmp_path, change(make_table(120))), DataError, match)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    Path(config.data.train).unlink()
    refused(config, DataError, "no Parquet file matches")


def test_more_shards_than_subjects(tmp_path: Path) -> None:
    config = make_config(tmp_path, make_table(10), sisa={"num_shards": 11})
    refused(config, ConfigError, r"num_shards: is 11.*only 10 subject.*at most 10")


@pytest.mark.parametrize(
    ("class_path", "match"),
    [
        ("nowhere.at.all.Net", "no module"),
        ("sisa_ray.recipes.NoSuchRecipe", "NoSuchRecipe"),
        ("{dir}/nets.py:Lacking", r"lacks .*predict"),
        ("{dir}/nets.py:NotARecipe", "Recipe"),
        ("{dir}/nets.py:Missing", "no class 'Missing'"),
        ("{dir}/broken.py:Net", "broken"),
        ("math.sin", "(source|Recipe|class)"),
    ],
)
def test_bad_recipes(tmp_path: Path, class_path: str, match: str) -> None:
    (tmp_path / "nets.py").write_text(
        "from sisa_ray.learning.recipe import Recipe\n\n\nclass NotARecipe:\n    pass\n\n\n"
        "class Lacking(Recipe):\n    task = 'classification'\n    batch_size = 4\n    num_classes = 3\n\n"
        "    def build_model(self):\n        pass\n"
    )
    (tmp_path / "broken.py").write_text("raise OSError('broken')\n\n\nclass Net:\n    pass\n")
    recipe = {"class": class_path.format(dir=tmp_path), "args": {}}
    refused(make_config(tmp_path, recipe=recipe), RecipeError, match)


def test_bad_recipe_arguments(tmp_path: Path) -> None:
    recipe = {
        "class": "sisa_ray.recipes.MLPClassifier",
        "args": {"hidden": [4], "num_classes": 3, "droput": 0.1},
    }
    refused(make_config(tmp_path, recipe=recipe), RecipeError, "droput")


def test_a_recipe_that_keeps_a_counter_is_caught(tmp_path: Path) -> None:
    config = make_config(tmp_path, recipe={"class": "tests.execution.recipes.Counting", "args": {}})
    with pytest.raises(SelfCheckError, match="counter"):
        commands.train(config, new_workers=InlineWorkers)
    assert not existing_run(config).state.stages


def test_a_recipe_that_fails_is_named_with_its_shard(tmp_path: Path) -> None:
    config = make_config(tmp_path, recipe={"class": "tests.execution.recipes.Raising", "args": {}})
    with pytest.raises((ExecutionError, RuntimeError), match="out of cheese"):
        commands.train(config, new_workers=InlineWorkers)


def test_another_spec_under_the_same_name(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    commands.train(config, new_workers=InlineWorkers)
    before = snapshot(Path(config.storage_path))
    other = make_config(tmp_path, sisa={"seed": 6, "epochs": 5})
    with pytest.raises(RunConflict, match=r"(?s)sisa.seed: 5 in the run, 6 here") as caught:
        commands.train(other, new_workers=InlineWorkers)
    assert "stage_epochs" in str(caught.value)
    assert snapshot(Path(config.storage_path)) == before


def test_changed_recipe_code_is_a_conflict(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from tests.execution.recipes import Small\n\n\nclass Net(Small):\n    pass\n"
    )
    config = make_config(tmp_path, recipe={"class": f"{tmp_path}/nets.py:Net", "args": {}})
    commands.train(config, new_workers=InlineWorkers)
    with (tmp_path / "nets.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(RunConflict, match=r"modules\.nets"):
        commands.unlearn(config.address, ["p1"], new_workers=InlineWorkers)


def test_no_run_there(tmp_path: Path) -> None:
    (tmp_path / "storage").mkdir()
    with pytest.raises(RunNotFound, match="there is no run here"):
        commands.status(str(tmp_path / "storage" / "nothing"))


@pytest.mark.parametrize(("subjects", "match"), [([], "empty"), (["p1", ""], "row 1 is empty")])
def test_bad_subjects(tmp_path: Path, subjects: list[str], match: str) -> None:
    config = make_config(tmp_path)
    commands.ingest(config, new_workers=InlineWorkers)
    before = snapshot(Path(config.storage_path))
    with pytest.raises(DataError, match=match):
        commands.unlearn(config, subjects, new_workers=InlineWorkers)
    assert snapshot(Path(config.storage_path)) == before


@pytest.mark.parametrize("damage", ["cut short", "other bytes", "gone"])
def test_a_damaged_checkpoint_is_rebuilt_with_a_warning(tmp_path: Path, damage: str) -> None:
    config = make_config(tmp_path)
    commands.train(config, new_workers=InlineWorkers)
    state = existing_run(config).state
    victim = next(p for p, s in sorted(state.slices.items()) if p[1] == 2 and s.num_records)
    ref = state.stages[victim]
    assert ref.path is not None
    path = Path(config.address) / ref.path
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "cut short" else bytes([*data[:-1], data[-1] ^ 1]))
    notices: list[str] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Notice):
            notices.append(event.text)

    person = next(p for p in make_table(120)["person"].to_pylist() if _place(config, p) == (victim[0], 3))
    commands.unlearn(config, [person], on_event=on_event, new_workers=InlineWorkers)
    assert any(str(ref.path) in text for text in notices)
    assert verify(config, new_workers=InlineWorkers).bit_identical


def _place(config: SisaConfig, person: str) -> tuple[int, int]:
    from sisa_ray.core.partition import Layout, place

    sisa = config.sisa
    shards, slices = place(
        [person], Layout(num_shards=sisa.num_shards, num_slices=sisa.num_slices, seed=sisa.seed)
    )
    return int(shards[0]), int(slices[0])


def test_a_lost_slice_is_an_error(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    commands.train(config, new_workers=InlineWorkers)
    ref = next(s for s in existing_run(config).state.slices.values() if s.path)
    (Path(config.address) / str(ref.path)).unlink()
    with pytest.raises(IntegrityError, match="cannot be rebuilt"):
        commands.unlearn(config, ["p1"], new_workers=InlineWorkers)


def test_a_full_disk_resumes_when_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path)
    undisturbed = make_config(tmp_path / "undisturbed")
    commands.train(undisturbed, new_workers=InlineWorkers)
    count = [0]
    original = os.fsync

    def full(fd: int) -> None:
        count[0] += 1
        if count[0] > 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageFull, match="space"):
            commands.train(config, new_workers=InlineWorkers)
    commands.train(config, new_workers=InlineWorkers)
    assert {p: r.file_digest for p, r in existing_run(config).state.stages.items()} == {
        p: r.file_digest for p, r in existing_run(undisturbed).state.stages.items()
    }
