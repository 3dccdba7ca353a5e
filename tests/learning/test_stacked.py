"""A stack against the constituents by themselves."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from sisa_ray.core.errors import IntegrityError, RecipeError
from sisa_ray.learning.arithmetic import applied
from sisa_ray.learning.ensemble import Floats, predict_constituent
from sisa_ray.learning.recipe import Batch, RecipeFactory, new_recipe
from sisa_ray.learning.stacked import StackedModel
from tests.learning.recipes import Plain
from tests.learning.sources import SCHEMA, arithmetic, recipe
from tests.learning.stacks import (
    BYTES,
    CNN,
    IMAGES,
    MLP,
    REGRESSOR,
    ROWS,
    SETTINGS,
    TABLE,
    VECTORS,
    Baked,
    ByValue,
    Counts,
    Draws,
    Extra,
    Numpy,
    Suspicious,
    Tallies,
    Unregistered,
    alone,
    made_up,
    ready,
    rows_of,
    saved,
    states,
    tensors_of,
    trained,
)
from tests.learning.stages import of


@pytest.fixture(autouse=True)
def _arithmetic() -> Iterator[None]:
    with applied(SETTINGS):
        yield


@pytest.mark.parametrize("probed", [True, False])
@pytest.mark.parametrize("name", ["Plain", "DropoutAdam", "Conv"])
def test_a_stack_says_what_its_constituents_say(name: str, probed: bool) -> None:
    make, held = recipe(name), states(name)
    probe = made_up(make, SCHEMA, 2) if probed else None
    stack = StackedModel.build(make, held, SETTINGS, probe=probe)
    assert stack.layout == ("stacked" if probed else None)
    first, second = stack.forward(rows_of(make)), stack.forward(rows_of(make))
    assert stack.layout == "stacked"
    assert first.dtype == np.float64
    assert first.tobytes() == second.tobytes(), "the traced forward has the bits of the untraced one"
    assert np.allclose(first, alone(make, held), rtol=1e-4, atol=1e-5)
    assert np.array_equal(first.argmax(axis=2), alone(make, held).argmax(axis=2))


@pytest.mark.parametrize("make", [MLP, CNN], ids=["mlp", "cnn"])
def test_ready_recipes_are_stacked(make: RecipeFactory) -> None:
    held = saved(make)
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, 64)).astype(np.uint8)
    table = pa.table({"features": pa.array([row.tobytes() for row in pixels], pa.binary(64))})
    stack = StackedModel.build(make, held, SETTINGS, probe=made_up(make, IMAGES, 2))
    assert stack.layout == "stacked"
    said = stack.forward(rows_of(make, table))
    assert np.array_equal(said.argmax(axis=2), alone(make, held, table).argmax(axis=2))
    assert np.allclose(said, alone(make, held, table), rtol=1e-4, atol=1e-5)


def test_regression() -> None:
    batch = made_up(REGRESSOR, VECTORS)
    stack = StackedModel.build(REGRESSOR, saved(REGRESSOR), SETTINGS, probe=batch)
    assert stack.layout == "stacked"
    assert stack.forward(batch).shape == (3, ROWS, 2)
    numbers = ready("MLPRegressor", SCHEMA, hidden=[16])
    stack = StackedModel.build(numbers, (*saved(numbers), None), SETTINGS)
    assert stack.forward(made_up(numbers, SCHEMA)).shape == (4, ROWS)
    assert not stack.forward(made_up(numbers, SCHEMA))[3].any()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precisions(precision: Any) -> None:
    settings = arithmetic(predict_batch_size=ROWS, precision=precision)
    make, held = recipe("DropoutAdam"), states()
    with applied(settings):
        stack = StackedModel.build(make, held, settings)
        said = stack.forward(rows_of(make))
        assert stack.layout == "stacked"
        plain = [predict_constituent(make, state, TABLE, settings) for state in held]
        assert np.allclose(said, plain, rtol=2e-2, atol=1e-2)
        full = StackedModel.build(make, held, SETTINGS).forward(rows_of(make))
        assert not np.array_equal(said, full), "computed under autocast"


@pytest.mark.parametrize("name", ["DropoutAdam", "Conv"])
def test_a_slot_depends_neither_on_the_others_nor_on_its_place(name: str) -> None:
    make, (a, b, c, d) = recipe(name), states(name)
    batch = rows_of(make)

    def said(*held: bytes | None) -> Floats:
        return StackedModel.build(make, held, SETTINGS).forward(batch)

    first = said(a, b, c, d)
    assert not np.array_equal(first[0], first[1])
    for other in (said(a, d, None, b), said(a, None, None, None)):
        assert other[0].tobytes() == first[0].tobytes()
    assert said(d, c, b, a)[::-1].tobytes() == first.tobytes()
    assert not said(a, None, None, None)[1:].any(), "an empty slot says nothing"


@pytest.mark.parametrize("rows", [1, 8, 16])
def test_slots_of_odd_widths_do_not_depend_on_their_place(rows: int) -> None:
    make = ready("MLPClassifier", BYTES, hidden=[50, 37], num_classes=5, activation="gelu", scale=255.0)
    held, batch = saved(make, 20), made_up(make, BYTES, rows)
    said = StackedModel.build(make, held, SETTINGS, probe=batch).forward(batch)
    turned = StackedModel.build(make, held[::-1], SETTINGS, probe=batch).forward(batch)
    assert turned[::-1].tobytes() == said.tobytes()


@pytest.mark.parametrize("kind", [ByValue, Counts, Tallies, Extra, Numpy, Unregistered])
@pytest.mark.parametrize("probed", [True, False])
def test_what_cannot_be_stacked_is_looped_with_the_bits_of_the_plain_model(
    kind: type[Plain], probed: bool
) -> None:
    make = of(kind)
    held = trained(make, 3)
    stack = StackedModel.build(make, held, SETTINGS, probe=made_up(make, SCHEMA, 2) if probed else None)
    for _ in range(3):
        assert stack.forward(rows_of(make)).tobytes() == alone(make, held).tobytes()
    assert stack.layout == "looped"
    other = stack.with_slots({1: held[0], 2: None}).forward(rows_of(make))
    assert other[:2].tobytes() == alone(make, (held[0], held[0])).tobytes()
    assert not other[2].any()
    assert stack.with_slots(dict.fromkeys(range(3))).forward(rows_of(make)).shape == (3, ROWS, 3)


def test_chance_is_the_same_every_time() -> None:
    make = of(Draws)
    stack = StackedModel.build(make, trained(make, 2), SETTINGS)
    first = stack.forward(rows_of(make))
    torch.rand(3)
    assert stack.layout == "looped"
    assert stack.forward(rows_of(make)).tobytes() == first.tobytes()


def test_no_number_of_a_row_is_traced() -> None:
    make, other = (
        of(Baked),
        TABLE.set_column(1, "features", pa.array([[0.1] * 6] * ROWS, pa.list_(pa.float32(), 6))),
    )
    held = trained(make, 2)
    stack = StackedModel.build(make, held, SETTINGS)
    stack.forward(rows_of(make))
    assert stack.layout == "stacked"
    assert np.allclose(stack.forward(rows_of(make, other)), alone(make, held, other), rtol=1e-4, atol=1e-5)


def test_a_trace_that_answers_otherwise_is_not_used() -> None:
    make = of(Suspicious)
    stack = StackedModel.build(make, trained(make, 2), SETTINGS)
    assert stack.forward(rows_of(make)).tobytes() == stack.forward(rows_of(make)).tobytes()
    assert stack.layout == "stacked"


@pytest.mark.parametrize("name", ["DropoutAdam", "Conv"])
def test_changed_slots_are_as_if_built_so(name: str) -> None:
    make, (a, b, c, d) = recipe(name), states(name)
    batch = rows_of(make)
    stack = StackedModel.build(make, (a, b, None, d), SETTINGS, probe=batch)
    before = stack.forward(batch)
    changed = stack.with_slots({1: c, 2: a, 3: None})
    expected = StackedModel.build(make, (a, c, a, None), SETTINGS, probe=batch)
    assert changed.forward(batch).tobytes() == expected.forward(batch).tobytes()
    for mine, built in zip(tensors_of(changed), tensors_of(expected), strict=True):
        assert mine.numpy().tobytes() == built.numpy().tobytes(), "nothing of what was there remains"
    assert changed.filled == (True, True, True, False)
    assert stack.forward(batch).tobytes() == before.tobytes(), "the old one still serves"
    old = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(stack)}
    assert not old & {tensor.untyped_storage().data_ptr() for tensor in tensors_of(changed)}
    assert changed.size_bytes == stack.size_bytes
    with pytest.raises(ValueError, match=r"no slot 4; they are 0\.\.3"):
        stack.with_slots({4: a})
    with pytest.raises(IntegrityError):
        stack.with_slots({0: b"nonsense"})
    assert stack.forward(batch).tobytes() == before.tobytes()


@pytest.mark.parametrize("kind", ["stacked", "looped"])
def test_a_dropped_stack_leaves_nothing(kind: str) -> None:
    make = recipe("DropoutAdam") if kind == "stacked" else of(ByValue)
    held = trained(make, 3)
    stack = StackedModel.build(make, held, SETTINGS)
    stack.forward(rows_of(make))
    stack.forward(rows_of(make))
    assert stack.layout == kind
    changed = stack.with_slots({0: held[1], 1: None})
    replaced = [weakref.ref(t) for t in tensors_of(stack)[: None if kind == "stacked" else 4]]
    stack = changed
    gc.collect()
    assert replaced
    assert not [ref for ref in replaced if ref() is not None]
    stack.forward(rows_of(make))


def test_the_optimizers_state_is_not_kept() -> None:
    make = recipe("DropoutAdam")
    stack = StackedModel.build(make, states(), SETTINGS)
    parameters = sum(t.nbytes for t in new_recipe(make).build_model().parameters())
    assert stack.size_bytes == 4 * parameters
    stack.forward(rows_of(make))
    assert stack.size_bytes == 4 * parameters


def test_states_of_another_structure_are_refused() -> None:
    make = recipe("DropoutAdam")
    with pytest.raises(RecipeError, match="does not fit"):
        StackedModel.build(make, (*states(), states("Plain")[0]), SETTINGS)
    stack = StackedModel.build(make, states(), SETTINGS)
    with pytest.raises(RecipeError, match="does not fit"):
        stack.with_slots({0: states("Plain")[0]})
    with pytest.raises(IntegrityError):
        StackedModel.build(make, (b"nonsense",), SETTINGS)
    with pytest.raises(ValueError, match="at least one slot"):
        StackedModel.build(make, (), SETTINGS)


def test_an_answer_of_the_wrong_shape_is_refused() -> None:
    class TooFew(Plain):
        def predict(self, model: nn.Module, batch: Batch) -> torch.Tensor:
            return super().predict(model, batch)[:-1]

    make = of(TooFew)
    stack = StackedModel.build(make, trained(make, 1), SETTINGS, probe=made_up(make, SCHEMA, 2))
    with pytest.raises(RecipeError, match=r"TooFew\.predict: must return 8 rows"):
        stack.forward(rows_of(make))


class Ignores(Plain):
    """The same numbers whatever the model: all slots share one row of memory."""

    def predict(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return torch.full((len(batch["features"]), 3), 0.25, dtype=torch.float64)


def test_an_empty_slot_does_not_silence_others_that_share_its_memory() -> None:
    make = of(Ignores)
    stack = StackedModel.build(make, (*trained(make, 2), None), SETTINGS)
    for _ in range(2):
        assert stack.forward(rows_of(make))[:, 0, 0].tolist() == [0.25, 0.25, 0.0]
    assert stack.layout == "stacked"
