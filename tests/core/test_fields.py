from __future__ import annotations

import enum
import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sisa_ray.core.fields import dotted, is_number, is_text, shown, suggestion, to_fraction, to_plain


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    ONE = 1


class TestShown:
    def test_is_the_value_cut_short(self) -> None:
        assert shown("a\n") == r"'a\n'"
        assert len(shown("x" * 1000)) == 80

    @pytest.mark.parametrize("value", [10**5000, [10**5000]], ids=["int", "list"])
    def test_what_python_will_not_print(self, value: object) -> None:
        assert shown(value) == f"a {type(value).__name__}"

    @given(st.lists(st.text(), min_size=1, max_size=3))
    def test_dotted_stays_on_one_line(self, keys: list[str]) -> None:
        assert dotted(*keys).isprintable()

    def test_dotted(self) -> None:
        assert dotted("sisa", "num_shards") == "sisa.num_shards"
        assert dotted("a", 5, "", "x\ny") == r"a.5.''.'x\ny'"


def test_suggestions() -> None:
    assert suggestion("hamonic", ("equal", "harmonic")) == "; did you mean 'harmonic'?"
    assert suggestion("zzz", ("equal", "harmonic")) == ""
    assert suggestion(5, ("equal",)) == ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, True),
        (1.5, True),
        (True, False),
        (float("nan"), False),
        (float("inf"), False),
        ("1", False),
        (None, False),
    ],
)
def test_numbers(value: object, expected: bool) -> None:
    assert is_number(value) is expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a", True), ("", False), (" \n", False), ("\ud800", False), (5, False), (None, False)],
)
def test_text(value: object, expected: bool) -> None:
    assert is_text(value) is expected


class TestFractions:
    @given(st.fractions(-(10**40), 10**40, max_denominator=10**40))
    def test_round_trip(self, value: Fraction) -> None:
        assert to_fraction(str(value)) == to_fraction(value) == value

    @given(st.floats(allow_nan=False, allow_infinity=False))
    @example(5e-324)
    @example(1.7e308)
    def test_round_trip_of_whatever_was_read(self, written: float) -> None:
        value = to_fraction(written)
        assert to_fraction(str(value)) == value

    def test_round_trip_of_the_largest_and_smallest(self) -> None:
        digits = "9" * 1000
        for text in (f"{digits}.{digits}e999", f"0.{digits}e-999", "1e-999"):
            assert to_fraction(str(to_fraction(text))) == to_fraction(text)

    @given(st.integers(-(10**12), 10**12))
    def test_integers(self, value: int) -> None:
        assert to_fraction(value) == value

    @given(st.floats(-1e20, 1e20))
    def test_floats_are_what_they_are_written_as(self, value: float) -> None:
        assert to_fraction(value) == Fraction(repr(value))
        assert float(to_fraction(value)) == value

    @pytest.mark.parametrize(
        "value", ["", "1/0", "nan", "1e9999", "x", "1 2", "9" * 5000, None, True, [1], 1j, "1_0"]
    )
    def test_refused(self, value: object) -> None:
        with pytest.raises(ValueError, match="must be a finite number or a fraction such as 7/2, not "):
            to_fraction(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


class TestPlain:
    """What is hashed into keys is exactly what a recipe gets, in this process and after spec.json."""

    @given(json_values)
    def test_is_what_json_gives_back(self, value: Any) -> None:
        plain = to_plain(value)
        assert plain == value
        # repr also compares the order of keys, and 1 with 1.0 and True.
        assert repr(plain) == repr(json.loads(json.dumps(plain, sort_keys=True)))

    def test_near_types_become_plain(self) -> None:
        value = {"b": (1, 2), "a": np.float64(0.5), "c": Colour.RED, "d": Level.ONE, "e": True}
        plain = to_plain(value)
        assert repr(plain) == "{'a': 0.5, 'b': [1, 2], 'c': 'red', 'd': 1, 'e': True}"
        assert [type(v) for v in plain.values()] == [float, list, str, int, bool]

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({"a": {1, 2}}, "a: must be a number, string, truth value, null, list or mapping, not a set"),
            ({"a": [0, b"x"]}, r"a\[1\]: must be a number, .* not a bytes"),
            ({"a": np.int64(1)}, "a: must be a number, .* not a int64"),
            ({"a": float("nan")}, "a: must be finite, not nan"),
            ({"a": {"b": {1: 2}}}, "a.b: key 1 must be a string"),
            ({"a": "\ud800"}, "a: must be valid Unicode"),
        ],
        ids=str,
    )
    def test_what_json_cannot_hold_is_refused(self, value: object, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            to_plain(value)

    def test_depth_is_limited(self) -> None:
        deep: Any = 1
        for _ in range(32):
            deep = [deep]
        assert to_plain(deep) == deep
        with pytest.raises(ValueError, match="nested more than 32 deep"):
            to_plain([deep])
