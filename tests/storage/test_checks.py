from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sisa_ray.core.errors import DataError
from sisa_ray.storage.checks import Findings, invalid_text_rows, non_finite_rows, null_rows
from tests.storage.arrow_tables import types, values


def has_null(cell: Any) -> bool:
    if cell is None:
        return True
    return any(has_null(element) for element in cell) if isinstance(cell, list) else False


def has_non_finite(cell: Any) -> bool:
    if isinstance(cell, dict):
        return any(has_non_finite(field) for field in cell.values())
    if isinstance(cell, list):
        return any(has_non_finite(element) for element in cell)
    return isinstance(cell, (float, np.floating)) and not math.isfinite(cell)


@given(st.data(), types())
def test_nulls_and_non_finite_numbers_are_found_in_their_rows(data: st.DataObject, kind: pa.DataType) -> None:
    column = pa.array(data.draw(st.lists(values(kind, nulls=True), max_size=6)), kind)
    column = column.slice(data.draw(st.integers(0, len(column))))
    cells = column.to_pylist()
    assert null_rows(column).tolist() == [row for row, cell in enumerate(cells) if has_null(cell)]
    assert non_finite_rows(column).tolist() == [row for row, cell in enumerate(cells) if has_non_finite(cell)]


def test_infinities_and_nan_are_found_beside_nulls() -> None:
    inf, nan = math.inf, math.nan
    assert non_finite_rows(pa.array([None, 1.0, inf, None, nan, -inf])).tolist() == [2, 4, 5]
    lists = pa.array([[None, inf], None, [], [1.0], [nan, nan]], pa.list_(pa.float32()))
    assert non_finite_rows(lists).tolist() == [0, 4]
    assert null_rows(lists).tolist() == [0, 1]
    structs = pa.array([None, {"a": inf}, {"a": None}], pa.struct([("a", pa.float64())]))
    assert non_finite_rows(structs).tolist() == [1]


def test_a_struct_may_lack_fields_but_not_itself() -> None:
    image = pa.array(
        [{"bytes": b"x", "path": None}, None], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    assert null_rows(image).tolist() == [1]


def text(cells: list[bytes | None]) -> pa.Array:
    raw = pa.array(cells, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())


def test_text_that_is_no_utf8_is_found_in_its_row() -> None:
    column = text([b"a", None, b"\xff", "é".encode(), b"\xc3"])
    assert invalid_text_rows(column).tolist() == [2, 4]
    assert invalid_text_rows(column.slice(3)).tolist() == [1]
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 2, 5], pa.int32()), column)
    assert invalid_text_rows(lists).tolist() == [2]
    assert invalid_text_rows(pa.StructArray.from_arrays([column], ["t"])).tolist() == [2, 4]
    assert invalid_text_rows(pa.array([1, 2])).tolist() == []


def test_one_error_lists_each_rule_with_its_first_rows_and_their_number() -> None:
    findings = Findings()
    findings.add("label is null", [41])
    findings.add("id is null", range(30, 20, -1))
    findings.add("id is null", [3])
    findings.add("id is never", [])
    with pytest.raises(DataError) as caught:
        findings.raise_if_any("people.parquet", lambda row: f"#{row}")
    assert str(caught.value).splitlines() == [
        "people.parquet: breaks rules, nothing was ingested; correct or drop these rows (counted from 0):",
        "  id is null: rows #3, #21, #22, #23, #24 and 6 more",
        "  label is null: row #41",
    ]


def test_a_long_list_of_rules_is_cut() -> None:
    findings = Findings()
    for row in range(25):
        findings.add(f"label {row} is too large", [row, row + 100])
    with pytest.raises(DataError, match=r"and 5 other rules, broken 10 times$"):
        findings.raise_if_any("t")


def test_nothing_found_is_no_error() -> None:
    findings = Findings()
    assert not findings
    findings.raise_if_any("t")


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.integers(0, 50), max_size=9)), max_size=8),
    st.data(),
)
def test_findings_add_up_wherever_they_were_made(
    parts: list[tuple[str, list[int]]], data: st.DataObject
) -> None:
    whole, split = Findings(), [Findings(), Findings()]
    for rule, rows in parts:
        whole.add(rule, rows)
        split[data.draw(st.integers(0, 1))].add(rule, rows)
    split[0].update(Findings.from_json(split[1].to_json()))
    assert error_of(split[0]) == error_of(whole)


def error_of(findings: Findings) -> str:
    try:
        findings.raise_if_any("t")
    except DataError as error:
        return str(error)
    return ""
