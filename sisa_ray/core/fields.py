"""Types of configuration fields. Each refuses a wrong value in one line: the rule, the value and the fix.

They check before pydantic converts: its own rules let ``yes`` pass for the number 1, and report a value that
fits no member of a union once for each member.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, PlainSerializer

from sisa_ray.core.schedule import Schedule, ScheduleName, Sweep

_SIZE = re.compile(r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*([A-Za-z]*)\s*")
_BYTE_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_BYTE_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
# Bounded, so that nobody waits for 1e999999999; what is read can be written as a fraction and read again.
_DECIMAL = r"(?:\d{1,1000}(?:\.\d{0,1000})?|\.\d{1,1000})(?:[eE][+-]?\d{1,3})?"
_EXACT = re.compile(rf"\s*[+-]?(?:\d{{1,4000}}/\d{{1,4000}}|{_DECIMAL})\s*")
_MAX_SHOWN = 80
_MAX_DEPTH = 32
_MAX_POWER = 4


def shown(value: object) -> str:
    """A value as error messages show it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python refuses to print integers of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def dotted(*keys: object) -> str:
    """Keys as one name on one line: ``sisa.num_shards``. Odd ones are shown in quotes."""
    return ".".join(key if isinstance(key, str) and key.isprintable() and key else shown(key) for key in keys)


