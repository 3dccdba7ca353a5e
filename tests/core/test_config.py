from __future__ import annotations

import json
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sisa_ray.core.config import DataConfig, RecipeConfig, SisaConfig, SisaSection
from sisa_ray.core.errors import ConfigError
from sisa_ray.core.schedule import Sweep
from tests.core.builders import config_data, make_config, set_at
from tests.core.config_faults import WRONG

MNIST = """
name: mnist
storage_path: s3://sisa-runs            # or a local directory
data:
  train: ../shared/data/mnist-train.parquet   # file, directory or glob; local or s3
  test: ../shared/data/mnist-test.parquet
  record_id: id
  subject_id: id                        # default: record_id
  columns: {features: pixels, label: label}
recipe:
  class: sisa_ray.recipes.MLPClassifier # import path; users bring their own
  args: {hidden: [128], num_classes: 10, lr: 0.001, batch_size: 64, scale: 255}
sisa: {num_shards: 20, num_slices: 10, epochs: 15, schedule: equal, seed: 0}
resources: {gpus_per_shard: auto, cpus_per_shard: 1}
"""


def message_of(data: object) -> str:
    with pytest.raises(ConfigError) as caught:
        SisaConfig.from_mapping(data, source="run.yaml")
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return str(caught.value)


class TestReading:
    def test_the_documented_example(self, tmp_path: Path) -> None:
        path = tmp_path / "mnist.yaml"
        path.write_text(MNIST, encoding="utf-8")
        config = SisaConfig.from_yaml(path)
        assert config.address == "s3://sisa-runs/mnist"
        assert config.data.columns == {"features": "pixels", "label": "label"}
        assert config.recipe.class_path == "sisa_ray.recipes.MLPClassifier"
        assert config.recipe.args["hidden"] == [128]
        assert config.sisa.stage_epochs == [Fraction(30, 11)] * 10
        assert config.keep_checkpoints == "all"
        assert config.aggregation == "auto"

    def test_python_builds_the_same(self) -> None:
        config = SisaConfig(
            name="digits",
            storage_path="/runs",
            data=DataConfig(
                train="/tables/train.parquet",
                record_id="id",
                columns={"features": "pixels", "label": "label"},
            ),
            recipe=RecipeConfig.model_validate(
                {"class_path": "sisa_ray.recipes.MLPClassifier", "args": {"hidden": (128,), "lr": 0.001}}
            ),
            sisa=SisaSection(num_shards=3, num_slices=4, epochs=Fraction(6)),
        )
        assert config == make_config()

    def test_python_gets_the_same_messages(self) -> None:
        with pytest.raises(ValidationError, match="must be a whole number from 1 to 100000, not 0"):
            SisaSection(num_shards=0, num_slices=4, epochs=Fraction(6))
        with pytest.raises(ValidationError, match="unknown key; did you mean 'num_shards'"):
            SisaSection.model_validate({"num_shard": 1, "num_slices": 4, "epochs": 6})

    def test_subject_defaults_to_record(self) -> None:
        assert make_config(data__record_id="key").data.subject_id == "key"
        assert make_config(data__subject_id=None).data.subject_id == "id"
        assert make_config(data__subject_id="").data.subject_id == "id"
        assert make_config(data__subject_id="person").data.subject_id == "person"

    @pytest.mark.parametrize("storage_path", ["/runs", "/runs/", "/runs//"])
    def test_address(self, storage_path: str) -> None:
        assert make_config(storage_path=storage_path).address == "/runs/digits"
        assert make_config(storage_path="/").address == "/digits"

    @pytest.mark.parametrize(
        ("written", "epochs"),
        [
            (15, Fraction(15)),
            (1.5, Fraction(3, 2)),
            (0.1, Fraction(1, 10)),
            ("7/2", Fraction(7, 2)),
            ("1e-1", 0.1),
        ],
    )
    def test_epochs_are_exact_as_written(self, written: object, epochs: Fraction | float) -> None:
        assert make_config(sisa__epochs=written).sisa.epochs == Fraction(str(epochs))

    @pytest.mark.parametrize(
        ("written", "keep"),
        [
            ("all", "all"),
            ([4, 2, 2], (2, 4)),
            ((1,), (1,)),
            ([], ()),
            ("20GB", 20 * 10**9),
            ("1.5 GiB", 3 * 2**29),
            ("500kB", 500_000),
            ("100", 100),
            ("100B", 100),
            (4096, 4096),
            (2e9, 2 * 10**9),
        ],
    )
    def test_keep_checkpoints(self, written: object, keep: object) -> None:
        assert make_config(keep_checkpoints=written).keep_checkpoints == keep

    @pytest.mark.parametrize(
        ("written", "schedule"),
        [
            ("harmonic", "harmonic"),
            ("sweep", "sweep"),
            ({"sweep": 0.2}, Sweep(share=Fraction(1, 5), power=3)),
            ({"sweep": "1/7", "power": 2}, Sweep(share=Fraction(1, 7), power=2)),
            ([1, 0.5, "1/3", "0.25"], (Fraction(1), Fraction(1, 2), Fraction(1, 3), Fraction(1, 4))),
        ],
    )
    def test_schedule(self, written: object, schedule: object) -> None:
        assert make_config(sisa__schedule=written).sisa.schedule == schedule

    @pytest.mark.parametrize("written", ["auto", 0, 0.25, 1, 4])
    def test_gpus(self, written: object) -> None:
        assert make_config(resources__gpus_per_shard=written).resources.gpus_per_shard == written

    def test_packed_columns(self) -> None:
        config = make_config(data__columns={"label": "y", "features": ["b", "a"]})
        assert config.data.columns == {"features": ("b", "a"), "label": "y"}


