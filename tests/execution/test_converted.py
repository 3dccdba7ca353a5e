"""From a user's file to a trained ensemble: what ``convert`` writes is ingested and learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from sisa_ray.core.config import SisaConfig
from sisa_ray.execution import commands
from sisa_ray.service.cli import app
from tests.support.inline import InlineWorkers


def converted(*args: str) -> None:
    result = CliRunner().invoke(app, ["convert", *args], prog_name="sisa-ray")
    assert result.exit_code == 0, result.output


def trained(directory: Path, recipe: dict[str, Any], **data: str) -> float:
    """Accuracy of a small ensemble of what lies in ``directory``."""
    config = SisaConfig.from_mapping(
        {
            "name": "run",
            "storage_path": str(directory / "runs"),
            "data": {
                "train": str(directory / "out" / "train.parquet"),
                "test": str(directory / "out" / "test.parquet"),
                "record_id": "id",
                "columns": {"features": "features", "label": "label"},
                **data,
            },
            "recipe": recipe,
            "sisa": {"num_shards": 2, "num_slices": 2, "epochs": 6, "seed": 1},
            "arithmetic": {"device": "cpu"},
        }
    )
    accuracy = commands.train(config, new_workers=InlineWorkers).ensemble
    assert accuracy is not None
    return accuracy


def test_arrays_of_people_are_learned(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 240)
    features = (rng.normal(size=(240, 5)) + 3 * labels[:, None]).astype(np.float32)
    who = np.array([f"p{i // 2}" for i in range(240)])
    np.savez(tmp_path / "a.npz", x=features, y=labels, who=who)
    args = ["--features", "x", "--label", "y", "--subject-id", "who", "--test-share", "0.25"]
    converted(str(tmp_path / "a.npz"), *args, "--out", str(tmp_path / "out"))
    recipe = {
        "class": "sisa_ray.recipes.MLPClassifier",
        "args": {"hidden": [4], "num_classes": 2, "lr": 0.05, "batch_size": 8},
    }
    assert trained(tmp_path, recipe, subject_id="subject") > 0.9


def test_a_folder_of_images_is_learned(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, bright in (("dark", 40), ("light", 200)):
        for split, count in (("train", 40), ("val", 10)):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(rng.normal(bright, 30, (8, 9, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.jpg")
    out = ["--classes", "dark,light", "--out", str(tmp_path / "out")]
    converted(str(tmp_path / "train"), "--test", str(tmp_path / "val"), *out)
    args = {"num_classes": 2, "shape": [3, 8, 8], "channels": [4], "hidden": [], "lr": 0.01, "batch_size": 8}
    assert trained(tmp_path, {"class": "sisa_ray.recipes.CNNClassifier", "args": args}) > 0.9
