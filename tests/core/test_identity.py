from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from pydantic import ValidationError

from sisa_ray.core.identity import Spec, differences, recipe_name
from sisa_ray.core.keys import canonical_json, json_digest
from tests.core.builders import make_spec


def test_identity_is_exactly_this() -> None:
    """Whatever is added to it disowns every checkpoint; whatever is missing from it lets a stale one pass."""
    spec = make_spec(arithmetic__device="cpu")
    assert spec.identity == {
        "data": {
            "record_id": "id",
            "subject_id": "id",
            "columns": {"features": "pixels", "label": "label"},
        },
        "recipe": {"class": "sisa_ray.recipes.MLPClassifier", "args": {"hidden": [128], "lr": 0.001}},
        "code": {"modules": {"nets": "ab" * 32}, "distributions": {"einops": "0.8"}, "numerics": 1},
        "sisa": {
            "num_shards": 3,
            "stage_epochs": ["12/5", "12/5", "12/5", "12/5"],
            "seed": 0,
            "order_buckets": 1,
        },
        "arithmetic": {"device": "cpu", "threads": 1, "precision": "fp32", "predict_batch_size": 256},
    }
    assert spec.digest == json_digest({"version": 1, "identity": spec.identity})


def test_several_workers_are_part_of_it() -> None:
    """One worker is what runs were before there were several: their keys stay as they are."""
    one = make_spec(arithmetic__device="cpu", arithmetic__workers=1, arithmetic__parallel="ddp")
    assert one.identity == make_spec(arithmetic__device="cpu").identity
    digests = {
        make_spec(arithmetic__device="cpu", arithmetic__workers=n, arithmetic__parallel=p).stage_digest
        for n, p in [(1, "ddp"), (2, "ddp"), (4, "ddp"), (2, "fsdp"), (4, "fsdp")]
    }
    assert len(digests) == 5
    assert one.stage_digest == make_spec(arithmetic__device="cpu", resources__cpus_per_worker=3).stage_digest


def test_warm_starts_are_part_of_it() -> None:
    """None is what runs were before there was a choice: their keys stay as they are."""
    assert "warm_start" not in make_spec().identity["sisa"]
    digests = {
        make_spec(sisa__warm_start=given).stage_digest
        for given in (None, {}, {"shrink": 1, "perturb": 0}, {"shrink": "1/3"}, {"perturb": 0.2})
    }
    assert len(digests) == 5
    default = make_spec(sisa__warm_start={"shrink": 0.5, "perturb": 0.1})
    assert default.identity == make_spec(sisa__warm_start={}).identity


def test_only_the_stages_of_a_schedule_count() -> None:
    """However it is written: by name, as a mapping, or one weight a stage."""
    named = make_spec(sisa__schedule="sweep")
    assert named.digest == make_spec(sisa__schedule={"sweep": 0.05, "power": 3}).digest
    assert named.digest == make_spec(sisa__schedule=[str(e) for e in named.config.sisa.stage_epochs]).digest
    assert named.digest != make_spec(sisa__schedule={"sweep": 0.25}).digest


def test_survives_spec_json() -> None:
    """What another process reads is the same spec, down to the order in which a recipe gets its arguments."""
    spec = make_spec(
        data__columns={"label": "y", "features": ["b", "a"]},
        recipe__args={"z": {"b": 1, "a": (2.0, None)}, "lr": 1e-3, "deep": True},
        sisa__schedule=[1, "2/3", 0.1, 4],
        keep_checkpoints=[2, 1],
    )
    again = Spec.model_validate_json(canonical_json(spec.model_dump(mode="json")))
    assert again == spec
    assert again.digest == spec.digest
    assert again.stage_digest == spec.stage_digest
    assert repr(again.config.recipe.args) == repr(spec.config.recipe.args)
    assert list(again.config.data.columns) == list(spec.config.data.columns)


def test_is_frozen_and_knows_its_fields() -> None:
    spec = make_spec()
    with pytest.raises(ValidationError, match="frozen"):
        spec.batch_size = 5
    data = spec.model_dump(mode="json") | {"surprise": 1}
    with pytest.raises(ValidationError, match="surprise"):
        Spec.model_validate(data)


class TestRecipeName:
    @pytest.mark.parametrize(
        "path",
        ["nets.py:Net", "./nets.py:Net", "/home/me/nets.py:Net", "a/b/nets.py:Net", r"C:\work\nets.py:Net"],
    )
    def test_directories_do_not_count(self, path: str) -> None:
        assert recipe_name(path) == "nets.Net"

    def test_modules_count_in_full(self) -> None:
        assert recipe_name("a.nets.Net") == "a.nets.Net"

    @pytest.mark.parametrize("directory", ["/a", "/b/c", "."])
    def test_a_moved_recipe_is_the_same_spec(self, directory: str) -> None:
        here = make_spec(recipe__class="nets.py:Net")
        moved = make_spec(recipe__class=str(PurePosixPath(directory) / "nets.py") + ":Net")
        assert moved.digest == here.digest

    def test_another_class_of_the_file_is_another_spec(self) -> None:
        assert (
            make_spec(recipe__class="nets.py:Net").digest
            != make_spec(recipe__class="nets.py:Other").digest
            != make_spec(recipe__class="other.py:Other").digest
        )


class TestDifferences:
    def test_nothing(self) -> None:
        assert differences(make_spec().identity, make_spec(name="other").identity) == []

    def test_names_each_field_with_both_values(self) -> None:
        there = make_spec(arithmetic__device="cpu").identity
        here = make_spec(
            sisa__seed=5, recipe__args={"hidden": [64], "new": 1}, arithmetic__device="cpu"
        ).identity
        assert differences(there, here) == [
            "recipe.args.hidden: [128] in the run, [64] here",
            "recipe.args.lr: 0.001 in the run, absent here",
            "recipe.args.new: absent in the run, 1 here",
            "sisa.seed: 0 in the run, 5 here",
        ]

    def test_long_values_are_cut(self) -> None:
        (line,) = differences({"a": "x" * 500}, {"a": 1})
        assert len(line) < 120
        assert "..." in line

    def test_a_value_and_a_section(self) -> None:
        assert differences({"a": 1}, {"a": {"b": 1}}) == ["a: 1 in the run, {'b': 1} here"]