class TestWhatDoesNotShow:
    """Keys hash sorted data, so nothing else may reach a recipe or a table."""

    def test_order_of_roles(self) -> None:
        one = make_config(data__columns={"label": "y", "features": "x"})
        assert list(one.data.columns) == ["features", "label"]

    def test_order_and_kind_of_arguments(self) -> None:
        one = make_config(recipe__args={"b": ({"z": 1, "y": 2},), "a": 1}).recipe.args
        assert repr(one) == "{'a': 1, 'b': [{'y': 2, 'z': 1}]}"

    def test_arguments_are_a_copy(self) -> None:
        hidden = [128]
        config = make_config(recipe__args={"hidden": hidden})
        hidden.append(64)
        assert config.recipe.args == {"hidden": [128]}


class TestRoundTrip:
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"sisa__epochs": "22/7", "sisa__schedule": [1, "2/3", 0.1, 5]},
            {"sisa__schedule": {"sweep": "1/7"}, "sisa__warm_start": {"shrink": 0.6}},
            {"keep_checkpoints": [1, 3]},
            {"keep_checkpoints": "1.5GB", "aggregation": "median"},
            {"resources": {"gpus_per_shard": 0.5, "cpus_per_shard": 0.5, "loader": "streaming"}},
            {"arithmetic": {"device": "cuda", "precision": "bf16", "threads": 4}, "data__test": "t.parquet"},
            {"recipe": {"class": "nets.py:Net", "args": {"x": [None, True, 1.0, -0.0, 1e300, "é", {}]}}},
            {"data__columns": {"features": ["a", "b"]}, "data__subject_id": "person"},
        ],
    )
    def test_through_json(self, changes: dict[str, object]) -> None:
        config = make_config(**changes)
        dumped = json.loads(json.dumps(config.model_dump(mode="json"), allow_nan=False))
        again = SisaConfig.from_mapping(dumped)
        assert again == config
        assert repr(again) == repr(config)
        assert SisaConfig.model_validate_json(config.model_dump_json()) == config

    def test_is_written_as_it_is_read(self) -> None:
        assert make_config().model_dump(mode="json")["recipe"].keys() == {"class", "args"}

    def test_pickles(self) -> None:
        assert pickle.loads(pickle.dumps(make_config())) == make_config()

    def test_is_frozen(self) -> None:
        config = make_config()
        for section, field in ((config, "name"), (config.sisa, "seed"), (config.recipe, "class_path")):
            with pytest.raises(ValidationError, match="frozen"):
                setattr(section, field, 1)


class TestMessages:
    @pytest.mark.parametrize(
        ("field", "value", "message"), WRONG, ids=[f"{f}-{i}" for i, (f, _, _) in enumerate(WRONG)]
    )
    def test_field_value_rule_and_fix_in_one_line(self, field: str, value: object, message: str) -> None:
        data = config_data()
        set_at(data, field.split("."), value)
        assert message_of(data) == f"run.yaml: {field}: {message}"

    @pytest.mark.parametrize(
        "field",
        [
            *("name", "storage_path"),
            *("data", "data.train", "data.record_id", "data.columns"),
            *("recipe", "recipe.class"),
            *("sisa", "sisa.num_shards", "sisa.num_slices", "sisa.epochs"),
        ],
    )
    def test_missing(self, field: str) -> None:
        data = config_data()
        section: dict[str, Any] = data
        *parents, last = field.split(".")
        for key in parents:
            section = section[key]
        del section[last]
        assert message_of(data) == f"run.yaml: {field}: is required; add it"

    @pytest.mark.parametrize(
        "changes",
        [
            {"sisa__num_slices": 10_000, "sisa__schedule": "harmonic"},
            {"sisa__schedule": ["1/" + "7" * 2500, "1/1" + "0" * 2500, 1, 1]},
        ],
        ids=["harmonic", "weights"],
    )
    def test_epochs_that_cannot_be_written(self, changes: dict[str, object]) -> None:
        assert message_of(config_data(**changes)) == (
            "run.yaml: sisa: the exact epochs of a stage have more than 4000 digits; "
            "use rounder weights or fewer slices"
        )

    def test_everything_at_once(self) -> None:
        data = config_data(name="a b", sisa__epochs=0, sisa__sed=1, keep_checkpoints=0, extra=1)
        del data["recipe"]["class"]
        assert [line.split(": ")[1] for line in message_of(data).splitlines()] == [
            "name",
            "recipe.class",
            "sisa.epochs",
            "sisa.sed",
            "keep_checkpoints",
            "extra",
        ]

    def test_keys_that_are_no_strings(self) -> None:
        """YAML reads `on` and `5` as such."""
        data: dict[Any, Any] = config_data()
        data[True] = 1
        assert message_of(data).startswith(
            "run.yaml: True: must be a string, not True; known keys are aggregation, "
        )
        data = config_data()
        data["sisa"][5] = 1
        assert message_of(data).startswith(
            "run.yaml: sisa.5: must be a string, not 5; known keys are epochs, "
        )

    def test_keys_that_pydantic_cannot_hold(self) -> None:
        message = message_of(config_data() | {"\ud800": 1})
        assert message.startswith("run.yaml: Input should be a valid string")
        assert message.endswith(r"not '\ud800'")

    def test_not_a_mapping(self) -> None:
        assert message_of([1]) == "run.yaml: must be a mapping of sections, not [1]"
        assert message_of(None) == (
            "run.yaml: is empty; it must have the keys name, storage_path, data, recipe and sisa"
        )

    def test_long_values_are_cut(self) -> None:
        message = message_of(config_data(name="x" * 5000))
        assert len(message) < 250
        assert "..." in message

    def test_an_anchor_within_itself(self) -> None:
        loop: dict[str, Any] = {}
        loop["again"] = loop
        data = config_data()
        data["recipe"]["args"] = loop
        assert "is nested more than 32 deep" in message_of(data)


