"""Frozen backbones: features are computed once, cached, exact, and go with the records that they are of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from torch import nn

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.errors import RecipeError, RunConflict, SelfCheckError
from sisa_ray.core.order import record_hashes
from sisa_ray.execution import commands
from sisa_ray.execution.baselines import BaselineKind, baseline
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.predict import predict
from sisa_ray.execution.verify import verify
from sisa_ray.learning.backbone import Backbone
from sisa_ray.learning.recipe import RecipeSpec
from sisa_ray.storage import layout
from tests.execution import backbones
from tests.execution.tables import make_config, make_table
from tests.support.inline import InlineWorkers


def configure(directory: Path, table: Any = None, *, recipe: str = "Frozen", **changes: Any) -> SisaConfig:
    return make_config(
        directory, table, recipe={"class": f"tests.execution.backbones.{recipe}", "args": {}}, **changes
    )


def train(config: SisaConfig) -> None:
    commands.train(config, new_workers=InlineWorkers)


def bits(config: SisaConfig) -> dict[tuple[int, int], str]:
    return {place: ref.file_digest for place, ref in existing_run(config).state.stages.items()}


def features(config: SisaConfig) -> list[Path]:
    return sorted(p for p in (Path(config.address) / "features").rglob("*") if p.is_file())


def names(config: SisaConfig) -> list[str]:
    """What was cached, whoever wrote it."""
    return sorted(path.name for path in features(config))


def row_bytes(config: SisaConfig, person: str) -> list[bytes]:
    """What the cache holds of a person's record: its features, and its place in the order."""
    table = make_table(120)
    row = table.filter(pc.equal(table["person"], person))
    columns = row.select(["x"]).rename_columns(["features"])
    factory = RecipeSpec(class_path=config.recipe.class_path).factory(columns.schema)
    backbone = Backbone.build(factory, config.arithmetic)
    assert backbone is not None
    made = backbone.embed_table(columns)["features"]
    hashes = record_hashes(row["id"].to_pylist(), seed=config.sisa.seed)
    return [made[0].numpy().tobytes(), hashes.tobytes()]


def holding(config: SisaConfig, needle: bytes) -> list[Path]:
    return [p for p in Path(config.address).rglob("*") if p.is_file() and needle in p.read_bytes()]


def test_forgetting_leaves_nothing_in_the_cache_and_the_bits_of_a_run_that_never_knew(tmp_path: Path) -> None:
    table = make_table(120)
    gone = ["p7", "p8", "p99"]
    config = configure(tmp_path, table)
    train(config)
    assert features(config)
    needles = [needle for person in gone for needle in row_bytes(config, person)]
    for needle in needles:
        assert [path.relative_to(config.address).parts[0] for path in holding(config, needle)] == ["features"]
    commands.unlearn(config, gone, new_workers=InlineWorkers)
    for needle in needles:
        assert not holding(config, needle)
    left = table.filter(pc.invert(pc.is_in(table["person"], pa.array(gone))))
    oracle = configure(tmp_path / "oracle", left)
    train(oracle)
    assert bits(config) == bits(oracle)
    # The digest at the end of a name is of the features alone: keys are under each run's own secret.
    assert sorted(n.split("-")[3] for n in names(config)) == sorted(n.split("-")[3] for n in names(oracle))
    assert verify(config, new_workers=InlineWorkers).outcome == "bit-identical"


def rebuild(config: SisaConfig) -> None:
    """Have a shard trained again, which needs its features."""
    ref = existing_run(config).state.stages[0, 1]
    for path in (Path(config.address) / layout.CHECKPOINTS / "shard=00000").rglob("*.safetensors"):
        path.unlink()
    train(config)
    assert existing_run(config).state.stages[0, 1].path != ref.path


@pytest.mark.parametrize("fault", ["lost", "cut short", "changed"])
def test_what_is_lost_or_broken_is_computed_again_in_the_same_bits(tmp_path: Path, fault: str) -> None:
    config = configure(tmp_path)
    train(config)
    before, cached = bits(config), names(config)
    for path in features(config):
        if "shard=00000" in str(path):
            data = path.read_bytes()
            path.unlink() if fault == "lost" else path.write_bytes(
                data[:-1] if fault == "cut short" else data[:-1] + bytes([data[-1] ^ 1])
            )
    rebuild(config)
    assert (bits(config), names(config)) == (before, cached)


