from __future__ import annotations

import json
import math
import struct
from collections import OrderedDict
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sisa_ray.core.errors import IntegrityError, RecipeError
from sisa_ray.learning import codec

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
    torch.complex64,
    torch.float8_e5m2,
    torch.float8_e4m3fn,
]


def tensors() -> st.SearchStrategy[torch.Tensor]:
    def make(dtype: torch.dtype, shape: list[int], first: int) -> torch.Tensor:
        values = torch.arange(first, first + math.prod(shape)) % 100
        return values.reshape(shape).to(dtype)

    return st.builds(
        make, st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3), st.integers(0, 50)
    )


def trees() -> st.SearchStrategy[Any]:
    numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.booleans()
    leaves = tensors() | numbers | st.text(max_size=5) | st.none()
    keys = st.text(alphabet="a.b/%:#[(é", max_size=4) | st.integers(-5, 300)
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(keys, inner)
        ),
        max_leaves=8,
    )


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def header_of(data: bytes) -> dict[str, Any]:
    (length,) = struct.unpack("<Q", data[:8])
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    return header


@given(st.dictionaries(st.text(alphabet="ab/%", max_size=3), trees(), min_size=1))
def test_decode_gives_back_what_was_encoded(state: dict[str, Any]) -> None:
    data = codec.encode(state)
    assert same(codec.decode(data), state)
    assert codec.encode(codec.decode(data)) == data


@given(st.dictionaries(st.text(alphabet="abcdeé", min_size=1, max_size=3), tensors(), min_size=1))
def test_bytes_are_those_of_the_safetensors_library(state: dict[str, torch.Tensor]) -> None:
    assert codec.encode(state) == safetensors.torch.save(state)


def test_insertion_order_does_not_show() -> None:
    items = [("b", torch.ones(3)), ("a", torch.zeros(2, dtype=torch.int8)), ("c", {"y": 1, "x": 2.0})]
    assert codec.encode(dict(items)) == codec.encode(OrderedDict(reversed(items)))


def test_memory_format_strides_and_views_do_not_show() -> None:
    image = torch.randn(2, 3, 4, 5)
    plain = codec.encode({"x": image})
    assert codec.encode({"x": image.to(memory_format=torch.channels_last)}) == plain
    assert codec.encode({"x": image.transpose(0, 3).contiguous().transpose(0, 3)}) == plain
    assert codec.encode({"x": torch.cat([image, image])[2:]}) == plain
    assert codec.encode({"x": nn.Parameter(image)}) == plain
    assert codec.encode({"x": torch.arange(8)[::2]}) == codec.encode({"x": torch.tensor([0, 2, 4, 6])})


@pytest.mark.gpu
def test_device_does_not_show() -> None:
    x = torch.randn(4, 5)
    assert codec.encode({"x": x.cuda()}) == codec.encode({"x": x})


def test_lazily_conjugated_and_negated_tensors_are_resolved() -> None:
    x = torch.tensor([1 + 2j, 3 - 4j])
    assert codec.encode({"x": x.conj()}) == codec.encode({"x": torch.tensor([1 - 2j, 3 + 4j])})
    assert codec.encode({"x": x.conj().imag}) == codec.encode({"x": torch.tensor([-2.0, 4.0])})


def test_nothing_but_the_state_is_written() -> None:
    header = header_of(
        codec.encode({"model": {"weight": torch.ones(2)}, "optimizer": {"lr": 0.5, "nesterov": False}})
    )
    assert sorted(header) == ["model/weight", "optimizer/lr:float", "optimizer/nesterov:bool"]
    assert header["optimizer/lr:float"]["shape"] == []


def test_tied_weights_are_written_under_both_names() -> None:
    layer = nn.Linear(3, 3)
    data = codec.encode({"model": nn.Sequential(layer, layer).state_dict()})
    decoded = codec.decode(data)["model"]
    assert decoded["0.weight"].equal(decoded["1.weight"])
    assert decoded["0.weight"].data_ptr() != decoded["1.weight"].data_ptr()


def test_decoded_tensors_lie_in_aligned_buffers_of_their_own() -> None:
    decoded = codec.decode(
        codec.encode({"a": torch.ones(1, dtype=torch.int8), "b": torch.ones(3), "c": torch.ones(5)})
    )
    assert all(tensor.data_ptr() % 64 == 0 for tensor in decoded.values())


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (object(), "type object cannot be saved"),
        ({1, 2}, "type set cannot be saved"),
        (2**63, "type int cannot be saved"),
        (lambda: 0, "type function cannot be saved"),
        (torch.ones(2).to_sparse(), "sparse_coo"),
        (torch.ones(2, device="meta"), "on meta"),
        (torch.ones(2, dtype=torch.complex128), "complex128"),
        ({(1, 2): 3}, "key of type tuple"),
    ],
)
def test_what_cannot_be_saved_is_named(value: object, kind: str) -> None:
    with pytest.raises(RecipeError, match=kind) as error:
        codec.encode({"optimizer": {"state": {0: {"thing": value}}}})
    assert "'optimizer/state/#0/thing'" in str(error.value)


def test_first_difference_names_the_entry() -> None:
    a = {"model": {"bias": torch.zeros(2), "weight": torch.ones(4)}, "optimizer": {"lr": 0.1}}
    data = codec.encode(a)
    assert codec.first_difference(data, data) is None
    changed = codec.encode({**a, "model": {"bias": torch.zeros(2), "weight": torch.tensor([1.0, 1, 1, 2])}})
    assert codec.first_difference(data, changed) == "model/weight"
    assert codec.first_difference(data, codec.encode({**a, "optimizer": {"lr": 0.2}})) == "optimizer/lr:float"
    assert codec.first_difference(data, codec.encode({"model": a["model"]})) == "optimizer/lr:float"
    reshaped = codec.encode({**a, "model": {"bias": torch.zeros(2), "weight": torch.ones(2, 2)}})
    assert codec.first_difference(data, reshaped) == "model/weight"
    negative = codec.encode({**a, "model": {"bias": torch.tensor([0.0, -0.0]), "weight": torch.ones(4)}})
    assert codec.first_difference(data, negative) == "model/bias"


@pytest.mark.parametrize("cut", [0, 5, 40, -1])
def test_broken_bytes_are_an_integrity_error(cut: int) -> None:
    data = codec.encode({"model": {"weight": torch.ones(4)}})
    with pytest.raises(IntegrityError, match="no safetensors file"):
        codec.decode(data[:cut])


def test_an_unknown_kind_of_entry_is_an_integrity_error() -> None:
    data = codec.encode({"x": 1}).replace(b"x:int", b"x:inx")
    with pytest.raises(IntegrityError, match="unknown kind 'inx'"):
        codec.decode(data)
