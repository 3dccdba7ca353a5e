"""The paper's settings under ``jobs/paper``: each is valid, and its recipe takes what its own command converts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat
from typer.testing import CliRunner

from sisa_ray.core.config import SisaConfig
from sisa_ray.learning.recipe import RecipeSpec
from sisa_ray.service.cli import app
from sisa_ray.storage.source import open_source
from tests.conversion.files import image_folder, npz

JOBS = Path(__file__).parents[2] / "jobs" / "paper"


def mnist() -> None:
    pixels = np.zeros((4, 28, 28), np.uint8)
    npz(
        Path("mnist.npz"),
        x_train=pixels,
        y_train=np.arange(4, dtype=np.uint8),
        x_test=pixels,
        y_test=np.arange(4),
    )


def svhn() -> None:
    for name in ("train", "extra", "test"):
        savemat(
            f"{name}_32x32.mat",
            {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[10], [1]], np.uint8)},
        )


def cifar(*names: str, label: str) -> None:
    for name in names:
        savemat(f"{name}.mat", {"data": np.zeros((2, 3072), np.uint8), label: np.array([[0], [9]], np.uint8)})


def folders(*names: str, num_classes: int, images: int) -> None:
    Path("synsets.txt").write_text("\n".join(f"n{number:08d}" for number in range(num_classes)))
    for name in names:
        image_folder(Path(name), {"n00000000": images, "n00000001": images}, suffix="jpg")


FILES: dict[str, Callable[[], None]] = {
    "purchase": lambda: None,
    "mnist": mnist,
    "svhn": svhn,
    "cifar10": lambda: cifar(*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", label="labels"),
    "cifar100": lambda: cifar("train", "test", label="fine_labels"),
    "mini-imagenet": lambda: folders("images", num_classes=100, images=20),
    "imagenet": lambda: folders("train", "val", num_classes=1000, images=2),
}
"""What the command in a preset converts, small."""


def command_in(preset: Path) -> list[str]:
    """The arguments of the one command in the comments at the top."""
    comments = "\n".join(re.findall(r"^# ?(.*)$", preset.read_text(encoding="utf-8"), re.MULTILINE))
    (command,) = re.findall(r"^ *sisa-ray ((?:.*\\\n)*.*)$", comments, re.MULTILINE)
    return shlex.split(command.replace("\\\n", " "))


def test_there_is_a_preset_for_everything_in_the_paper() -> None:
    assert {path.stem for path in JOBS.glob("*.yaml")} == {*FILES, "cifar10-transfer"}


@pytest.mark.parametrize("name", FILES)
def test_the_recipe_takes_what_the_command_makes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SisaConfig.from_yaml(JOBS / f"{name}.yaml")
    assert (config.sisa.num_shards, config.sisa.num_slices, config.sisa.schedule) == (20, 50, "equal")
    monkeypatch.chdir(tmp_path)
    FILES[name]()
    small = ["--train", "20", "--test", "5"] if name == "purchase" else []
    result = CliRunner().invoke(app, [*command_in(JOBS / f"{name}.yaml"), *small], prog_name="sisa-ray")
    assert result.exit_code == 0, result.output
    assert "warning" not in result.stderr  # no class list is fitted on the data
    assert config.data.test is not None
    for url, for_training in ((config.data.train, True), (config.data.test, False)):
        source = open_source(config.data, url, for_training=for_training)
        spec = RecipeSpec(class_path=config.recipe.class_path, args=config.recipe.args)
        recipe: Any = spec.factory(source.role_schema)()
        columns = next(iter(source.batches(2))).role_arrays()
        assert not list(recipe.problems(columns))
        batch = recipe.decode(columns)
        with torch.device("meta"):  # shapes alone
            outputs = recipe.build_model()(recipe.inputs(batch).to("meta"))
        assert outputs.shape == (2, recipe.num_classes)
        assert batch["label"].dtype == torch.int64
