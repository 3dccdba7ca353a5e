from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sisa_ray.core.keys import canonical_key
from sisa_ray.storage.columns import (
    UnsupportedType,
    canonical_keys,
    describe,
    is_key_type,
    normal_type,
    normalise,
    pack,
    packed_type,
)
from tests.storage.arrow_tables import SCALARS, said, types, values


class Tagged(pa.ExtensionType):  # type: ignore[misc]
    """An extension type as libraries define them."""

    def __init__(self, storage: pa.DataType) -> None:
        super().__init__(storage, "tests.tagged")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Tagged:
        return cls(storage)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    pa.register_extension_type(Tagged(pa.int8()))
    yield
    pa.unregister_extension_type("tests.tagged")


def as_large(array: pa.Array) -> pa.Array:
    large = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
    kind = array.type
    if pa.types.is_list(kind):
        return array.cast(pa.large_list(kind.value_type))
    return array.cast(large[kind]) if kind in large else array


def as_view(array: pa.Array) -> pa.Array:
    views = {pa.string(): pa.string_view(), pa.binary(): pa.binary_view()}
    kind = array.type
    if pa.types.is_list(kind):
        # The last row's elements first: the order of the elements is not the order of the rows.
        rows = [array.slice(row, 1).flatten() for row in range(len(array))]
        sizes = np.array([len(elements) for elements in rows], dtype=np.int32)
        offsets = np.append(np.cumsum(sizes[::-1])[::-1][1:], 0).astype(np.int32)[: len(sizes)]
        elements = pa.concat_arrays([array.values.slice(0, 0), *reversed(rows)])
        mask = array.is_null()
        return pa.ListViewArray.from_arrays(pa.array(offsets), pa.array(sizes), elements, mask=mask)
    return array.cast(views[kind]) if kind in views else array


def as_dictionary(array: pa.Array) -> pa.Array:
    return array if pa.types.is_nested(array.type) else array.dictionary_encode()


def as_runs(array: pa.Array) -> pa.Array:
    return array if pa.types.is_nested(array.type) else pc.run_end_encode(array)


def as_extension(array: pa.Array) -> pa.Array:
    return pa.ExtensionArray.from_storage(Tagged(array.type), array)


def with_named_elements(array: pa.Array) -> pa.Array:
    kind = array.type
    if not pa.types.is_list(kind):
        return array
    named = pa.list_(pa.field("element", kind.value_type, metadata={"origin": "elsewhere"}))
    return pa.Array.from_buffers(named, len(array), array.buffers()[:2], children=[array.values])


DISGUISES = [as_large, as_view, as_dictionary, as_runs, as_extension, with_named_elements]


def in_a_struct(array: pa.Array) -> pa.Array:
    return pa.StructArray.from_arrays([array], ["only"])


def in_lists(array: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, len(array) // 2, len(array)], pa.int32()), array)


def same(one: pa.Array, other: pa.Array) -> bool:
    ids = pa.array([str(i) for i in range(len(one))], pa.string())
    tables = [pa.table({"record_id": ids, "role": a}) for a in (one, other)]
    return said(tables[0]) == said(tables[1])


@given(st.data(), types(), st.sampled_from(DISGUISES), st.sampled_from([None, in_a_struct, in_lists]))
def test_one_column_in_any_disguise_is_one_column(
    data: st.DataObject,
    kind: pa.DataType,
    disguise: Callable[[pa.Array], pa.Array],
    wrap: Callable[[pa.Array], pa.Array] | None,
) -> None:
    plain = pa.array(data.draw(st.lists(values(kind, nulls=True), max_size=5)), kind)
    disguised = disguise(plain)
    if wrap is not None:
        plain, disguised = wrap(plain), wrap(disguised)
    start = data.draw(st.integers(0, len(plain)))
    result = normalise(disguised.slice(start))
    result.validate(full=True)
    assert same(result, plain.slice(start))
    assert str(result.type) == str(plain.type)  # names of elements included
    assert normal_type(result.type) == result.type == normal_type(disguised.type)


def test_lists_in_views_are_read_wherever_they_lie() -> None:
    views = pa.ListViewArray.from_arrays(
        pa.array([2, 0, 1], pa.int32()), pa.array([1, 2, 0], pa.int32()), pa.array([1, 2, 3])
    )
    assert normalise(views).to_pylist() == [[3], [1, 2], []]
    assert normalise(views.slice(1)).to_pylist() == [[1, 2], []]


def test_what_parquet_has_no_unit_for_gets_the_nearest_that_it_has() -> None:
    for kind, target in {
        pa.timestamp("s"): pa.timestamp("ms"),
        pa.timestamp("s", "UTC"): pa.timestamp("ms", "UTC"),
        pa.time32("s"): pa.time32("ms"),
        pa.date64(): pa.date32(),
    }.items():
        assert normal_type(kind) == target
        step = 86_400_000 if kind == pa.date64() else 1
        array = pa.array([0, step, None], kind)
        assert normalise(array).to_pylist() == array.to_pylist()


@pytest.mark.parametrize("width", [32, 64])
def test_small_decimals_are_decimals(width: int) -> None:
    make = getattr(pa, f"decimal{width}", None)
    if make is None:
        pytest.skip("this pyarrow has no small decimals")
    assert normal_type(make(7, 2)) == pa.decimal128(7, 2)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (pa.null(), "only nulls"),
        (pa.map_(pa.string(), pa.int64()), "no supported type"),
        (pa.month_day_nano_interval(), "no supported type"),
        (pa.dense_union([pa.field("a", pa.int64())]), "no supported type"),
        (pa.binary(0), "no bytes"),
        (pa.list_(pa.int64(), 0), "no elements"),
        (pa.struct([]), "no fields"),
        (pa.list_(pa.struct([("a", pa.null())])), "only nulls"),
    ],
)
def test_types_that_no_slice_holds_are_refused(kind: pa.DataType, says: str) -> None:
    with pytest.raises(UnsupportedType, match=says):
        normal_type(kind)
    assert not is_key_type(kind)


