from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.io import savemat

from sisa_ray.conversion import rows as rows_module
from sisa_ray.conversion.rows import Names
from sisa_ray.core.errors import ConfigError, DataError
from tests.conversion.files import names, npz, rows, run

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 4, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2, 0], dtype=np.uint8)


def test_bytes_become_fixed_binary_and_ids_say_file_and_row(tmp_path: Path) -> None:
    file = npz(tmp_path / "digits.npz", x=PIXELS, y=LABELS)
    result = run(tmp_path / "out", file, features="x", label="y")
    table = pq.read_table(tmp_path / "out" / "train.parquet")
    assert table.schema.field("features").type == pa.binary(12)
    assert table.schema.field("label").type == pa.int64()
    read = rows(tmp_path / "out")
    assert [row["id"] for row in read] == [f"digits-{i}" for i in range(7)]
    assert [row["features"] for row in read] == [image.tobytes() for image in PIXELS]
    assert [row["label"] for row in read] == LABELS.tolist()
    assert (result.num_train, result.num_test, result.shape, result.classes) == (7, 0, (4, 3), None)
    assert names(tmp_path / "out") == ["train.parquet"]


@pytest.mark.parametrize("dtype", ["bool", "int16", ">i4", "float16", "float32", ">f8"])
def test_other_numbers_become_fixed_lists_of_their_type(tmp_path: Path, dtype: str) -> None:
    values = (PIXELS.reshape(7, 12) % 2).astype(dtype)
    run(tmp_path / "out", npz(tmp_path / "a.npz", x=values), features="x")
    kind = pq.read_schema(tmp_path / "out" / "train.parquet").field("features").type
    native = np.dtype(dtype).newbyteorder("=")
    assert kind == (pa.binary(12) if dtype == "bool" else pa.list_(pa.from_numpy_dtype(native), 12))
    read = [list(row["features"]) for row in rows(tmp_path / "out")]
    assert read == values.astype(native).tolist()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_file_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Any) -> None:
    save(tmp_path / "a.npz", x=PIXELS, y=LABELS)
    monkeypatch.setattr(rows_module, "PIECE_BYTES", 24)  # two rows
    run(tmp_path / "out", tmp_path / "a.npz", features="x", label="y")
    assert pq.ParquetFile(tmp_path / "out" / "train.parquet").num_row_groups == 4
    assert [row["features"] for row in rows(tmp_path / "out")] == [image.tobytes() for image in PIXELS]


def test_records_on_another_axis_and_in_fortran_order(tmp_path: Path) -> None:
    last = npz(tmp_path / "last.npz", x=np.moveaxis(PIXELS, 0, -1))
    fortran = npz(tmp_path / "fortran.npz", x=np.asfortranarray(PIXELS))
    run(tmp_path / "a", last, features="x", sample_axis=-1)
    run(tmp_path / "b", fortran, features="x")
    for out in ("a", "b"):
        assert [row["features"] for row in rows(tmp_path / out)] == [image.tobytes() for image in PIXELS]


def test_ids_subjects_and_a_test_table_in_the_same_file(tmp_path: Path) -> None:
    file = npz(
        tmp_path / "a.npz",
        x=PIXELS,
        y=LABELS,
        who=np.array(list("aabbccd")),
        no=np.arange(7) + 10,
        tx=PIXELS[:2],
        ty=LABELS[:2],
    )
    test_names = Names(features=("tx",), label="ty")
    options: dict[str, Any] = {"features": "x", "label": "y", "record_id": "no", "subject_id": "who"}
    result = run(tmp_path / "out", file, test_names=test_names, **options)
    assert [(r["id"], r["subject"]) for r in rows(tmp_path / "out")][:3] == [
        ("10", "a"),
        ("11", "a"),
        ("12", "b"),
    ]
    assert [r["id"] for r in rows(tmp_path / "out", "test")] == ["a-tx-0", "a-tx-1"]
    assert (result.num_train, result.num_test) == (7, 2)