def suggestion(value: object, known: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or nothing where no known name is near."""
    near = difflib.get_close_matches(str(value), list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite number; a truth value is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, int) or math.isfinite(value)


def is_text(value: object) -> bool:
    """Whether ``value`` is a string with something in it that UTF-8 can hold."""
    return isinstance(value, str) and bool(value.strip()) and _is_unicode(value)


def _to_text(value: object) -> str:
    if is_text(value):
        assert isinstance(value, str)
        return value
    rule = "be a string"
    if isinstance(value, str):
        rule = "be valid Unicode" if value.strip() else "not be empty"
    fix = "; put it in quotes" if isinstance(value, (bool, int, float)) else ""
    raise ValueError(f"must {rule}, but is {shown(value)}{fix}")


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


Text = Annotated[str, BeforeValidator(_to_text)]
OptionalText = Annotated[str | None, BeforeValidator(lambda v: None if v is None else _to_text(v))]


def whole_number(low: int, high: int) -> BeforeValidator:
    """Integers from ``low`` to ``high``; ``1e6`` is one, ``true`` and ``"6"`` are not."""

    def check(value: object) -> int:
        if is_number(value):
            assert isinstance(value, (int, float))
            if value == int(value) and low <= value <= high:
                return int(value)
        fix = "; remove the quotes" if isinstance(value, str) and value.strip().isdigit() else ""
        raise ValueError(f"must be a whole number from {low} to {high}, not {shown(value)}{fix}")

    return BeforeValidator(check)


def _to_positive(value: object) -> float:
    if is_number(value):
        assert isinstance(value, (int, float))
        if 0 < value < 1e300:
            return float(value)
    raise ValueError(f"must be a positive, finite number, not {shown(value)}")


PositiveNumber = Annotated[float, BeforeValidator(_to_positive)]


def _to_non_negative(value: object) -> float:
    if is_number(value):
        assert isinstance(value, (int, float))
        if 0 <= value < 1e300:
            return float(value)
    raise ValueError(f"must be zero or a positive, finite number, not {shown(value)}")


NonNegativeNumber = Annotated[float, BeforeValidator(_to_non_negative)]


def one_of(literal: Any) -> BeforeValidator:
    """One of the names of a ``Literal``."""
    names: tuple[str, ...] = get_args(literal)

    def check(value: object) -> object:
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"must be {_listed(names)}, not {shown(value)}{suggestion(value, names)}")
        return value

    return BeforeValidator(check)


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def to_fraction(value: object) -> Fraction:
    """An exact number: 15, 1.5 (as written) or "7/2"."""
    if isinstance(value, Fraction):
        return value
    if not isinstance(value, bool) and isinstance(value, (int, float, str)):
        try:
            text = str(value)
            if _EXACT.fullmatch(text):
                return Fraction(text)
        except (ValueError, ZeroDivisionError):  # too long an integer to be printed, or a zero below the bar
            pass
    raise ValueError(f"must be a finite number or a fraction such as 7/2, not {shown(value)}")


def _to_positive_fraction(value: object) -> Fraction:
    number = to_fraction(value)
    if number <= 0:
        raise ValueError(f"must be positive, not {shown(value)}")
    return number


PositiveFraction = Annotated[
    Fraction, BeforeValidator(_to_positive_fraction), PlainSerializer(str, return_type=str)
]


def _to_share(value: object) -> Fraction:
    number = to_fraction(value)
    if not 0 <= number <= 1:
        raise ValueError(f"must be from 0 to 1, not {shown(value)}")
    return number


def _to_positive_share(value: object) -> Fraction:
    number = to_fraction(value)
    if not 0 < number <= 1:
        raise ValueError(f"must be above 0 and at most 1, not {shown(value)}")
    return number


Share = Annotated[Fraction, BeforeValidator(_to_share), PlainSerializer(str, return_type=str)]
PositiveShare = Annotated[
    Fraction, BeforeValidator(_to_positive_share), PlainSerializer(str, return_type=str)
]
OptionalFraction = Annotated[
    Fraction | None,
    BeforeValidator(lambda v: None if v is None else _to_positive_fraction(v)),
    PlainSerializer(lambda v: None if v is None else str(v), return_type=str | None),
]


def _to_schedule(value: object) -> object:
    names: tuple[str, ...] = get_args(ScheduleName)
    if isinstance(value, str) and value in names:
        return value
    if isinstance(value, Sweep):
        return value
    if isinstance(value, Mapping) and value:
        return _to_sweep(value)
    if isinstance(value, (list, tuple)):
        return tuple(_to_weight(weight, stage) for stage, weight in enumerate(value, start=1))
    raise ValueError(
        f"must be {_listed(names)}, a mapping such as {{sweep: 1/20, power: 3}}, or a list of one weight a stage, "
        f"not {shown(value)}{suggestion(value, names)}"
    )


def _to_sweep(value: Mapping[Any, Any]) -> Sweep:
    keys = ("sweep", "power")
    if unknown := [key for key in value if key not in keys]:
        raise ValueError(
            f"has the unknown key {shown(unknown[0])}{suggestion(unknown[0], keys)}; its keys are sweep, the share of "
            "the budget that the last stage sweeps over all slices with, and power, of the stages before it"
        )
    defaults = Sweep()
    try:
        share = to_fraction(value.get("sweep", defaults.share))
    except ValueError as error:
        raise ValueError(f"its sweep {error}") from None
    if not 0 < share < 1:
        raise ValueError(
            f"its sweep must be above 0 and below 1, a share of the budget, not {shown(value['sweep'])}; "
            "1/20 is a good start"
        )
    power = value.get("power", defaults.power)
    if isinstance(power, bool) or not isinstance(power, int) or not 0 <= power <= _MAX_POWER:
        raise ValueError(f"its power must be a whole number from 0 to {_MAX_POWER}, not {shown(power)}")
    return Sweep(share=share, power=power)


def _to_weight(value: object, stage: int) -> Fraction:
    try:
        return _to_positive_fraction(value)
    except ValueError as error:
        raise ValueError(f"weight {stage} {error}; a stage without weight would never train") from None


def _dump_schedule(schedule: Schedule) -> str | list[str] | dict[str, str | int]:
    if isinstance(schedule, Sweep):
        return {"sweep": str(schedule.share), "power": schedule.power}
    return schedule if isinstance(schedule, str) else [str(weight) for weight in schedule]


ScheduleField = Annotated[
    ScheduleName | Sweep | tuple[PositiveFraction, ...],
    BeforeValidator(_to_schedule),
    PlainSerializer(_dump_schedule),
]


def _to_bytes(value: object) -> int | None:
    """A size in bytes from an integer or such as 20GB or 1.5GiB; None for anything else."""
    if is_number(value):
        assert isinstance(value, (int, float))
        return int(value) if value == int(value) else None
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)) and match[2].lower() in _BYTE_UNITS:
        size = Fraction(match[1]) * _BYTE_UNITS[match[2].lower()]
        return int(size) if match[2] or size == int(size) else None
    return None


def _to_size(value: object) -> int:
    size = _to_bytes(value)
    if size is None or not 0 <= size < 2**63:
        raise ValueError(f"must be a size in bytes, such as 1000000 or 1GiB, not {shown(value)}")
    return size


ByteSize = Annotated[int, BeforeValidator(_to_size)]

KeepCheckpoints = Literal["all"] | tuple[int, ...] | int
"""``all``, the stages to keep, or a budget in bytes."""


def _to_keep(value: object) -> object:
    if value == "all":
        return value
    if isinstance(value, (list, tuple)):
        for stage in value:
            if isinstance(stage, bool) or not isinstance(stage, int) or stage < 1:
                raise ValueError(f"must list stages, whole numbers from 1, but one is {shown(stage)}")
        return tuple(sorted(set(value)))
    size = _to_bytes(value)
    if size is None or not 1 <= size < 2**63:
        raise ValueError(
            "must be all, a list of stages such as [5, 10], or a positive size such as 20GB, "
            f"not {shown(value)}"
        )
    return size


KeepField = Annotated[KeepCheckpoints, BeforeValidator(_to_keep)]


def _to_columns(value: object) -> dict[str, str | tuple[str, ...]]:
    """Roles in alphabetic order: the order in which a file lists them must not show in any table."""
    if not isinstance(value, Mapping) or not value:
        raise ValueError(
            "must map at least one role to a column (or to a list of columns), "
            f"for example {{features: pixels, label: label}}, not {shown(value)}"
        )
    columns: dict[str, str | tuple[str, ...]] = {}
    for role, source in value.items():
        if not isinstance(role, str) or not role.isidentifier() or not role.isascii():
            raise ValueError(f"role {shown(role)} must be a name of letters, digits and '_'; rename it")
        if role in ("record_id", "subject_id"):
            raise ValueError(f"role {role!r} is taken by the key of that name; rename it")
        try:
            columns[role] = (
                tuple(map(_to_text, source)) if isinstance(source, (list, tuple)) else _to_text(source)
            )
        except ValueError as error:
            raise ValueError(f"the column of role {role!r} {error}") from None
        if not columns[role]:
            raise ValueError(f"the list of columns of role {role!r} is empty; name at least one")
    return {role: columns[role] for role in sorted(columns)}


Columns = Annotated[dict[str, str | tuple[str, ...]], BeforeValidator(_to_columns)]


def to_plain(value: object, path: str = "", depth: int = 0) -> Any:
    """``value`` as it comes back from JSON, keys sorted: what is hashed is exactly what a recipe is given.

    Raises:
        ValueError: naming where something is that JSON cannot hold.
    """
    where = f"{path}: " if path else ""
    if depth > _MAX_DEPTH:
        raise ValueError(f"is nested more than {_MAX_DEPTH} deep (an anchor within itself?); make it flatter")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        raise ValueError(f"{where}must be finite, not {value!r}")
    if isinstance(value, str):
        if _is_unicode(value):
            return str.__str__(value)
        raise ValueError(f"{where}must be valid Unicode, not {shown(value)}")
    if isinstance(value, (list, tuple)):
        return [to_plain(v, f"{path}[{i}]", depth + 1) for i, v in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or not _is_unicode(key):
                raise ValueError(
                    f"{where}key {shown(key)} must be a string of valid Unicode; put it in quotes"
                )
        return {
            k: to_plain(value[k], f"{path}.{dotted(k)}" if path else dotted(k), depth + 1)
            for k in sorted(value)
        }
    raise ValueError(
        f"{where}must be a number, string, truth value, null, list or mapping, "
        f"not a {type(value).__name__} ({shown(value)}); write it as one of these"
    )


def _to_arguments(value: object) -> Any:
    if isinstance(value, Mapping):
        return to_plain(value)
    raise ValueError(f"must map names of arguments to values, such as {{lr: 0.001}}, not {shown(value)}")


Arguments = Annotated[dict[str, Any], BeforeValidator(_to_arguments)]
