"""Checkpoints as bytes: safetensors, the same bytes for the same state (contract clause 11).

A state is a tree of dicts, lists and tuples with tensors, numbers, strings and None at its leaves. Each leaf
is one entry whose name is its path; numbers are 0-d tensors. Nothing else is written: no ``__metadata__``
(its order varies), no times, no devices, no strides, no insertion order.

====================  =========================================
path component        meaning
====================  =========================================
``name``              key of a dict (``% / : # [ (`` escaped)
``#3``                integer key of a dict
``[3]`` / ``(3)``     item of a list / tuple
suffix ``:float`` …   leaf that is no tensor: float, int, bool, str, none, or an empty dict, list, tuple
suffix ``:rows``      this worker's rows of a tensor that workers share out by its first dimension
====================  =========================================

Where workers share a model out, each has a part: its rows of what is shared out, and everything else.
:func:`join` makes of all parts the bytes that one worker would have written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import safetensors
import safetensors.torch
import torch

from sisa_ray.core.errors import IntegrityError, RecipeError

_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
_RANKS = {dtype: rank for rank, dtype in enumerate(_DTYPES)}
"""Entries lie in the file by type, widest first, so that each is aligned; then by name."""

_EMPTY: dict[str, Any] = {"dict": dict, "list": list, "tuple": tuple}


_ROWS = ":rows"


@dataclass(frozen=True)
class Rows:
    """One worker's rows of a tensor that is shared out."""

    tensor: torch.Tensor


def encode(state: Mapping[str, Any]) -> bytes:
    """The bytes of a state that is not empty. Of a distributed tensor, the rows that are here.

    Raises:
        RecipeError: naming the entry that is no tensor, number, string, None, dict, list or tuple.
    """
    return _encode(_leaves(state, ()))


def join(parts: Sequence[bytes]) -> bytes:
    """The bytes of the whole state, from every worker's part in the order of ranks.

    Raises:
        IntegrityError: where a part is not what ``encode`` writes, or has other entries than the first one.
    """
    loaded = [_load(part) for part in parts]
    names = loaded[0].keys()
    if any(part.keys() != names for part in loaded):
        raise IntegrityError("parts of a checkpoint do not have the same entries")
    return _encode(
        (name.removesuffix(_ROWS), torch.cat([part[name] for part in loaded]))
        if name.endswith(_ROWS)
        else (name, loaded[0][name])
        for name in names
    )


def is_shared_out(name: str) -> bool:
    """Whether an entry of a part is rows of a tensor that workers share out."""
    return name.endswith(_ROWS)


def take(data: bytes, *beginnings: str) -> bytes:
    """The same state with those entries alone whose names begin so."""
    return _encode((name, tensor) for name, tensor in _load(data).items() if name.startswith(beginnings))


def _encode(entries: Iterable[tuple[str, torch.Tensor]]) -> bytes:
    leaves = sorted(entries, key=lambda leaf: (-_RANKS[leaf[1].dtype], leaf[0]))
    header: dict[str, Any] = {}
    offset = 0
    for name, tensor in leaves:
        end = offset + tensor.nbytes
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    # join copies each tensor once, straight into the result
    return b"".join([len(text).to_bytes(8, "little"), text, *(_raw(tensor) for _, tensor in leaves)])


def decode(data: bytes) -> dict[str, Any]:
    """The state that :func:`encode` was given; tensors on the CPU, in fresh buffers.

    Raises:
        IntegrityError: where ``data`` is not what ``encode`` writes.
    """
    tree: dict[str, Any] = {}
    for name, tensor in _load(data).items():
        path, _, kind = name.partition(":")
        *parents, last = path.split("/")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = _value(name, kind, tensor)
    state: dict[str, Any] = _restore(tree)
    return state


def first_difference(a: bytes, b: bytes) -> str | None:
    """The name of the first entry in which two states differ (type, shape, bits or presence), or None."""
    return first_unequal(entry_digests(a), entry_digests(b))


def first_unequal(a: Mapping[str, str], b: Mapping[str, str]) -> str | None:
    """The first name whose digests differ, or that only one has."""
    return next((name for name in sorted({*a, *b}) if a.get(name) != b.get(name)), None)


def entry_digests(data: bytes) -> dict[str, str]:
    """SHA-256 (hex) of each entry's type, shape and bytes."""
    digests = {}
    for name, tensor in _load(data).items():
        digest = sha256(f"{_DTYPES[tensor.dtype]}{list(tensor.shape)}".encode())
        digest.update(_raw(tensor))
        digests[name] = digest.hexdigest()
    return digests


