from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sisa_ray.core.documents import load_yaml

# Strings without digits: what YAML 1.1 takes for one (0E0) may be a number here.
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="ascii", exclude_categories=["Nd"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=10,
)


@given(plain)
def test_reads_what_yaml_writes(value: Any) -> None:
    assert load_yaml(yaml.safe_dump(value)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-1E+2", -100.0),
        (".5e3", 500.0),
        ("1.5e3", 1500.0),
        ("5", 5),
        ("e3", "e3"),
        ("1e3x", "1e3x"),
    ],
)
def test_numbers_with_exponents(text: str, value: object) -> None:
    assert load_yaml(text) == value
    assert type(load_yaml(text)) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_reads_numbers_as_python_prints_them(number: float) -> None:
    assert load_yaml(repr(number)) == number


class TestDuplicates:
    def test_are_refused_at_any_depth(self) -> None:
        with pytest.raises(ValueError, match="line 3, column 3: the key 'lr' is given twice; remove one"):
            load_yaml("args:\n  lr: 1\n  lr: 2")

    def test_merged_keys_may_be_overridden(self) -> None:
        text = "base: &b {x: 1, y: 2}\nderived: &d {<<: *b, x: 3}\nlast: {<<: *d, y: 4}"
        document = load_yaml(text)
        assert document["derived"] == {"x": 3, "y": 2}
        assert document["last"] == {"x": 3, "y": 4}

    def test_a_merge_before_its_source_is_built_is_no_duplicate(self) -> None:
        text = "deep: {er: &d {<<: &b {x: 1}, x: 2}}\nflat: {<<: *d}"
        assert load_yaml(text) == {"deep": {"er": {"x": 2}}, "flat": {"x": 2}}

    def test_equal_keys_in_different_mappings(self) -> None:
        assert load_yaml("a: {x: 1}\nb: {x: 1}") == {"a": {"x": 1}, "b": {"x": 1}}


@pytest.mark.parametrize(
    "text",
    [
        "name: [",
        "\tname: a",
        "{{ name }}: a",
        "? [a]\n: b",
        "x: \x00",
        "when: 2024-13-45",
        "when: !!timestamp soon",
        "x: !!bool maybe",
        "x: !!int ''",
        "x: " + "9" * 5000,
        "x: !!python/object/apply:os.system [true]",
        "*nobody",
        "[" * 3000,
        "a: 1\n---\nb: 2",
    ],
)
def test_all_that_can_go_wrong_is_one_error_of_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        load_yaml(text)
    assert type(caught.value) is ValueError
    assert len(str(caught.value).splitlines()) == 1
