from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sisa_ray.core.errors import RecipeError, RunConflict
from sisa_ray.learning.code import recipe_code
from sisa_ray.learning.recipe import Recipe, RecipeSpec, load_recipe_class, new_recipe
from tests.learning.recipes import Plain
from tests.learning.sources import RECIPES, SCHEMA, recipe

BASE = "from tests.learning.recipes import Plain\nfrom sisa_ray.learning.recipe import Recipe\n"


@pytest.fixture(autouse=True)
def _leave_no_modules() -> Iterator[None]:
    yield
    for name in [n for n in sys.modules if n.startswith("zz_")]:
        del sys.modules[name]


def spec(directory: Path, source: str, **args: Any) -> RecipeSpec:
    (directory / "zz_net.py").write_text(BASE + source, encoding="utf-8")
    # tests.learning.recipes is found through Python's path, as an installed checkout would be.
    return RecipeSpec(class_path="zz_net.py:Net", args=args, search_dirs=(str(directory),))


def test_a_class_in_a_file_and_in_a_package() -> None:
    by_file = load_recipe_class(f"{RECIPES}:Conv")
    by_name = load_recipe_class("tests.learning.recipes.Conv", [str(Path(RECIPES).parents[2])])
    assert issubclass(by_file, Recipe)
    assert issubclass(by_name, Recipe)
    assert by_file.__name__ == by_name.__name__ == "Conv"


def test_it_is_constructed_with_its_arguments_and_bound() -> None:
    made = RecipeSpec(class_path=f"{RECIPES}:Plain", args={"lr": 0.5}).create(SCHEMA)
    assert (made.lr, made.width, made.batch_size) == (0.5, 6, 5)  # type: ignore[attr-defined]


def test_a_factory_imports_once_and_constructs_anew() -> None:
    factory = recipe("Plain")
    one, two = factory(), factory()
    assert one is not two
    assert type(one) is type(two)


def test_a_spec_survives_pickling() -> None:
    made = RecipeSpec(
        class_path=f"{RECIPES}:Plain", args={"lr": 0.5}, code=recipe_code(f"{RECIPES}:Plain").identity
    )
    assert pickle.loads(pickle.dumps(made)) == made


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import zz_gone\n", "cannot be imported: ModuleNotFoundError: No module named 'zz_gone'"),
        ("raise ValueError('no license')\n", "cannot be imported: ValueError: no license"),
        ("", "module 'zz_net' has no class 'Net'"),
        ("class Net: ...\n", "is no subclass of sisa_ray.learning.recipe.Recipe"),
        ("Net = 3\n", "is no subclass of sisa_ray.learning.recipe.Recipe"),
        (
            "class Net(Recipe):\n    def loss(self, m, b): ...\n",
            "lacks build_model, build_optimizer, decode, predict;",
        ),
        (
            "class Net(Plain):\n    def __init__(self): raise OSError('disk')\n",
            "cannot be constructed: OSError: disk",
        ),
        (
            "class Net(Plain):\n    def bind(self, schema): schema.field('age')\n",
            "cannot be constructed: KeyError: ",
        ),
        (
            "class Net(Plain):\n    task = 'ranking'\n",
            "task: must be 'classification' or 'regression', not 'ranking'",
        ),
        (
            "class Net(Plain):\n    num_classes = None\n",
            "num_classes: must be an integer of at least 2, not None",
        ),
        ("class Net(Plain):\n    num_classes = 1\n", "num_classes: must be an integer of at least 2, not 1"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_named(source: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        spec(tmp_path, source).create(SCHEMA)
    assert str(error.value).startswith("recipe 'zz_net.py:Net': ")
    assert message in str(error.value)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True, "8", None])
def test_a_wrong_batch_size_is_refused(batch_size: Any) -> None:
    with pytest.raises(RecipeError, match="batch_size: must be a positive integer, not"):
        RecipeSpec(class_path=f"{RECIPES}:Plain", args={"batch_size": batch_size}).create(SCHEMA)


def test_unknown_and_missing_arguments_are_named_with_the_signature(tmp_path: Path) -> None:
    source = "class Net(Plain):\n    def __init__(self, *, hidden: int, lr: float = 0.1): ...\n"
    with pytest.raises(RecipeError, match=r"args: missing .*'hidden'; the class takes \(\*, hidden"):
        spec(tmp_path, source).create(SCHEMA)
    with pytest.raises(
        RecipeError, match=r"args: got an unexpected keyword argument 'depth'; the class takes \("
    ):
        spec(tmp_path, source, hidden=1, depth=2).create(SCHEMA)


def test_what_a_recipe_does_to_its_arguments_does_not_reach_the_next(tmp_path: Path) -> None:
    source = """
class Net(Plain):
    def __init__(self, *, hidden):
        super().__init__()
        hidden.append(len(hidden))
        self.hidden = hidden
"""
    make = spec(tmp_path, source, hidden=[7]).factory(SCHEMA)
    assert [vars(make())["hidden"] for _ in range(2)] == [[7, 1], [7, 1]]


def test_a_recipe_s_own_error_stays_as_it_is(tmp_path: Path) -> None:
    source = (
        "from sisa_ray.core.errors import RecipeError\n"
        "class Net(Plain):\n    def bind(self, schema): raise RecipeError('features: must be images')\n"
    )
    with pytest.raises(RecipeError, match=r"^features: must be images$"):
        spec(tmp_path, source).create(SCHEMA)


def test_regression_needs_no_classes(tmp_path: Path) -> None:
    made = spec(tmp_path, "class Net(Plain):\n    task = 'regression'\n    num_classes = None\n").create(
        SCHEMA
    )
    assert made.num_classes is None


def test_other_code_than_the_run_s_is_refused(tmp_path: Path) -> None:
    plain = spec(tmp_path, "class Net(Plain): ...\n")
    code = recipe_code(plain.class_path, plain.search_dirs).identity
    pinned = RecipeSpec(class_path=plain.class_path, search_dirs=plain.search_dirs, code=code)
    assert issubclass(pinned.load(), Recipe)
    spec(tmp_path, "class Net(Plain):\n    lr = 2\n")
    with pytest.raises(RunConflict, match=r"its code here is not the run's:\n  modules.zz_net: ") as error:
        pinned.load()
    assert "modules.tests" not in str(error.value)


def test_what_a_constructor_draws_is_a_constant() -> None:
    def draw() -> Any:
        return torch.rand(2).tolist(), np.random.random(), random.random()

    torch.manual_seed(1)
    first = new_recipe(draw)
    torch.manual_seed(2)
    assert new_recipe(draw) == first


def test_defaults_of_the_optional_methods() -> None:
    made = Plain()
    batch = {"features": torch.ones(2, 6)}
    assert made.augment(batch) is batch
    assert made.learning_rate(1, 2, 0.5) == 1.0
    assert list(made.problems({})) == []
    assert made.memory_format == torch.contiguous_format
    Recipe.bind(made, SCHEMA)
    made.after_step(torch.nn.Linear(1, 1))