def test_several_files_and_a_test_file(tmp_path: Path) -> None:
    files = [npz(tmp_path / f"{name}.npz", x=PIXELS[part], y=LABELS[part]) for name, part in
             (("a", slice(3)), ("b", slice(3, 5)), ("t", slice(5, 7)))]  # fmt: skip
    run(tmp_path / "out", *files[:2], test=files[2:], features="x", label="y")
    assert [r["id"] for r in rows(tmp_path / "out")] == ["a-0", "a-1", "a-2", "b-0", "b-1"]
    assert [r["id"] for r in rows(tmp_path / "out", "test")] == ["t-0", "t-1"]


def test_mat_files_with_records_last_and_labels_as_floats(tmp_path: Path) -> None:
    """As SVHN has it: X of 32 x 32 x 3 x N, y of N x 1 with 10 for the digit 0."""
    images = np.random.default_rng(1).integers(0, 256, (4, 4, 3, 5), dtype=np.uint8)
    savemat(tmp_path / "train.mat", {"X": images, "y": np.array([[10.0], [1], [2], [9], [10]])})
    classes = ("10", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    result = run(
        tmp_path / "out", tmp_path / "train.mat", features="X", label="y", sample_axis=3, classes=classes
    )
    read = rows(tmp_path / "out")
    assert [row["label"] for row in read] == [0, 1, 2, 9, 0]
    assert read[1]["features"] == images[..., 1].tobytes()
    assert result.shape == (4, 4, 3)


def test_doubles_are_made_bytes_where_they_fit(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"x": np.array([[0.0, 1.0], [1.0, 255.0]])})
    run(tmp_path / "out", tmp_path / "a.mat", features="x", dtype=np.dtype(np.uint8))
    assert [r["features"] for r in rows(tmp_path / "out")] == [b"\x00\x01", b"\x01\xff"]
    savemat(tmp_path / "b.mat", {"x": np.array([[0.0, 1.0], [1.5, 2.0]])})
    with pytest.raises(DataError, match=r"b\.mat: 'x': row 1 holds a value that uint8 cannot"):
        run(tmp_path / "b", tmp_path / "b.mat", features="x", dtype=np.dtype(np.uint8))


def test_labels_for_regression(tmp_path: Path) -> None:
    file = npz(tmp_path / "a.npz", x=PIXELS, y=np.linspace(0, 1, 7))
    run(tmp_path / "out", file, features="x", label="y", label_type="float")
    assert pq.read_schema(tmp_path / "out" / "train.parquet").field("label").type == pa.float32()
    with pytest.raises(
        DataError, match=r"the label of row 1 is no whole number; for regression give --label-type"
    ):
        run(tmp_path / "int", file, features="x", label="y")


