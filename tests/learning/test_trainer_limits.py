from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from sisa_ray.core.config import Precision
from sisa_ray.core.errors import IntegrityError, RecipeError
from sisa_ray.learning import codec
from sisa_ray.learning.recipe import Batch
from sisa_ray.learning.trainer import Partial, StageTask, load_constituent, train_stage
from tests.learning.goldens import check_golden
from tests.learning.recipes import Plain
from tests.learning.sources import (
    CPU,
    arithmetic,
    load,
    make_slices,
    recipe,
    train,
)
from tests.learning.stages import NAMES, PRECISIONS, SIZES, of, stages


def test_progress_is_reported_and_ends_with_the_last_step() -> None:
    make = recipe("Plain")
    seen: list[int] = []
    result = train_stage(
        recipe=make,
        data=load(make_slices([20]), make),
        arithmetic=arithmetic(),
        task=StageTask(seed=0, shard=0, stage=1, num_stages=1, num_steps=40),
        start=None,
        on_partial=lambda step, data: pytest.fail("a minute has not passed"),
        on_progress=seen.append,
    )
    assert seen[0] == 1
    assert seen[-1] == 40
    assert seen == sorted(seen)
    assert result.num_steps == 40
    assert result.seconds > 0
    assert result.last_loss is not None
    assert result.last_loss > 0


def test_an_error_in_the_callback_stops_training_and_leaves_no_settings() -> None:
    def full(step: int, data: bytes) -> None:
        raise OSError("disk is full")

    make = recipe("Plain")
    with pytest.raises(OSError, match="disk is full"):
        train(make, load(make_slices([20]), make), on_partial=full)
    assert not torch.are_deterministic_algorithms_enabled()


class Wrong(Plain):
    """Breaks one method."""

    model: Any = None
    optimizer: Any = None
    value: Any = None

    def build_model(self) -> Any:
        return super().build_model() if self.model is None else self.model

    def build_optimizer(self, model: nn.Module) -> Any:
        return super().build_optimizer(model) if self.optimizer is None else self.optimizer

    def loss(self, model: nn.Module, batch: Batch) -> Any:
        return super().loss(model, batch) if self.value is None else self.value


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"model": "net"}, "Wrong.build_model: must return a torch.nn.Module, not str"),
        ({"optimizer": 0.1}, "Wrong.build_optimizer: must return a torch optimizer, not float"),
        ({"value": 0.5}, "Wrong.loss: must return a scalar tensor, not float"),
        (
            {"value": torch.ones(4)},
            r"Wrong.loss: must return a scalar tensor, not shape \[4\]; take the mean",
        ),
        ({"value": torch.tensor(1.0)}, "Wrong.loss: does not depend on any parameter"),
    ],
)
def test_a_wrong_recipe_is_explained(attributes: Mapping[str, Any], message: str) -> None:
    make = of(Wrong, **attributes)
    with pytest.raises(RecipeError, match=message):
        train(make, load(make_slices([8]), make))


def test_a_checkpoint_of_another_model_is_refused() -> None:
    plain, conv = recipe("Plain"), recipe("Conv")
    data = load(make_slices([8]), plain)
    with pytest.raises(
        RecipeError, match=r"gave a model that the checkpoint does not fit: only one of them has 'average'"
    ):
        train(conv, data, start=train(plain, data))

    class Wider(Plain):
        def build_model(self) -> nn.Module:
            return nn.Linear(self.width, 4)

    with pytest.raises(RecipeError, match=r"(?s)does not fit: .*size mismatch"):
        train(of(Wider), data, start=train(plain, data))


def test_a_checkpoint_of_another_shard_or_step_is_refused() -> None:
    make = recipe("Plain")
    data = load(make_slices([8]), make)
    partials: dict[int, bytes] = {}
    state = train(make, data, on_partial=partials.__setitem__)
    with pytest.raises(IntegrityError, match="another shard or seed was given to shard 1"):
        train(make, data, start=state, shard=1)
    with pytest.raises(IntegrityError, match="is of step 3, not 4"):
        train(make, data, resume=Partial(step=4, data=partials[3]))


def test_state_that_cannot_be_saved_is_named() -> None:
    class Odd(Plain):
        def build_model(self) -> nn.Module:
            model = super().build_model()
            model.register_buffer("table", torch.ones(2, 2).to_sparse())
            return model

    make = of(Odd)
    with pytest.raises(RecipeError, match="'model/table'"):
        train(make, load(make_slices([8]), make))


def test_a_constituent_predicts_as_it_was_trained() -> None:
    class RandomFeatures(Plain):
        def build_model(self) -> nn.Module:
            model = nn.Sequential(nn.Linear(self.width, 3), nn.Dropout(0.5))
            model.register_buffer("projection", torch.randn(self.width, self.width), persistent=False)
            self.built = model
            return model

        def predict(self, model: nn.Module, batch: Batch) -> torch.Tensor:
            result: torch.Tensor = model(batch["features"] @ model.get_buffer("projection"))
            return result

    make = of(RandomFeatures)
    data = load(make_slices([8]), make)
    state = train(make, data)
    torch.manual_seed(99)
    made, model = load_constituent(make, state, CPU)
    again, same_model = load_constituent(make, state, CPU)
    assert not model.training
    batch = next(iter(data.batches(shard=0, stage=1, batch_size=8, first_step=0, last_step=1)))
    assert made.predict(model, batch).equal(again.predict(same_model, batch))
    assert model.get_parameter("0.weight").equal(codec.decode(state)["model"]["0.weight"])
    other = train(make, data, shard=1)
    assert (
        not load_constituent(make, other, CPU)[1]
        .get_buffer("projection")
        .equal(model.get_buffer("projection"))
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str, precision: Precision) -> None:
    state = stages(recipe(name), settings=arithmetic(precision=precision))[-1]
    check_golden(f"{name}-{precision}", state)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_on_a_gpu_cut_and_resumed_is_undisturbed(name: str, precision: Precision) -> None:
    make = recipe(name)
    settings = arithmetic(device="cuda", precision=precision)
    gpu = torch.device("cuda", 0)
    slices = make_slices(SIZES, 3)
    start = train(make, load(slices, make, "resident", gpu), settings=settings)
    partials: dict[int, bytes] = {}
    resident = load(slices, make, "resident", gpu)
    whole = train(make, resident, stage=3, start=start, settings=settings, on_partial=partials.__setitem__)
    for step, data in partials.items():
        streaming = load(slices, make, "streaming", gpu)
        resume = Partial(step=step, data=data)
        assert train(make, streaming, stage=3, start=start, resume=resume, settings=settings) == whole


@pytest.mark.gpu
def test_on_a_gpu_a_model_starts_from_the_weights_of_the_cpu() -> None:
    make = recipe("Conv")
    gpu = torch.device("cuda", 0)
    initial = train(
        make, load(make_slices([8]), make, "resident", gpu), num_steps=0, settings=arithmetic(device="cuda")
    )
    assert initial == train(make, load(make_slices([8]), make), num_steps=0)
