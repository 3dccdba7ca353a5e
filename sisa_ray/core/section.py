"""The base of every section of a configuration: frozen, and its errors say the rule and the fix."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from sisa_ray.core.fields import dotted, shown, suggestion

_EXPLAINED = "sisa_rule"


class Section(BaseModel):
    """A mapping of known keys. Unknown ones are errors that suggest the nearest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _explain_errors(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            explained = [_explained(cls, e) for e in error.errors(include_url=False)]
            raise ValidationError.from_exception_data(cls.__name__, explained) from None


def known_keys(section: type[BaseModel]) -> list[str]:
    """The keys of a section as they are written in YAML."""
    return [field.alias or name for name, field in section.model_fields.items()]


def lines_of(error: ValidationError) -> list[str]:
    """One line a fault: ``field: rule, value; fix``."""
    lines = []
    for fault in error.errors(include_url=False):
        where = dotted(*fault["loc"])
        # Rules on a section as a whole run outside _explain_errors.
        message = fault["msg"].removeprefix("Value error, ")
        lines.append(f"{where}: {message}" if where else message)
    return lines


def _explained(section: type[BaseModel], fault: Any) -> InitErrorDetails:
    loc = fault["loc"]
    if fault["type"] == "invalid_key":  # pydantic calls the key True 1
        loc = (shown(fault["input"]),)
    message = fault["msg"] if fault["type"] == _EXPLAINED else _message(section, fault)
    return InitErrorDetails(type=PydanticCustomError(_EXPLAINED, message), loc=loc, input=fault["input"])


def _message(section: type[BaseModel], fault: Any) -> str:
    known = known_keys(section)
    match fault["type"]:
        case "missing":
            return "is required; add it"
        case "extra_forbidden":
            key = fault["loc"][-1]
            return f"unknown key{_nearest(section, key) or f'; known keys are {_joined(known)}'}"
        case "invalid_key":
            return f"must be a string, not {shown(fault['input'])}; known keys are {_joined(known)}"
        case "model_type":
            return f"must be a mapping with the keys {_joined(known)}, not {shown(fault['input'])}"
        case "value_error":
            return str(fault["ctx"]["error"])
        case _:
            return f"{fault['msg']}, not {shown(fault['input'])}"


def _nearest(section: type[BaseModel], key: object) -> str:
    """The nearest key of this section, else the very key in a section below."""
    here = suggestion(key, known_keys(section))
    for name, field in section.model_fields.items():
        below = field.annotation
        if isinstance(below, type) and issubclass(below, BaseModel) and key in known_keys(below):
            return f"; did you mean '{name}.{key}'?"
    return here


def _joined(keys: list[str]) -> str:
    return ", ".join(sorted(keys))
