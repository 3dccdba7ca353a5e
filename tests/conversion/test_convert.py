"""Splits, outputs, labels: what conversions of every format share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sisa_ray.conversion.labels import read_classes
from sisa_ray.conversion.output import fresh_directory
from sisa_ray.core.errors import ConfigError, DataError, SourceMissing
from tests.conversion.files import names, npz, rows, run


def people(path: Path, numbers: range) -> Path:
    """Two records a person."""
    who = np.array([f"p{n}" for n in numbers for _ in range(2)])
    return npz(path, x=np.zeros((len(who), 1), np.uint8), who=who, no=np.arange(len(who)))


def sides(out: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for table in ("train", "test"):
        for row in rows(out, table):
            found.setdefault(row["subject"], set()).add(table)
    return found


def test_the_split_is_by_subject_and_nobody_moves_when_others_go(tmp_path: Path) -> None:
    names = {"features": "x", "subject_id": "who", "record_id": "no"}
    run(tmp_path / "all", people(tmp_path / "a.npz", range(1000)), test_share=0.2, **names)
    run(tmp_path / "some", people(tmp_path / "b.npz", range(500, 1500)), test_share=0.2, **names)
    run(tmp_path / "other", people(tmp_path / "a.npz", range(1000)), test_share=0.2, split_seed=1, **names)
    everyone, some, other = (sides(tmp_path / name) for name in ("all", "some", "other"))
    assert all(len(tables) == 1 for tables in everyone.values())
    assert 160 < sum("test" in tables for tables in everyone.values()) < 240
    assert all(some[person] == everyone[person] for person in some.keys() & everyone.keys())
    assert other != everyone


def test_a_larger_share_only_adds(tmp_path: Path) -> None:
    file = npz(tmp_path / "a.npz", x=np.zeros((300, 1)))
    taken = []
    for share in (0.1, 0.3):
        run(tmp_path / f"{share}", file, features="x", test_share=share)
        taken.append({row["id"] for row in rows(tmp_path / f"{share}", "test")})
    assert taken[0] < taken[1]


def test_a_directory_that_is_taken_is_kept_unless_told(tmp_path: Path) -> None:
    first, second = (npz(tmp_path / f"{n}.npz", x=np.full((4, 1), n)) for n in (1, 2))
    run(tmp_path / "out", first, test=[second], features="x")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(
        ConfigError, match=r"--out: .* already holds test\.parquet, train\.parquet; .* --overwrite"
    ):
        run(tmp_path / "out", second, features="x")
    with pytest.raises(DataError):
        run(tmp_path / "out", second, features="y", overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    run(tmp_path / "out", second, features="x", overwrite=True)
    assert names(tmp_path / "out") == ["train.parquet"]  # nothing is left of the first
    assert rows(tmp_path / "out")[0]["id"] == "2-0"
    assert names(tmp_path) == ["1.npz", "2.npz", "out"]


def test_files_of_others_are_never_touched(tmp_path: Path) -> None:
    file = npz(tmp_path / "a.npz", x=np.zeros((4, 1)))
    (tmp_path / "empty").mkdir()
    run(tmp_path / "empty", file, features="x")
    (tmp_path / "empty" / "thesis.tex").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"holds other files \(thesis\.tex\)"):
            run(tmp_path / "empty", file, features="x", overwrite=overwrite)
    with pytest.raises(ConfigError, match=r"a\.npz is not a directory"):
        run(file, file, features="x", overwrite=True)
    with pytest.raises(ConfigError, match=r"the directory .*missing does not exist"):
        run(tmp_path / "missing" / "out", file, features="x")
    with pytest.raises(ConfigError, match=r"must be a local directory, not 's3:/"):
        run("s3://bucket/x", file, features="x")  # type: ignore[arg-type]


def test_what_was_there_comes_back_when_the_name_cannot_be_taken(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "train.parquet").write_text("old")
    with pytest.raises(ZeroDivisionError), fresh_directory(str(out), overwrite=True) as directory:
        1 / ((directory / "train.parquet").write_text("new") - 3)
    with pytest.raises(ConfigError, match="holds other files"), fresh_directory(str(out), overwrite=True):
        (out / "note").touch()  # someone else came in meanwhile
    assert (out / "train.parquet").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_options_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    file = npz(tmp_path / "a.npz", x=np.zeros((4, 1)), y=np.zeros(4))
    with pytest.raises(ConfigError, match=r"--test, --test-features and --test-share: .* give one of them"):
        run(tmp_path / "out", file, features="x", test=[file], test_share=0.5)
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"--test-share: must be more than 0 and less than 1"):
            run(tmp_path / "out", file, features="x", test_share=share)
    with pytest.raises(ConfigError, match=r"--split-seed: must be a whole number"):
        run(tmp_path / "out", file, features="x", test_share=0.5, split_seed=-1)
    with pytest.raises(ConfigError, match=r"--classes and --label-type float"):
        run(tmp_path / "out", file, features="x", label="y", classes=("a", "b"), label_type="float")
    with pytest.raises(DataError, match=r"no records are left to test on"):
        run(tmp_path / "out", file, features="x", test_share=1e-9)
    with pytest.raises(DataError, match=r"no records are left to train on"):
        run(tmp_path / "out", file, features="x", test_share=1 - 1e-9)
    with pytest.raises(SourceMissing, match=r"b\.npz: does not exist"):
        run(tmp_path / "out", tmp_path / "b.npz", features="x")
    (tmp_path / "a.pkl").touch()
    with pytest.raises(ConfigError, match=r"a\.pkl is of no known kind; give files ending in \.npz, \.mat"):
        run(tmp_path / "out", tmp_path / "a.pkl", features="x")
    assert not (tmp_path / "out").exists()


def test_lists_of_classes_are_read_from_text_and_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"classes": ["cat", "dog"]}')
    (tmp_path / "b.json").write_text('["cat", "dog"]')
    (tmp_path / "c.txt").write_text("cat\ndog\n\n")
    for given in ("cat,dog", " cat , dog ", *(str(tmp_path / n) for n in ("a.json", "b.json", "c.txt"))):
        assert read_classes(given) == ("cat", "dog")
    (tmp_path / "d.json").write_text("[1, 2]")
    (tmp_path / "e.json").write_text("{")
    for given, message in (
        ("cat", "must list at least two names"),
        ("cat,,dog", "must list at least two names"),
        ("cat,dog,cat", "lists 'cat' more than once"),
        (str(tmp_path / "d.json"), "must list at least two names"),
        (str(tmp_path / "e.json"), "is not JSON"),
        (str(tmp_path / "f.txt"), "cannot be read: No such file"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_classes(given)
