from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.errors import ConfigError
from sisa_ray.core.identity import Spec
from sisa_ray.core.partition import Region
from tests.core.builders import make_config, make_spec

EU, US = {"name": "eu", "slices": [4, 5]}, {"name": "us", "slices": [1, 3]}


def changes(*strata: object) -> dict[str, object]:
    """4 shards and 5 slices with these strata."""
    return {
        "data__stratum": "country",
        "sisa": {"num_shards": 4, "num_slices": 5, "epochs": 6, "strata": list(strata)},
    }


def spec(*strata: object) -> Spec:
    return make_spec(**changes(*strata))  # type: ignore[arg-type]


def config(*strata: object) -> SisaConfig:
    return make_config(**changes(*strata))


def test_what_is_not_given_is_the_whole_run() -> None:
    layout = spec({"name": "one", "shards": [2, 3]}, {"name": "two"}).layout()
    assert layout.region("one") == Region(first_shard=2, end_shard=4, first_slice=1, last_slice=5)
    assert layout.region("two") == Region(first_shard=0, end_shard=4, first_slice=1, last_slice=5)


def test_appended_records_keep_their_shards_and_have_all_new_slices() -> None:
    layout = spec({"name": "eu", "shards": [2, 3], "slices": [4, 5]}, {"name": "us"}).layout(
        num_slices=2, first_slice=6
    )
    assert layout.region("eu") == Region(first_shard=2, end_shard=4, first_slice=6, last_slice=7)
    assert layout.region("us") == Region(first_shard=0, end_shard=4, first_slice=6, last_slice=7)


def test_strata_are_identity_but_neither_their_order_nor_how_they_are_spelled() -> None:
    one = spec(EU, US)
    assert one.digest == spec({**US, "shards": [0, 3]}, EU).digest
    assert one.digest != spec({"name": "eu", "slices": [3, 5]}, US).digest
    assert one.digest != spec({**EU, "name": "ue"}, US).digest
    identity = make_spec().identity
    assert "strata" not in identity["sisa"]
    assert "stratum" not in identity["data"]


@pytest.mark.parametrize(
    ("strata", "message"),
    [
        ([EU, {**US, "name": "eu"}], "has the stratum 'eu' twice; give each a name of its own"),
        ([{**EU, "slices": [4, 6]}, US], r"'eu' has slices \[4, 6\], but slices are 1..5 \(num_slices\)"),
        ([{**EU, "slices": [0, 5]}, US], r"'eu' has slices \[0, 5\], but slices are 1..5 \(num_slices\)"),
        ([{**EU, "shards": [0, 4]}, US], r"'eu' has shards \[0, 4\], but shards are 0..3 \(num_shards\)"),
        ([EU], "no stratum has slice 1 of shard 0, so that it would stay empty"),
        ([EU, {**US, "shards": [1, 3]}], "no stratum has slice 1 of shard 0"),
        ([EU, {**US, "slices": [1, 2]}], "no stratum has slice 3 of shard 0"),
        ([{**EU, "slices": [5, 4]}, US], r"strata.0.slices: must be the first and the last.*not \[5, 4\]"),
        ([{**EU, "slices": 5}, US], "strata.0.slices: must be the first and the last.*not 5"),
        ([{**EU, "slices": [True, 5]}, US], "strata.0.slices: must be the first and the last"),
        ([{"slices": [1, 5]}], "strata.0.name: is required"),
        ([{"name": ""}], "strata.0.name: must not be empty"),
        ([{"name": 5}], "strata.0.name: must be a string, but is 5; put it in quotes"),
        ([{"name": "eu", "slice": [1, 5]}], "strata.0.slice: unknown key; did you mean 'slices'"),
    ],
)
def test_strata_that_fit_no_run_are_refused(strata: list[object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(*strata)


@pytest.mark.parametrize("strata", [None, {"eu": [1, 5]}, "eu"])
def test_strata_are_a_list(strata: object) -> None:
    with pytest.raises(ConfigError, match=r"sisa\.strata: must be a list of strata such as .*, not "):
        make_config(sisa__strata=strata)


@pytest.mark.parametrize(
    ("data", "strata", "message"),
    [
        ({}, [EU, US], "data.stratum: is required where sisa.strata are declared"),
        ({"stratum": "country"}, [], "data.stratum: is 'country', but sisa.strata declares no strata"),
        ({"strata_table": "s.parquet"}, [], "data.strata_table: is given without data.stratum"),
        ({"stratum": ""}, [EU, US], "data.stratum: must not be empty"),
    ],
)
def test_the_column_and_the_strata_belong_together(
    data: dict[str, str], strata: list[object], message: str
) -> None:
    given = {**changes(*strata), **{f"data__{name}": value for name, value in data.items()}}
    if "stratum" not in data:
        del given["data__stratum"]
    with pytest.raises(ConfigError, match=message):
        make_config(**given)


@given(st.data())
def test_a_gap_is_found_wherever_it_is(data: st.DataObject) -> None:
    """Cell by cell, the slow and obvious way."""
    ranges = st.tuples(st.integers(0, 3), st.integers(0, 3)).map(sorted)
    slices = st.tuples(st.integers(1, 5), st.integers(1, 5)).map(sorted)
    strata: list[dict[str, Any]] = [
        {"name": f"s{i}", "shards": list(shards), "slices": list(rows)}
        for i, (shards, rows) in enumerate(
            data.draw(st.lists(st.tuples(ranges, slices), min_size=1, max_size=6))
        )
    ]
    cells = {
        (k, r)
        for s in strata
        for k in range(s["shards"][0], s["shards"][1] + 1)
        for r in range(s["slices"][0], s["slices"][1] + 1)
    }
    empty = sorted({(k, r) for k in range(4) for r in range(1, 6)} - cells)
    if not empty:
        config(*strata)
        return
    with pytest.raises(ConfigError, match="no stratum has slice") as refused:
        config(*strata)
    assert any(f"slice {r} of shard {k}, " in str(refused.value) for k, r in empty)