@given(types(), types())
def test_descriptions_are_equal_if_and_only_if_types_are(one: pa.DataType, other: pa.DataType) -> None:
    assert (describe(one) == describe(other)) == (one == other)


KEYS: dict[pa.DataType, st.SearchStrategy[Any]] = {
    kind: values(kind, nulls=False)
    for kind in SCALARS
    if pa.types.is_integer(kind) or kind in (pa.string(), pa.binary(), pa.binary(3))
}


@given(
    st.data(), st.sampled_from(sorted(KEYS, key=str)), st.sampled_from([lambda a: a, as_large, as_dictionary])
)
def test_keys_are_those_of_python_values(
    data: st.DataObject, kind: pa.DataType, disguise: Callable[[pa.Array], pa.Array]
) -> None:
    cells = data.draw(st.lists(st.none() | KEYS[kind], max_size=6))
    start = data.draw(st.integers(0, len(cells)))
    assert is_key_type(kind)
    keys = canonical_keys(disguise(pa.array(cells, kind)).slice(start))
    keys.validate(full=True)
    assert keys.type == pa.string()
    assert keys.to_pylist() == [None if c is None else canonical_key(c) for c in cells[start:]]


def test_a_uuid_is_a_key_in_hex() -> None:
    array = pa.ExtensionArray.from_storage(Tagged(pa.binary(2)), pa.array([b"\x00\xff"], pa.binary(2)))
    assert canonical_keys(array).to_pylist() == ["00ff"]


@pytest.mark.parametrize(
    "kind", [pa.float64(), pa.bool_(), pa.timestamp("ms"), pa.list_(pa.int64()), pa.date32()]
)
def test_other_types_are_no_keys(kind: pa.DataType) -> None:
    assert not is_key_type(kind)


@pytest.mark.parametrize(
    ("kinds", "common"),
    [
        ([pa.float64()], pa.float64()),
        ([pa.float32(), pa.float32()], pa.float32()),
        ([pa.int8(), pa.uint8()], pa.int16()),
        ([pa.int64(), pa.float32()], pa.float64()),
        ([pa.bool_(), pa.int32()], pa.int32()),
        ([pa.bool_(), pa.bool_()], pa.bool_()),
        ([pa.float16(), pa.float16()], pa.float16()),
    ],
)
def test_several_columns_have_a_common_type(kinds: list[pa.DataType], common: pa.DataType) -> None:
    assert packed_type(kinds) == pa.list_(common, len(kinds))


@pytest.mark.parametrize(
    ("kinds", "says"),
    [
        ([pa.int64(), pa.string()], "column 2 of the list is of type string, not a number"),
        ([pa.uint64(), pa.int8()], "no integer type holds"),
    ],
)
def test_columns_without_a_common_type_are_refused(kinds: list[pa.DataType], says: str) -> None:
    with pytest.raises(UnsupportedType, match=says):
        packed_type(kinds)


@given(st.data(), st.lists(st.sampled_from([pa.int16(), pa.float32(), pa.bool_()]), min_size=1, max_size=4))
def test_packing_is_one_list_a_row(data: st.DataObject, kinds: list[pa.DataType]) -> None:
    num_rows = data.draw(st.integers(0, 5))
    columns = (
        st.lists(values(k, nulls=True, finite=True), min_size=num_rows, max_size=num_rows) for k in kinds
    )
    cells = [data.draw(column) for column in columns]
    packed = pack([pa.array(c, k) for c, k in zip(cells, kinds, strict=True)], packed_type(kinds))
    assert packed.type == packed_type(kinds)
    rows = zip(*cells, strict=True)
    assert packed.to_pylist() == [None if None in row else list(row) for row in rows]


def test_packing_refuses_to_round() -> None:
    arrays = [pa.array([2**53 + 1]), pa.array([0.5])]
    with pytest.raises(pa.ArrowInvalid):
        pack(arrays, packed_type([a.type for a in arrays]))
    assert np.float64(2**53 + 1) == 2**53
