"""Verification: equal bits are shown equal, and each kind of difference is found and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.errors import ConfigError, RunConflict
from sisa_ray.core.records import GenerationPublished, StageBuilt, StageRef
from sisa_ray.execution import commands
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.results import VerifyResult
from sisa_ray.execution.verify import verify
from tests.execution.tables import make_config, make_table
from tests.support.inline import InlineWorkers


@pytest.fixture
def forgotten_run(tmp_path: Path) -> SisaConfig:
    config = make_config(tmp_path, make_table(90))
    commands.train(config, new_workers=InlineWorkers)
    commands.unlearn(config, ["p1", "p2", "p40"], new_workers=InlineWorkers)
    return config


def check(config: SisaConfig, **options: object) -> VerifyResult:
    return verify(config, new_workers=InlineWorkers, **options)  # type: ignore[arg-type]


def stored(config: SisaConfig, kind: str, shard: int, number: int) -> Path:
    state = existing_run(config).state
    ref = (state.stages if kind == "stage" else state.slices)[shard, number]
    assert ref.path is not None
    return Path(config.address) / ref.path


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def scratch_files(config: SisaConfig) -> list[Path]:
    return [p for p in (Path(config.address) / "scratch").rglob("*") if p.is_file()]


def test_a_faithful_run_is_bit_identical(forgotten_run: SisaConfig) -> None:
    result = check(forgotten_run)
    assert (result.outcome, result.bit_identical, result.source) == ("bit-identical", True, "source tables")
    assert (result.num_slices, result.num_checkpoints) == (9, 9)
    assert result.num_predictions == 3 * 60
    assert not scratch_files(forgotten_run)


def test_some_shards_and_a_sample(forgotten_run: SisaConfig) -> None:
    assert check(forgotten_run, shards=[2]).shards == (2,)
    sampled = check(forgotten_run, sample=2)
    assert (len(sampled.shards), sampled.bit_identical) == (2, True)


@pytest.mark.parametrize(
    "options", [{"shards": [3]}, {"shards": []}, {"sample": 0}, {"shards": [1], "sample": 1}]
)
def test_wrong_choices_of_shards(forgotten_run: SisaConfig, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"(shards|sample)"):
        check(forgotten_run, **options)


def test_without_the_source_the_slices_are_used(forgotten_run: SisaConfig) -> None:
    Path(forgotten_run.data.train).unlink()
    result = check(forgotten_run)
    assert (result.source, result.bit_identical) == ("slices", True)


def test_a_source_already_without_the_people_is_the_same(forgotten_run: SisaConfig) -> None:
    table = pq.read_table(forgotten_run.data.train)
    pq.write_table(
        table.filter(pc.invert(pc.is_in(table["person"], pa.array(["p1", "p2"])))), forgotten_run.data.train
    )
    assert check(forgotten_run).bit_identical


def change_one_feature(config: SisaConfig) -> None:
    table = pq.read_table(config.data.train)
    values = table["x"].combine_chunks().flatten().to_numpy().copy()
    values[0] += np.float32(1e-6)
    array = pa.FixedSizeListArray.from_arrays(pa.array(values), 8)
    pq.write_table(table.set_column(2, "x", array), config.data.train)


@pytest.mark.parametrize(
    ("tamper", "names"),
    [
        (change_one_feature, "slice"),
        (lambda c: flip(stored(c, "slice", 1, 2)), "slice 2 of shard 1"),
        (lambda c: flip(stored(c, "stage", 2, 1)), "checkpoint of stage 1 of shard 2"),
        (lambda c: stored(c, "stage", 0, 3).unlink(), "checkpoint of stage 3 of shard 0"),
        (lambda c: stored(c, "stage", 1, 3).write_bytes(b""), "checkpoint of stage 3 of shard 1"),
    ],
)
def test_each_difference_is_found_and_named(
    forgotten_run: SisaConfig, tamper: Callable[[SisaConfig], None], names: str
) -> None:
    tamper(forgotten_run)
    result = check(forgotten_run)
    assert (result.outcome, result.bit_identical) == ("different", False)
    assert result.first_difference is not None
    assert names in result.first_difference
    assert not scratch_files(forgotten_run)


def recommit(config: SisaConfig, **changes: object) -> None:
    """Commit one stage again with something else in its reference."""
    run = existing_run(config)
    ref: StageRef = run.state.stages[1, 2].model_copy(update=changes)
    run.commit(StageBuilt(ref=ref))


def test_a_stage_trained_on_somebody_else_is_different(forgotten_run: SisaConfig) -> None:
    """The log says it is right and the object fits the log: only re-execution can tell."""
    run = existing_run(forgotten_run)
    other, last = run.state.stages[0, 3], run.state.stages[1, 3]
    published = run.state.published_keys
    wrong = {"path": other.path, "file_digest": other.file_digest, "size_bytes": other.size_bytes}
    run.commit(
        StageBuilt(ref=last.model_copy(update=wrong)), GenerationPublished(generation=9, keys=published)
    )
    result = check(forgotten_run)
    assert result.first_difference == "checkpoint of stage 3 of shard 1: bits differ"


def test_another_platform_is_not_comparable(forgotten_run: SisaConfig) -> None:
    platform = {**existing_run(forgotten_run).state.stages[1, 2].platform, "torch": "0.0"}
    recommit(forgotten_run, platform=platform)
    result = check(forgotten_run)
    assert (result.outcome, result.bit_identical) == ("not comparable", None)
    assert result.first_difference is not None
    assert "torch" in result.first_difference
    assert check(forgotten_run, shards=[0]).bit_identical


def test_an_incomplete_run_is_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    commands.ingest(config, new_workers=InlineWorkers)
    with pytest.raises(RunConflict, match="sisa-ray train"):
        check(config)


def test_scratch_of_a_crashed_verification_goes(
    forgotten_run: SisaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sisa_ray.execution.verify._Comparison.compare", crash)
        patch.setattr("sisa_ray.execution.verify._remove", lambda *args: None)  # as if killed
        with pytest.raises(KeyboardInterrupt):
            check(forgotten_run)
    assert scratch_files(forgotten_run)
    assert check(forgotten_run).bit_identical
    assert not scratch_files(forgotten_run)