class Trap:
    """What is unpickled as this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["x", "y"])
def test_objects_are_refused_and_never_unpickled(tmp_path: Path, name: str) -> None:
    trap = np.array([Trap(tmp_path / "sprung")] * 7, dtype=object)
    np.savez(tmp_path / "a.npz", allow_pickle=True, **{"x": PIXELS, "y": LABELS, name: trap})
    with pytest.raises(DataError, match=rf"a\.npz: '{name}': holds Python objects"):
        run(tmp_path / "out", tmp_path / "a.npz", features="x", label="y")
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_with_arrays_is_said(tmp_path: Path) -> None:
    file = npz(tmp_path / "a.npz", x=PIXELS, y=LABELS, short=LABELS[:5], hot=np.eye(7), words=np.array(list("abcdefg")),
               z=PIXELS.astype(complex), none=PIXELS[:0], one=np.array(3))  # fmt: skip
    faults: list[tuple[dict[str, Any], str]] = [
        ({"features": "X"}, r"a\.npz: has no array 'X'; it has 'x', 'y'"),
        ({"features": "x", "label": "Y"}, r"has no array 'Y'; it has"),
        ({"features": "x", "label": "short"}, r"'x' has 7 records .* but 'short' has 5"),
        ({"features": "x", "label": "y", "sample_axis": 1}, r"'x' has 4 records .* but 'y' has 7"),
        ({"features": "x", "label": "hot"}, r"'hot' has shape \(7, 7\), but must have one value a record"),
        (
            {"features": "x", "label": "words"},
            r"labels are words; list the classes in their order with --classes",
        ),
        ({"features": "words"}, r"'words': is of type <U1, but features are"),
        ({"features": "z"}, r"'z': is of type complex128, but features are"),
        ({"features": "none"}, r"'none': is empty, its shape is \(0, 4, 3\)"),
        ({"features": "one"}, r"'one' is a single value"),
    ]
    for options, message in faults:
        with pytest.raises(DataError, match=message):
            run(tmp_path / "out", file, **options)
        assert not (tmp_path / "out").exists()
    misuses: list[tuple[dict[str, Any], str]] = [
        ({}, r"--features: required for npz and mat files"),
        ({"features": ("x", "y")}, r"--features: name the one array"),
        ({"features": "x", "label": "x"}, r"--features: 'x' is named twice"),
    ]
    for options, message in misuses:
        with pytest.raises(ConfigError, match=message):
            run(tmp_path / "out", file, **options)
    with pytest.raises(DataError, match=r"--sample-axis: 3 is no axis of 'x'"):
        run(tmp_path / "out", file, features="x", sample_axis=3)
    holes = npz(tmp_path / "nan.npz", x=np.where(np.arange(7)[:, None] == 4, np.nan, 1.0))
    with pytest.raises(DataError, match=r"row 4 has features that are not finite"):
        run(tmp_path / "out", holes, features="x")
    other = npz(tmp_path / "b.npz", x=PIXELS[:, :2])
    with pytest.raises(DataError, match=r"b\.npz: features are .*\[6\], but .*\[12\] in the files before"):
        run(tmp_path / "out", file, other, features="x")
    with pytest.raises(DataError, match=r"test: features are .*\[6\], but .*\[12\] in training"):
        run(tmp_path / "out", file, test=[other], features="x")
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".npz"] * 3  # nothing is left behind


@pytest.mark.parametrize("suffix", ["npz", "mat"])
def test_broken_files_are_refused(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole.{suffix}"
    if suffix == "npz":
        npz(whole, x=np.random.default_rng(0).random((500, 40)))
    else:
        savemat(whole, {"x": np.random.default_rng(0).random((500, 40))})
    data = whole.read_bytes()
    for name, broken in (("cut", data[:4000]), ("empty", b""), ("text", b"no arrays\n" * 40)):
        file = tmp_path / f"{name}.{suffix}"
        file.write_bytes(broken)
        with pytest.raises(DataError, match=rf"{name}\.{suffix}: "):
            run(tmp_path / "out", file, features="x")
    damaged = bytearray(data)
    damaged[2000:2400] = bytes(400)
    if suffix == "npz":  # a zip file has checksums
        (tmp_path / "damaged.npz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"damaged\.npz: is not a whole npz file"):
            run(tmp_path / "out", tmp_path / "damaged.npz", features="x")


def test_an_array_that_ends_early_is_refused(tmp_path: Path) -> None:
    """The zip file is whole, what was put into it is not."""
    np.save(tmp_path / "x.npy", PIXELS)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", (tmp_path / "x.npy").read_bytes()[:-15])
    with pytest.raises(DataError, match=r"a\.npz: is not a whole npz file: it ends within record 5 of 7"):
        run(tmp_path / "out", tmp_path / "a.npz", features="x")
    assert not (tmp_path / "out").exists()


def test_what_is_no_full_array_in_a_mat_file_is_refused(tmp_path: Path) -> None:
    from scipy.sparse import csc_matrix

    cells = np.empty((3, 1), dtype=object)
    cells[:, 0] = ["a", "b", "c"]
    savemat(tmp_path / "a.mat", {"s": csc_matrix(np.eye(3)), "c": cells, "x": np.eye(3)})
    for options, message in (
        ({"features": "s"}, r"'s' is sparse; save it as a full array"),
        ({"features": "c"}, r"'c': holds Python objects"),
        ({"features": "x", "label": "c"}, r"'c' is of type object, but must hold plain numbers or strings"),
    ):
        with pytest.raises(DataError, match=message):
            run(tmp_path / "out", tmp_path / "a.mat", **options)


def test_mat_files_of_version_7_3_are_told_apart(tmp_path: Path) -> None:
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM" + bytes(384)
    (tmp_path / "a.mat").write_bytes(header + b"\x89HDF\r\n\x1a\n" + bytes(64))
    with pytest.raises(DataError, match=r"a\.mat: is a mat file of version 7\.3 \(HDF5\).*-v7 in MATLAB"):
        run(tmp_path / "out", tmp_path / "a.mat", features="x")
