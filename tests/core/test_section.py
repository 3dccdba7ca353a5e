from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import Field, ValidationError, model_validator

from sisa_ray.core.fields import Text, whole_number
from sisa_ray.core.section import Section, known_keys, lines_of


class Engine(Section):
    cylinders: Annotated[int, whole_number(1, 12)]
    kind: Text = Field(default="petrol", alias="type")


class Car(Section):
    name: Text
    engine: Engine
    seats: int = 4

    @model_validator(mode="after")
    def _fits(self) -> Car:
        if self.seats > self.engine.cylinders:
            raise ValueError("has too few cylinders")
        return self


def lines(data: object) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Car.model_validate(data)
    return lines_of(caught.value)


def test_a_valid_one() -> None:
    car = Car.model_validate({"name": "a", "engine": {"cylinders": 4, "type": "diesel"}})
    assert car.engine.kind == "diesel"
    assert Car.model_validate(car) is car
    assert Car(name="a", engine=car.engine) == car


def test_keys_are_those_of_the_file() -> None:
    assert known_keys(Engine) == ["cylinders", "type"]


def test_one_line_a_fault_with_its_place() -> None:
    assert lines({"engine": {"cylinders": 13, "typ": 1}, "extra": 1}) == [
        "name: is required; add it",
        "engine.cylinders: must be a whole number from 1 to 12, not 13",
        "engine.typ: unknown key; did you mean 'type'?",
        "extra: unknown key; known keys are engine, name, seats",
    ]


def test_a_key_of_a_section_below() -> None:
    assert lines({"name": "a", "engine": {"cylinders": 4}, "type": "diesel"}) == [
        "type: unknown key; did you mean 'engine.type'?"
    ]


def test_rules_on_the_whole_have_no_place() -> None:
    assert lines({"name": "a", "engine": {"cylinders": 2}}) == ["has too few cylinders"]


def test_not_a_mapping() -> None:
    assert lines({"name": "a", "engine": 5}) == [
        "engine: must be a mapping with the keys cylinders, type, not 5",
    ]


def test_pydantics_own_rules_name_the_value() -> None:
    (line,) = lines({"name": "a", "engine": {"cylinders": 4}, "seats": "x"})
    assert line.startswith("seats: Input should be a valid integer")
    assert line.endswith("not 'x'")


def test_odd_keys_stay_on_one_line() -> None:
    assert lines({"name": "a", "engine": {"cylinders": 4}, "x\ny": 1, "": 2}) == [
        r"'x\ny': unknown key; known keys are engine, name, seats",
        "'': unknown key; known keys are engine, name, seats",
    ]


def test_messages_may_hold_braces() -> None:
    assert lines({"name": {"x": 1}, "engine": {"cylinders": 4}}) == [
        "name: must be a string, but is {'x': 1}"
    ]


def test_is_frozen() -> None:
    engine = Engine(cylinders=4)
    with pytest.raises(ValidationError, match="frozen"):
        engine.cylinders = 5
