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
from tests.core.builders import config_data, make_config, set_at

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


WRONG: list[tuple[str, object, str]] = [
    # Unknown keys
    ("storage_pth", "x", "unknown key; did you mean 'storage_path'?"),
    ("sisa.num_shard", 5, "unknown key; did you mean 'num_shards'?"),
    ("sisa.sed", 5, "unknown key; did you mean 'seed'?"),
    ("recipe.clas", "a.B", "unknown key; did you mean 'class'?"),
    ("recipe.klass", "a.B", "unknown key; did you mean 'class'?"),
    ("data.colums", {}, "unknown key; did you mean 'columns'?"),
    ("arithmetic.thread", 1, "unknown key; did you mean 'threads'?"),
    ("resources.gpu_per_shard", 1, "unknown key; did you mean 'gpus_per_shard'?"),
    ("num_shards", 5, "unknown key; did you mean 'sisa.num_shards'?"),
    ("class", "a.B", "unknown key; did you mean 'recipe.class'?"),
    ("recipe.zzz", 5, "unknown key; known keys are args, class"),
    # Sections
    (
        "sisa",
        5,
        "must be a mapping with the keys epochs, num_shards, num_slices, order_buckets, schedule,"
        " seed, not 5",
    ),
    ("recipe", "a.B", "must be a mapping with the keys args, class, not 'a.B'"),
    ("data", None, "must be a mapping with the keys columns, record_id, subject_id, test, train, not None"),
    # Names and paths
    (
        "name",
        "my run",
        "must be at most 128 letters, digits, '.', '_' and '-', the first a letter or digit, not "
        "'my run'; rename the run",
    ),
    (
        "name",
        "../up",
        "must be at most 128 letters, digits, '.', '_' and '-', the first a letter or digit, not "
        "'../up'; rename the run",
    ),
    ("name", "", "must not be empty, but is ''"),
    ("name", 2024, "must be a string, but is 2024; put it in quotes"),
    ("name", True, "must be a string, but is True; put it in quotes"),
    ("storage_path", "", "must not be empty, but is ''"),
    ("storage_path", " ", "must not be empty, but is ' '"),
    ("storage_path", "s3://", "must name a bucket, such as s3://my-runs, not 's3://'"),
    ("storage_path", ["a"], "must be a string, but is ['a']"),
    ("storage_path", "a\ud800", "must be valid Unicode, but is 'a\\ud800'"),
    ("data.train", "", "must not be empty, but is ''"),
    ("data.test", 5, "must be a string, but is 5; put it in quotes"),
    ("data.record_id", 5, "must be a string, but is 5; put it in quotes"),
    ("data.record_id", "", "must not be empty, but is ''"),
    ("data.subject_id", 5, "must be a string, but is 5; put it in quotes"),
    # Columns
    (
        "data.columns",
        {},
        "must map at least one role to a column (or to a list of columns), for example {features:"
        " pixels, label: label}, not {}",
    ),
    (
        "data.columns",
        ["pixels"],
        "must map at least one role to a column (or to a list of columns), for example {features:"
        " pixels, label: label}, not ['pixels']",
    ),
    ("data.columns", {"record_id": "id"}, "role 'record_id' is taken by the key of that name; rename it"),
    ("data.columns", {"a b": "x"}, "role 'a b' must be a name of letters, digits and '_'; rename it"),
    ("data.columns", {1: "x"}, "role 1 must be a name of letters, digits and '_'; rename it"),
    (
        "data.columns",
        {"features": 5},
        "the column of role 'features' must be a string, but is 5; put it in quotes",
    ),
    ("data.columns", {"features": ["a", ""]}, "the column of role 'features' must not be empty, but is ''"),
    ("data.columns", {"features": []}, "the list of columns of role 'features' is empty; name at least one"),
    # Recipe
    ("recipe.class", "MLP", "must be package.module.Class or path/to/file.py:Class, not 'MLP'"),
    ("recipe.class", "nets:Net", "must be package.module.Class or path/to/file.py:Class, not 'nets:Net'"),
    ("recipe.class", "nets.py:", "must be package.module.Class or path/to/file.py:Class, not 'nets.py:'"),
    ("recipe.class", "a..B", "must be package.module.Class or path/to/file.py:Class, not 'a..B'"),
    ("recipe.args", [1], "must map names of arguments to values, such as {lr: 0.001}, not [1]"),
    ("recipe.args", {"lr": float("nan")}, "lr: must be finite, not nan"),
    (
        "recipe.args",
        {"a": {"b": [0, {1: 2}]}},
        "a.b[1]: key 1 must be a string of valid Unicode; put it in quotes",
    ),
    ("recipe.args", {"\ud800": 1}, "key '\\ud800' must be a string of valid Unicode; put it in quotes"),
    (
        "recipe.args",
        {"a\n": {1}},
        "'a\\n': must be a number, string, truth value, null, list or mapping, not a set ({1}); "
        "write it as one of these",
    ),
    ("recipe.class_path", "a.B", "unknown key; did you mean 'class'?"),
    (
        "recipe.args",
        {"a": {1, 2}},
        "a: must be a number, string, truth value, null, list or mapping, not a set ({1, 2}); "
        "write it as one of these",
    ),
    # Sizes
    ("sisa.num_shards", 0, "must be a whole number from 1 to 100000, not 0"),
    ("sisa.num_shards", -3, "must be a whole number from 1 to 100000, not -3"),
    ("sisa.num_shards", 1.5, "must be a whole number from 1 to 100000, not 1.5"),
    ("sisa.num_shards", True, "must be a whole number from 1 to 100000, not True"),
    ("sisa.num_shards", "20", "must be a whole number from 1 to 100000, not '20'; remove the quotes"),
    ("sisa.num_shards", None, "must be a whole number from 1 to 100000, not None"),
    ("sisa.num_slices", 100000, "must be a whole number from 1 to 10000, not 100000"),
    ("sisa.seed", -1, "must be a whole number from 0 to 9223372036854775807, not -1"),
    ("sisa.seed", 10**5000, "must be a whole number from 0 to 9223372036854775807, not a int"),
    ("sisa.order_buckets", 0, "must be a whole number from 1 to 65536, not 0"),
    # Epochs and schedule
    ("sisa.epochs", 0, "must be positive, not 0"),
    ("sisa.epochs", "-1/2", "must be positive, not '-1/2'"),
    ("sisa.epochs", "many", "must be a finite number or a fraction such as 7/2, not 'many'"),
    ("sisa.epochs", "1/0", "must be a finite number or a fraction such as 7/2, not '1/0'"),
    ("sisa.epochs", float("inf"), "must be a finite number or a fraction such as 7/2, not inf"),
    ("sisa.epochs", True, "must be a finite number or a fraction such as 7/2, not True"),
    ("sisa.epochs", [1], "must be a finite number or a fraction such as 7/2, not [1]"),
    ("sisa.epochs", "1e999999999", "must be a finite number or a fraction such as 7/2, not '1e999999999'"),
    (
        "sisa.schedule",
        "hamonic",
        "must be equal, equal_cost or harmonic, or a list of one weight a stage, not 'hamonic'; "
        "did you mean 'harmonic'?",
    ),
    ("sisa.schedule", 5, "must be equal, equal_cost or harmonic, or a list of one weight a stage, not 5"),
    (
        "sisa.schedule",
        [1, 2],
        "must have one weight a stage: it has 2, but num_slices is 4; give 4 weights, or set num_slices to 2",
    ),
    (
        "sisa.schedule",
        [1, 0, 1, 1],
        "weight 2 must be positive, not 0; a stage without weight would never train",
    ),
    (
        "sisa.schedule",
        [1, 1, "x", 1],
        "weight 3 must be a finite number or a fraction such as 7/2, not 'x'; a stage without "
        "weight would never train",
    ),
    # Choices
    ("arithmetic.device", "gpu", "must be auto, cpu or cuda, not 'gpu'; did you mean 'cpu'?"),
    ("arithmetic.precision", 16, "must be fp32, bf16 or fp16, not 16; did you mean 'fp16'?"),
    ("aggregation", "average", "must be auto, majority, mean, median or size_weighted, not 'average'"),
    (
        "resources.loader",
        "stream",
        "must be auto, resident or streaming, not 'stream'; did you mean 'streaming'?",
    ),
    # Resources
    ("resources.gpus_per_shard", 1.5, "must be auto, 0, a fraction below 1, or a whole number, not 1.5"),
    (
        "resources.gpus_per_shard",
        float("inf"),
        "must be auto, 0, a fraction below 1, or a whole number, not inf",
    ),
    (
        "resources.gpus_per_shard",
        float("nan"),
        "must be auto, 0, a fraction below 1, or a whole number, not nan",
    ),
    (
        "resources.gpus_per_shard",
        "many",
        "must be auto, 0, a fraction below 1, or a whole number, not 'many'",
    ),
    ("resources.gpus_per_shard", False, "must be auto, 0, a fraction below 1, or a whole number, not False"),
    ("resources.cpus_per_shard", 0, "must be a positive, finite number, not 0"),
    ("resources.cpus_per_shard", True, "must be a positive, finite number, not True"),
    (
        "resources.ingest_in_memory_bytes",
        "much",
        "must be a size in bytes, such as 1000000 or 1GiB, not 'much'",
    ),
    ("partial_checkpoint_every_s", float("inf"), "must be a positive, finite number, not inf"),
    # Retention
    *[
        (
            "keep_checkpoints",
            bad,
            f"must be all, a list of stages such as [5, 10], or a positive size such as 20GB, not {bad!r}",
        )
        for bad in (None, 0, -5, True, 1.5, "0GB", "20 XB", "lots", "ALL", "", {"stages": [1]}, float("nan"))
    ],
    ("keep_checkpoints", [1, "a"], "must list stages, whole numbers from 1, but one is 'a'"),
    ("keep_checkpoints", [[1]], "must list stages, whole numbers from 1, but one is [1]"),
    ("keep_checkpoints", [True], "must list stages, whole numbers from 1, but one is True"),
    ("keep_checkpoints", [0], "must list stages, whole numbers from 1, but one is 0"),
    ("keep_checkpoints", [2, 5], "stage 5 is not one of 1..4 (num_slices); remove it"),
]


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
    "arithmetic",
    "arithmetic.device",
]
FIELDS += ["arithmetic.threads", "arithmetic.precision", "arithmetic.predict_batch_size", "resources"]
FIELDS += [
    "resources.gpus_per_shard",
    "resources.cpus_per_shard",
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