class TestYamlErrors:
    def message(self, path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            SisaConfig.from_yaml(path)
        return str(caught.value)

    def test_missing_file(self, tmp_path: Path) -> None:
        path = tmp_path / "none.yaml"
        assert self.message(path) == (
            f"{path}: cannot be read: No such file or directory; give the path of a YAML file"
        )

    def test_directory(self, tmp_path: Path) -> None:
        assert self.message(tmp_path).startswith(f"{tmp_path}: cannot be read: Is a directory")

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("name: [", "is not YAML: line 1, column 8: "),
            ("name: a\nname: b", "is not YAML: line 2, column 1: the key 'name' is given twice; remove one"),
            ("when: 2024-13-45", "is not YAML: ValueError: month must be in 1..12"),
            ("a: 1\n---\nb: 2", "is not YAML: line 2, column 1: expected a single document"),
            ("", "is empty; it must have the keys"),
            ("- a", "must be a mapping of sections, not ['a']"),
            ("just text", "must be a mapping of sections, not 'just text'"),
            ("name: 2024-01-02", "name: must be a string, but is datetime.date(2024, 1, 2)"),
        ],
    )
    def test_bad_documents(self, tmp_path: Path, text: str, problem: str) -> None:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        assert self.message(path).startswith(f"{path}: {problem}")

    def test_not_text(self, tmp_path: Path) -> None:
        path = tmp_path / "run.yaml"
        path.write_bytes(b"name: \xff\xfe")
        assert self.message(path).startswith(f"{path}: is not a text file in UTF-8: ")

    def test_numbers_are_read_as_numbers(self, tmp_path: Path) -> None:
        path = tmp_path / "run.yaml"
        path.write_text(MNIST.replace("lr: 0.001", "lr: 1e-3"), encoding="utf-8")
        assert SisaConfig.from_yaml(path).recipe.args["lr"] == 0.001


FIELDS = ["name", "storage_path", "data", "data.train", "data.test", "data.record_id", "data.subject_id"]
FIELDS += [
    "data.columns",
    "recipe",
    "recipe.class",
    "recipe.args",
    "sisa",
    "sisa.num_shards",
    "sisa.num_slices",
]
FIELDS += [
    "sisa.epochs",
    "sisa.schedule",
    "sisa.seed",
    "sisa.order_buckets",
    "sisa.warm_start",
    "sisa.warm_start.shrink",
    "arithmetic",
    "arithmetic.device",
]
FIELDS += ["arithmetic.threads", "arithmetic.precision", "arithmetic.predict_batch_size", "resources"]
FIELDS += [
    "resources.gpus_per_shard",
    "resources.cpus_per_shard",
    "resources.labels",
    "resources.max_slots",
    "resources.ingest_in_memory_bytes",
    "aggregation",
]
FIELDS += ["resources.loader", "keep_checkpoints", "partial_checkpoint_every_s", "surprise", "sisa.surprise"]

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.integers(0, 2) | st.text(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.sampled_from(FIELDS), anything)
@settings(max_examples=600, deadline=None)
def test_whatever_is_written_is_a_config_or_one_line_a_fault(field: str, value: object) -> None:
    data = config_data()
    set_at(data, field.split("."), value)
    try:
        config = SisaConfig.from_mapping(data)
    except ConfigError as error:
        lines = str(error).splitlines()
        assert lines
        assert len(lines) == len(set(lines))
        section, *_ = field.split(".")
        assert all(line.startswith(f"configuration: {section}") for line in lines)
    else:
        dumped = json.loads(json.dumps(config.model_dump(mode="json"), allow_nan=False))
        assert SisaConfig.from_mapping(dumped) == config
