from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sisa_ray.conversion import images
from sisa_ray.core.errors import ConfigError, DataError
from tests.conversion.files import image_folder, npz, rows, run


def test_classes_are_folders_and_images_stay_their_bytes(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets", {"dog": 2, "cat": 1, "emu": 0})
    (root / "cat" / "deep").mkdir()
    (root / "cat" / "000.png").rename(root / "cat" / "deep" / "z.png")
    (root / "dog" / "readme.txt").write_text("no image")
    result = run(tmp_path / "out", root)
    read = rows(tmp_path / "out")
    assert [(row["id"], row["label"]) for row in read] == [
        ("pets/cat/deep/z.png", 0),
        ("pets/dog/000.png", 1),
        ("pets/dog/001.png", 1),
    ]
    assert read[1]["features"] == (root / "dog" / "000.png").read_bytes()
    assert pq.read_schema(tmp_path / "out" / "train.parquet").field("features").type == pa.binary()
    written = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert written == {"classes": ["cat", "dog", "emu"]}
    assert result.shape is None
    fitted, ignored = result.notices
    assert "a list fitted on the data" in fitted
    assert "--classes" in fitted
    assert ignored.startswith("1 files are no images")


def test_an_explicit_list_fixes_the_numbers(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets", {"dog": 1, "cat": 1})
    classes = ("dog", "bird", "cat")
    result = run(tmp_path / "out", root, classes=classes)
    assert [row["label"] for row in rows(tmp_path / "out")] == [2, 0]
    assert (result.classes, result.notices) == (classes, ())
    with pytest.raises(DataError, match=r"the label of row 1 is none of the 2 classes; complete --classes"):
        run(tmp_path / "other", root, classes=("cat", "bird"))


def test_test_folders_share_the_classes_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_MOST_IMAGES", 2)
    train = image_folder(tmp_path / "train", {"a": 3, "b": 2}, suffix="jpg")
    test = image_folder(tmp_path / "val", {"b": 1})
    result = run(tmp_path / "out", train, test=[test])
    assert (result.num_train, result.num_test, result.classes) == (5, 1, ("a", "b"))
    assert [(row["id"], row["label"]) for row in rows(tmp_path / "out", "test")] == [("val/b/000.png", 1)]
    assert pq.ParquetFile(tmp_path / "out" / "train.parquet").num_row_groups == 3
    other = image_folder(tmp_path / "other", {"c": 1})
    with pytest.raises(DataError, match=r"other: the label of row 0 is none of the 2 classes"):
        run(tmp_path / "out2", train, test=[other])


def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets", {"cat": 1, "dog": 1})
    broken = root / "dog" / "broken.jpg"
    broken.write_bytes((root / "dog" / "000.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"broken\.jpg: is no image that can be decoded"):
        run(tmp_path / "out", root)
    broken.rename(root / "stray.png")
    with pytest.raises(DataError, match=r"stray\.png lies in no class folder"):
        run(tmp_path / "out", root)
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match=r"bare: has no sub-folders"):
        run(tmp_path / "out", tmp_path / "bare")
    with pytest.raises(ConfigError, match=r"--features, --label, .*: are for arrays and CSV"):
        run(tmp_path / "out", root, label="y")
    with pytest.raises(ConfigError, match=r"one kind of files, not arrays and images"):
        run(tmp_path / "out", root, npz(tmp_path / "a.npz", x=[1]), features="x")
    with pytest.raises(ConfigError, match=r"'pets' is the name of two inputs"):
        run(tmp_path / "out", root, image_folder(tmp_path / "more" / "pets", {"cat": 1}))
    assert not (tmp_path / "out").exists()