def test_a_backbone_runs_once_for_a_row_whatever_the_number_of_constituents(tmp_path: Path) -> None:
    config = configure(tmp_path, sisa={"num_shards": 5, "num_slices": 2})
    backbones.CALLS.clear()
    train(config)  # which measures the ensemble on 60 rows too, and checks two slices
    state = existing_run(config).state
    passes = sum(-(-ref.num_records // 4) for ref in state.slices.values())
    assert passes + 60 // 4 <= len(backbones.CALLS) <= passes + 60 // 4 + 4
    assert set(backbones.CALLS) == {4}
    backbones.CALLS.clear()
    kinds: tuple[BaselineKind, ...] = ("full", "one_shard")
    for kind in kinds:
        baseline(config, kind, new_workers=InlineWorkers)
    assert len(backbones.CALLS) == 2 * 60 // 4
    backbones.CALLS.clear()
    predict(config, config.data.test or "", out=str(tmp_path / "out.parquet"), new_workers=InlineWorkers)
    assert len(backbones.CALLS) == 60 // 4


def test_streaming_and_resident_loaders_read_the_same_cache(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"sisa": {"order_buckets": 3}}
    one, other = (
        configure(tmp_path / loader, resources={"loader": loader}, **changes)
        for loader in ("resident", "streaming")
    )
    train(one)
    train(other)
    assert bits(one) == bits(other)
    buckets = {parsed.bucket for path in features(one) if (parsed := _parsed(one, path))}
    assert buckets == {0, 1, 2}


def _parsed(config: SisaConfig, path: Path) -> layout.FeatureName | None:
    return layout.parse_features(path.relative_to(config.address).as_posix())


def test_a_purge_takes_features_that_are_of_no_slice_and_those_in_scratch(tmp_path: Path) -> None:
    config = configure(tmp_path)
    train(config)
    cached = features(config)
    whole = cached[0].read_bytes()
    stale = cached[0].with_name("0" * 64 + cached[0].name[64:])
    scratch = Path(config.address) / "scratch" / "x" / cached[0].relative_to(config.address)
    for path in (stale, scratch):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(whole)
    train(config)
    assert features(config) == cached
    assert not scratch.exists()


def test_verification_finds_cached_features_that_are_not_those_of_the_records(tmp_path: Path) -> None:
    config = configure(tmp_path)
    train(config)
    path = features(config)[0]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    result = verify(config, new_workers=InlineWorkers)
    assert result.outcome == "different"
    assert re.match(r"cached features of shard 0: bits differ \(features/", result.first_difference or "")


def test_another_backbone_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(tmp_path)
    train(config)
    spec = existing_run(config).spec
    assert spec.backbone is not None
    assert spec.identity["backbone"] == spec.backbone.model_dump()
    assert (spec.backbone.batch_size, spec.backbone.distributions) == (4, {})
    build = backbones.Frozen.build_backbone

    def other(self: backbones.Frozen) -> nn.Module:
        module = build(self)
        with torch.no_grad():
            module[1].running_mean += 1  # type: ignore[index]
        return module

    monkeypatch.setattr(backbones.Frozen, "build_backbone", other)
    entries = existing_run(config).head.seq
    with pytest.raises(RunConflict, match="its backbone here is not the run's:\n  weights: "):
        baseline(config, new_workers=InlineWorkers)
    changed = configure(tmp_path / "other")
    train(changed)
    other_spec = existing_run(changed).spec
    assert other_spec.stage_digest != spec.stage_digest
    assert existing_run(config).state.generation == 1
    assert existing_run(config).head.seq > entries


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("LooksAround", "'features' of a row depends on the rows beside it"),
        ("Draws", "draws random numbers"),
        ("Counts", "'features' is another one in a fresh process"),
    ],
)
def test_the_self_check_finds_features_that_are_not_the_rows_own(
    tmp_path: Path, recipe: str, says: str
) -> None:
    with pytest.raises(SelfCheckError, match=f"recipe {recipe}.embed: {says}"):
        train(configure(tmp_path, recipe=recipe))


def test_what_embed_gives_is_checked(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe DropsRows.embed: 'features' must be a tensor of 4 rows"):
        train(configure(tmp_path, recipe="DropsRows"))
