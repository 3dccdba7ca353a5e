"""Files in canonical JSON, read so that every other spelling is refused, with the place where it is wrong.

Certificates and log entries are such files: what is signed or hashed has one spelling.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from sisa_ray.core.errors import CertificateInvalid
from sisa_ray.core.keys import canonical_json


class Strict(BaseModel):
    """Base of what such a file holds: frozen, nothing unknown, nothing converted ("1" is no number)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


StrictModel = TypeVar("StrictModel", bound=Strict)


def refuse(name: str, problem: str) -> NoReturn:
    """Raise the error that says what is wrong, and in what."""
    raise CertificateInvalid(f"{name}: {problem}")


def members_of(data: bytes, *, name: str) -> dict[str, Any]:
    """The members of a file that is the canonical form of one JSON object. ``name`` is for messages.

    Raises:
        CertificateInvalid: with the position of the first byte (from 0) that is wrong.
    """
    try:
        members = json.loads(data.decode("utf-8"))
        canonical = canonical_json(members)
    except UnicodeDecodeError as error:
        refuse(name, f"is not JSON: byte {error.start} is not UTF-8")
    except json.JSONDecodeError as error:
        refuse(name, f"is not JSON: {error.msg} at byte {len(error.doc[: error.pos].encode())}")
    except (ValueError, RecursionError) as error:  # numbers, strings or depths that no file of ours has
        refuse(name, f"is not JSON of ours ({type(error).__name__})")
    if data != canonical:
        pairs = enumerate(zip(data, canonical, strict=False))
        position = next((i for i, (a, b) in pairs if a != b), min(len(data), len(canonical)))
        member = _member_at(members, position)
        around = f", around {member}" if member else ""
        refuse(
            name, f"is not in canonical form from byte {position} on{around}: it was changed, or written anew"
        )
    if not isinstance(members, dict):
        refuse(name, "is no JSON object")
    return members


def refuse_newer(members: dict[str, Any], *, version: int, name: str) -> None:
    """Refuse a file of a later version than ``version``, before anything in it can surprise.

    Raises:
        CertificateInvalid: where it is one.
    """
    found = members.get("version")
    if type(found) is int and found > version:
        refuse(
            name, f"was written by a newer sisa_ray (version {found}; this one reads {version}); use that one"
        )


def validated(
    model: type[StrictModel], members: dict[str, Any], *, name: str, within: str = ""
) -> StrictModel:
    """The typed content of ``members``. ``within`` is the name of the member that they are in, for messages.

    Raises:
        CertificateInvalid: naming the first member that is missing, unknown or wrong.
    """
    prefix = f"{within}." if within else ""
    try:
        content = model.model_validate_json(canonical_json(members))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        says = {"missing": "is missing", "extra_forbidden": "is unknown to this version"}
        member = prefix + ".".join(map(str, first["loc"]))
        refuse(name, f"the member {member} {says.get(first['type'], 'is wrong: ' + first['msg'])}")
    again = canonical_json(content.model_dump(mode="json"))
    written = canonical_json(members)
    if again != written:  # two spellings of one value, such as 1 and 1.0
        position = next(i for i, (a, b) in enumerate(zip(written, again, strict=False)) if a != b)
        member = prefix + _member_at(members, position)
        refuse(name, f"the member {member} is not written as sisa_ray writes it")
    return content


def _member_at(value: Any, offset: int) -> str:
    """Dotted name of the member at byte ``offset`` of the canonical form of ``value``; "" for the whole."""
    names: list[str] = []
    while isinstance(value, (dict, list)) and value:
        items: list[tuple[Any, Any]] = (
            sorted(value.items()) if isinstance(value, dict) else [*enumerate(value)]
        )
        start, label = 1, 0
        for name, item in items:
            label = len(canonical_json(name)) + 1 if isinstance(name, str) else 0
            end = start + label + len(canonical_json(item)) + 1
            if offset < end:
                break
            start = end
        names.append(str(name))
        value = item
        offset -= start + label
        if offset < 0:  # in its name
            break
    return ".".join(names)
