from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sisa_ray.conversion import tables
from sisa_ray.core.errors import ConfigError, DataError
from tests.conversion.files import rows, run

SHOP = "visit,customer,bought,age,spent\n007,ann,yes,31,1.5\n008,bob,no,40,2\n009,ann,no,31,0.25\n"

KEYS = {"record_id": "visit", "subject_id": "customer"}


def csv(path: Path, text: str = SHOP) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_columns_become_a_list_and_keys_stay_text(tmp_path: Path) -> None:
    result = run(tmp_path / "out", csv(tmp_path / "shop.csv"), label="bought", classes=("no", "yes"), **KEYS)
    assert result.columns["features"] == "fixed_size_list<item: float>[2]"
    assert rows(tmp_path / "out")[0] == {"id": "007", "subject": "ann", "features": [31.0, 1.5], "label": 1}
    assert result.shape == (2,)


def test_features_are_taken_in_the_order_in_which_they_are_named(tmp_path: Path) -> None:
    run(tmp_path / "out", csv(tmp_path / "shop.csv"), features=("spent", "age"))
    assert rows(tmp_path / "out")[0] == {"id": "shop-0", "features": [1.5, 31.0]}


@pytest.mark.parametrize("name", ["pixels.csv.gz", "pixels.tsv"])
def test_pixels_in_columns_become_bytes(tmp_path: Path, name: str) -> None:
    text = "label,p0,p1\n3,0,255\n4,7,8\n"
    file = tmp_path / name
    file.write_bytes(
        gzip.compress(text.encode()) if name.endswith("gz") else text.replace(",", "\t").encode()
    )
    run(tmp_path / "out", file, label="label", dtype=np.dtype(np.uint8))
    table = pq.read_table(tmp_path / "out" / "train.parquet")
    assert table.schema.field("features").type == pa.binary(2)
    assert table.column("features").to_pylist() == [b"\x00\xff", b"\x07\x08"]
    assert table.column("id").to_pylist() == ["pixels-0", "pixels-1"]


def test_a_file_is_read_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_BLOCK_BYTES", 64)
    text = "a,b\n" + "".join(f"{i},{i / 4}\n" for i in range(100))
    run(tmp_path / "out", csv(tmp_path / "t.csv", text))
    assert [row["features"] for row in rows(tmp_path / "out")] == [[i, i / 4] for i in range(100)]
    assert [row["id"] for row in rows(tmp_path / "out")] == [f"t-{i}" for i in range(100)]
    assert pq.ParquetFile(tmp_path / "out" / "train.parquet").num_row_groups > 5
    broken = text.replace("\n90,", "\n9o,")
    with pytest.raises(DataError, match=r"t\.csv: row 90 has a value in column 'a' that is no number"):
        run(tmp_path / "other", csv(tmp_path / "t.csv", broken))


def test_what_is_wrong_with_a_table_is_said_by_its_row_alone(tmp_path: Path) -> None:
    whole = "id,age,spent\n007,31,1.5\n008,40,2\n009,31,0.25\n"
    cases = {
        "word": (whole.replace("40", "secret"), r"row 1 has a value in column 'age' that is no number"),
        "hole": (whole.replace("31,0.25", ",0.25"), r"row 2 has no value in column 'age'"),
        "ragged": (whole.replace("40,2", "40,2,3"), r"row 1 has 4 values, but there are 3 columns"),
        "double": (whole.replace("age,spent", "age,age"), r"has more than one column 'age'"),
        "empty": ("", r"is empty"),
        "headed": ("id,age\n", r"no records are left"),
        "nan": (whole.replace("40", "nan"), r"row 1 has features that are not finite"),
    }
    for name, (text, message) in cases.items():
        with pytest.raises(DataError, match=message) as caught:
            run(tmp_path / "out", csv(tmp_path / f"{name}.csv", text), record_id="id")
        assert "secret" not in str(caught.value)
        assert not (tmp_path / "out").exists()
    file = csv(tmp_path / "shop.csv")
    with pytest.raises(DataError, match=r"has no column 'bougt'; did you mean 'bought'"):
        run(tmp_path / "out", file, label="bougt")
    with pytest.raises(DataError, match=r"the label of row 0 is none of the 2 classes; complete --classes"):
        run(tmp_path / "out", file, label="bought", features="age", classes=("no", "maybe"))
    with pytest.raises(DataError, match=r"column 'bought'.*--classes for labels that are words"):
        run(tmp_path / "out", file, label="bought", features="age")
    with pytest.raises(
        DataError, match=r"row 0 holds a value that uint8 cannot|no number of the wanted type"
    ):
        run(tmp_path / "out", file, features="spent", dtype=np.dtype(np.uint8))
    with pytest.raises(ConfigError, match=r"--classes: needs --label"):
        run(tmp_path / "out", file, features="age", classes=("no", "yes"))
    with pytest.raises(ConfigError, match=r"--sample-axis: are for arrays"):
        run(tmp_path / "out", file, features="age", sample_axis=1)


def test_what_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00\x01" * 20)
    with pytest.raises(DataError, match=r"a\.csv: "):
        run(tmp_path / "out", tmp_path / "a.csv")