def _load(data: bytes) -> dict[str, torch.Tensor]:
    try:
        # clone: tensors of the file share its buffer, at any alignment
        return {name: tensor.clone() for name, tensor in safetensors.torch.load(data).items()}
    except safetensors.SafetensorError as error:
        raise IntegrityError(f"a checkpoint's bytes are no safetensors file: {error}") from None


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of everything below ``path``."""
    name = "/".join(path)
    if isinstance(value, torch.Tensor) and (placements := getattr(value, "placements", None)) is not None:
        # A DTensor: known by its attribute, since importing the class takes a second that few runs need.
        if len(placements) != 1 or not placements[0].is_shard(0):
            raise RecipeError(
                f"state entry {name!r}: is shared out as {placements}, which cannot be saved; keep state laid "
                "out like its parameter, or set arithmetic.parallel to ddp"
            )
        yield f"{name}{_ROWS}", value.to_local()  # type: ignore[attr-defined]
    elif isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.device.type == "meta" or value.dtype not in _DTYPES:
            raise RecipeError(
                f"state entry {name!r}: a {value.layout} tensor of {value.dtype} on {value.device.type} "
                "cannot be saved; keep state in dense tensors of ordinary types"
            )
        yield name, value
    elif isinstance(value, (Mapping, list, tuple)) and not value:
        yield f"{name}:{_container(value)}", torch.empty(0, dtype=torch.uint8)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, (*path, _component(key, name)))
    elif isinstance(value, (list, tuple)):
        form = "[{}]" if isinstance(value, list) else "({})"
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, form.format(index)))
    else:
        kind, tensor = _scalar(value, name)
        yield f"{name}:{kind}", tensor


def _scalar(value: Any, name: str) -> tuple[str, torch.Tensor]:
    if value is None:
        return "none", torch.empty(0, dtype=torch.uint8)
    if isinstance(value, bool):
        return "bool", torch.tensor(value)
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return "int", torch.tensor(value, dtype=torch.int64)
    if isinstance(value, float):
        return "float", torch.tensor(value, dtype=torch.float64)
    if isinstance(value, str):
        return "str", torch.frombuffer(bytearray(value.encode() or b"\0"), dtype=torch.uint8)[
            : len(value.encode())
        ]
    raise RecipeError(
        f"state entry {name!r}: a value of type {type(value).__name__} cannot be saved; keep state "
        "in tensors (buffers of the model), numbers, strings, or dicts and lists of them"
    )


def _value(name: str, kind: str, tensor: torch.Tensor) -> Any:
    if not kind:
        return tensor
    if f":{kind}" == _ROWS:
        return Rows(tensor)
    if kind in _EMPTY:
        return _EMPTY[kind]()
    if kind == "none":
        return None
    if kind == "str":
        return bytes(tensor.tolist()).decode()
    if kind in ("bool", "int", "float"):
        return tensor.item()
    raise IntegrityError(f"checkpoint entry {name!r}: has an unknown kind {kind!r}")


def _restore(node: Any) -> Any:
    """Turn marked path components back into containers."""
    if not isinstance(node, dict) or not node:
        return node
    form = next(iter(node))[:1]
    if form in ("[", "("):
        items = [_restore(item) for _, item in sorted(node.items(), key=lambda pair: int(pair[0][1:-1]))]
        return items if form == "[" else tuple(items)
    return {int(k[1:]) if k.startswith("#") else _unescape(k): _restore(v) for k, v in node.items()}


def _component(key: object, name: str) -> str:
    if isinstance(key, str):
        return re.sub(r"[%/:#\[(]", lambda match: f"%{ord(match[0]):02X}", key)
    if isinstance(key, int) and not isinstance(key, bool):
        return f"#{key}"
    raise RecipeError(
        f"state entry {name!r}: a key of type {type(key).__name__} cannot be saved; use strings"
    )


def _unescape(component: str) -> str:
    return re.sub(r"%([0-9A-F]{2})", lambda match: chr(int(match[1], 16)), component)


def _container(value: Mapping[Any, Any] | list[Any] | tuple[Any, ...]) -> str:
    return "dict" if isinstance(value, Mapping) else "list" if isinstance(value, list) else "tuple"


def _raw(tensor: torch.Tensor) -> memoryview:
    """The tensor's bytes in row-major order; a copy only where it is elsewhere or strided."""
    dense = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return dense.reshape(-1).view(torch.uint8).numpy().data
