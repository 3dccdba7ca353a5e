from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sisa_ray.core.config import DataConfig
from sisa_ray.service.cli import app
from tests.conversion.files import image_folder, names, npz


def invoke(*args: str | Path, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, list(map(str, args)), prog_name="sisa-ray")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stdout, result.stderr


def test_text_ends_with_the_section_that_reads_the_files(tmp_path: Path) -> None:
    file = npz(tmp_path / "a.npz", x=[[[1, 2], [3, 4]]] * 9, y=[0, 1, 2] * 3, who=list("abcabcabc"))
    options = [
        "--features",
        "x",
        "--label",
        "y",
        "--subject-id",
        "who",
        "--test-share",
        "0.5",
        "--dtype",
        "uint8",
    ]
    out, err = invoke("convert", file, *options, "--out", tmp_path / "my out")
    assert "shape of a record: 2 × 2" in out
    assert not err
    section = yaml.safe_load(out[out.index("data:") :])["data"]
    data = DataConfig.model_validate(section)
    assert (data.record_id, data.subject_id, Path(data.train).parent) == (
        "id",
        "subject",
        tmp_path / "my out",
    )
    assert Path(data.train).exists()
    assert data.test is not None
    assert Path(data.test).exists()


def test_json_has_everything_and_notices_are_warnings(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets", {"cat": 2, "dog": 1})
    out, err = invoke("convert", root, "--out", tmp_path / "out", "--json")
    document = json.loads(out)
    assert (document["num_train"], document["num_test"], document["classes"]) == (3, 0, ["cat", "dog"])
    assert document["columns"] == {"id": "string", "features": "binary", "label": "int64"}
    assert "a list fitted on the data" in document["notices"][0]
    assert "a list fitted on the data" in err.replace("\n", " ")


def test_data_is_generated(tmp_path: Path) -> None:
    command: list[str | Path] = [
        "generate",
        "purchase",
        "--train",
        "30",
        "--test",
        "10",
        "--out",
        tmp_path / "p",
    ]
    document = json.loads(invoke(*command, "--json")[0])
    assert document == {"out": str(tmp_path / "p"), "num_train": 30, "num_test": 10, "seed": 0}
    before = (tmp_path / "p" / "train.parquet").read_bytes()
    assert "give --overwrite" in invoke(*command, code=2)[1].replace("\n", " ")
    assert "wrote 30 records to train on and 10 records to test on" in invoke(*command, "--overwrite")[0]
    assert (tmp_path / "p" / "train.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--features z", "has no array 'z'"),
        ("--features x, ", "--features: must be a name or names"),
        ("--features x --test-features x --label y", "--test-features and --test-label: give both"),
        ("--features x --test-label y", "--test-label: needs --test-features"),
        ("--features x --classes one", "--classes: must list at least two names"),
        ("--features x --dtype int3", "int3"),
        ("--features x --test-share 2", "--test-share: must be more than 0"),
    ],
)
def test_bad_input_is_one_clear_error_and_makes_nothing(tmp_path: Path, options: str, message: str) -> None:
    file = npz(tmp_path / "a.npz", x=[[1], [2]], y=[0, 1])
    _, err = invoke("convert", file, *shlex.split(options), "--out", tmp_path / "out", code=2)
    assert message in err
    assert names(tmp_path) == ["a.npz"]


def test_help_has_examples() -> None:
    out, _ = invoke("convert", "--help")
    for example in (
        "convert mnist.npz",
        "--sample-axis -1",
        "imagenet/train --test imagenet/val",
        "convert shop.csv",
    ):
        assert example in out
