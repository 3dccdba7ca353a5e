from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import Any

import pytest

from sisa_ray.core.errors import RecipeError, SelfCheckError
from sisa_ray.learning.selfcheck import (
    AloneHalf,
    ChainHalf,
    compare_halves,
    self_check_alone,
    self_check_chain,
)
from tests.learning.sources import SEED, arithmetic, fresh_process, make_slices, recipe

SIZES = (13, 9, 4)


def settings_of(name: str, sizes: Sequence[int], num_buckets: int) -> dict[str, Any]:
    return {
        "recipe": recipe(name),
        "sources": make_slices(sizes, num_buckets),
        "arithmetic": arithmetic(precision="bf16" if name == "Conv" else "fp32"),
        "seed": SEED,
        "num_stages": 3,
    }


def alone(name: str, between: bytes, sizes: Sequence[int] = SIZES, num_buckets: int = 3) -> AloneHalf:
    return self_check_alone(between=between, **settings_of(name, sizes, num_buckets))


def chain(name: str, sizes: Sequence[int] = SIZES, num_buckets: int = 3) -> ChainHalf:
    return self_check_chain(**settings_of(name, sizes, num_buckets))


@pytest.fixture(scope="module")
def fresh() -> Iterator[Executor]:
    """One process for all: it trains each recipe for the first time."""
    with fresh_process() as pool:
        yield pool


@pytest.mark.parametrize("name", ["Plain", "DropoutAdam", "Conv"])
def test_exact_recipes_pass(name: str, fresh: Executor) -> None:
    half = chain(name)
    compare_halves(name, half, fresh.submit(alone, name, half.between).result())


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("OwnGenerator", "interrupted after 5 steps and resumed"),
        ("OwnCounter", "interrupted after 5 steps and resumed"),
        ("GlobalCounter", "in a fresh process"),
        ("OwnClock", "in a fresh process"),
        ("UnseededNumpy", "in a fresh process"),
        ("HiddenState", "interrupted after 5 steps and resumed"),
        ("DecodeCounts", "in a fresh process"),
    ],
)
def test_a_recipe_with_state_of_its_own_is_caught(name: str, where: str, fresh: Executor) -> None:
    half = chain(name)
    other = fresh.submit(alone, name, half.between).result()
    with pytest.raises(SelfCheckError) as error:
        compare_halves(f"nets.{name}", half, other)
    message = str(error.value)
    assert message.startswith(f"recipe 'nets.{name}': its stages are not exact: model/bias ")
    assert where in message
    assert "Usual causes: a random generator, counter, cache or clock" in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("DecodeDraws", "DecodeDraws.decode: draws random numbers; it must not: move them to augment"),
        ("DecodeFits", "DecodeFits.decode: 'features' of a row depends on the rows decoded with it"),
    ],
)
def test_a_wrong_decode_is_caught(name: str, message: str) -> None:
    with pytest.raises(SelfCheckError, match=message):
        chain(name)


def test_it_is_a_recipe_error() -> None:
    assert issubclass(SelfCheckError, RecipeError)


@pytest.mark.parametrize("sizes", [(6,), (0, 5), (5, 0), (0, 0)])
def test_few_slices_and_empty_ones(sizes: Sequence[int], fresh: Executor) -> None:
    half = chain("DropoutAdam", sizes)
    compare_halves("net", half, fresh.submit(alone, "DropoutAdam", half.between, sizes).result())
