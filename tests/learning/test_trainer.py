from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sisa_ray.core.config import Precision
from sisa_ray.learning import codec, trainer
from sisa_ray.learning.arithmetic import applied
from sisa_ray.learning.recipe import Batch, new_recipe
from sisa_ray.learning.trainer import Partial, load_constituent
from tests.learning.recipes import Conv, DropoutAdam, Plain
from tests.learning.sources import (
    CPU,
    arithmetic,
    fresh_process,
    load,
    make_slices,
    recipe,
    train,
    train_fresh,
)
from tests.learning.stages import NAMES, PRECISIONS, SIZES, of, stages


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_cut_at_any_step_and_resumed_is_undisturbed(name: str, precision: Precision) -> None:
    make = recipe(name)
    slices = make_slices(SIZES, 3)
    settings = arithmetic(precision=precision)
    start = train(make, load(slices, make), settings=settings)
    partials: dict[int, bytes] = {}
    whole = train(
        make, load(slices, make), stage=3, start=start, settings=settings, on_partial=partials.__setitem__
    )
    assert sorted(partials) == list(range(1, 9))
    for step, data in partials.items():
        again = train(
            make,
            load(slices, make, "streaming"),
            stage=3,
            start=start,
            resume=Partial(step=step, data=data),
            settings=settings,
        )
        assert codec.first_difference(again, whole) is None
        assert again == whole


def test_stages_in_fresh_processes_are_those_of_one_process() -> None:
    with fresh_process() as one, fresh_process() as other:
        for name in NAMES:
            expected = stages(recipe(name), settings=arithmetic(precision="bf16"))
            last = expected[1]
            partials: dict[int, bytes] = {}
            train(
                recipe(name),
                load(make_slices(SIZES), recipe(name)),
                stage=3,
                start=last,
                settings=arithmetic(precision="bf16"),
                on_partial=partials.__setitem__,
            )
            common: dict[str, Any] = {"name": name, "sizes": SIZES, "precision": "bf16"}
            second = one.submit(train_fresh, **common, stage=2, start=expected[0], kind="streaming")
            resume = Partial(step=4, data=partials[4])
            third = other.submit(train_fresh, **common, stage=3, start=last, resume=resume)
            assert second.result() == expected[1]
            assert third.result() == expected[2]


@pytest.mark.parametrize("name", NAMES)
def test_generators_and_settings_before_the_call_do_not_matter(name: str) -> None:
    make = recipe(name)
    expected = stages(make)
    torch.manual_seed(123)
    torch.randn(3)
    np.random.seed(5)
    np.random.normal()
    random.seed(7)
    random.gauss(0, 1)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    try:
        assert stages(make) == expected
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_num_threads() == 2
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(1)


@pytest.mark.parametrize("change", ["seed", "shard", "stage", "num_steps", "batch_size", "lr"])
def test_each_input_changes_the_bits(change: str) -> None:
    def state(**kwargs: Any) -> bytes:
        args = {key: kwargs.pop(key) for key in ("batch_size", "lr") if key in kwargs}
        make = recipe("Plain", **args)
        return train(make, load(make_slices([20]) * 2, make), **kwargs)

    changed = {"seed": 12, "shard": 1, "stage": 2, "num_steps": 8, "batch_size": 4, "lr": 0.2}
    weights = [codec.decode(s)["model"]["weight"] for s in (state(), state(**{change: changed[change]}))]
    assert not weights[0].equal(weights[1])


def test_every_generator_depends_on_every_step() -> None:
    class Noting(Plain):
        draws: list[tuple[float, float, float]]

        def augment(self, batch: Batch) -> Batch:
            numpy_draw = float(np.random.random())
            self.draws.append((torch.rand(()).item(), numpy_draw, random.random()))
            return batch

    draws: list[tuple[float, float, float]] = []
    make = of(Noting, draws=draws)
    data = load(make_slices([20]), make)
    train(make, data, num_steps=6)
    assert all(len(set(column)) == 6 for column in zip(*draws, strict=True))
    first = list(draws)
    draws.clear()
    partials: dict[int, bytes] = {}
    train(make, data, num_steps=6, on_partial=partials.__setitem__)
    assert draws == first
    draws.clear()
    train(make, data, num_steps=6, resume=Partial(step=4, data=partials[4]))
    assert draws == first[4:]


def test_seeds_do_not_depend_on_how_many_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = stages(recipe("DropoutAdam"))
    monkeypatch.setattr(trainer, "_SEEDS_AT_ONCE", 2)
    assert stages(recipe("DropoutAdam")) == expected


def test_it_is_the_obvious_loop() -> None:
    """The slow oracle: build, load, seed, gather, step, as the contract says."""
    make = recipe("Conv")
    data = load(make_slices([20]), make)
    start = train(make, data)
    with applied(arithmetic()):
        made = new_recipe(make)
        model = made.build_model()
        saved = codec.decode(start)
        model.load_state_dict(saved["model"])
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = made.build_optimizer(model)
        for index, entries in saved["optimizer"]["state"].items():
            parameter = optimizer.param_groups[0]["params"][index]
            moments = torch.empty_like(parameter).copy_(entries["momentum_buffer"]).detach()
            optimizer.state[parameter]["momentum_buffer"] = moments
        batches = list(data.batches(shard=0, stage=1, batch_size=5, first_step=0, last_step=9))
        for step, batch in enumerate(batches):
            optimizer.param_groups[0]["lr"] = 0.05 * made.learning_rate(1, 3, step / 9)
            optimizer.zero_grad()
            made.loss(model.train(), batch).backward()
            optimizer.step()
            with torch.no_grad():
                made.after_step(model)
    trained = codec.decode(train(make, data, start=start))["model"]
    assert all(trained[name].equal(value) for name, value in model.state_dict().items())


def test_a_stage_without_steps_gives_back_its_start() -> None:
    make = recipe("DropoutAdam")
    data = load(make_slices([0, 4]), make)
    initial = train(make, data, num_steps=0)
    assert train(make, data, stage=2, num_steps=0, start=initial) is initial
    assert train(make, data, num_steps=0) == initial
    assert train(make, data, stage=2, start=initial) != initial


def test_fewer_rows_than_a_batch_are_repeated() -> None:
    make = recipe("Plain", batch_size=5)
    data = load(make_slices([1]), make)
    assert train(make, data, num_steps=3) == train(
        make, load(make_slices([1]), make, "streaming"), num_steps=3
    )


def test_the_learning_rate_sees_stage_and_fraction_and_scales_the_optimizer_s_own() -> None:
    class Scheduled(Plain):
        calls: list[tuple[int, int, float]]
        rates: list[list[float]]

        def build_model(self) -> nn.Module:
            return nn.Sequential(nn.Linear(self.width, 4), nn.Linear(4, 3))

        def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
            first, second = model.children()
            groups: list[dict[str, Any]] = [
                {"params": first.parameters()},
                {"params": second.parameters(), "lr": torch.tensor(0.5)},
            ]
            self.optimizer = torch.optim.SGD(groups, lr=0.25)
            return self.optimizer

        def learning_rate(self, stage: int, num_stages: int, fraction: float) -> float:
            self.calls.append((stage, num_stages, fraction))
            return 0.5**stage

        def after_step(self, model: nn.Module) -> None:
            self.rates.append([float(group["lr"]) for group in self.optimizer.param_groups])

    calls: list[tuple[int, int, float]] = []
    rates: list[list[float]] = []
    make = of(Scheduled, calls=calls, rates=rates)
    data = load(make_slices([8, 8]), make)
    start = train(make, data, num_steps=2)
    train(make, data, stage=2, num_steps=4, start=start)
    assert calls == [(1, 3, 0.0), (1, 3, 0.5), *((2, 3, f) for f in (0.0, 0.25, 0.5, 0.75))]
    assert rates == [[0.125, 0.25]] * 2 + [[0.0625, 0.125]] * 4


class Lion(torch.optim.Optimizer):
    """Keeps moments in double precision, a counter in a parameter group, and zeroes gradients its own way."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.01, "count": 0, "names": ("a", None, True)})

    def zero_grad(self, set_to_none: bool = True) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        self.param_groups[0]["count"] += 1

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["moment"] = torch.zeros_like(parameter, dtype=torch.float64)
                    state["seen"] = 0
                state["seen"] += 1
                state["moment"].mul_(0.9).add_(parameter.grad.double(), alpha=0.1 + 1e-9 * group["count"])
                parameter.sub_(group["lr"] * state["moment"].sign() * state["seen"] ** -0.5)


class OwnOptimizer(Plain):
    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return Lion(model.parameters())


def test_an_optimizer_of_the_user_s_own_keeps_types_counters_and_groups() -> None:
    make = of(OwnOptimizer)
    data = load(make_slices([20]), make)
    partials: dict[int, bytes] = {}
    whole = train(make, data, on_partial=partials.__setitem__)
    optimizer = codec.decode(whole)["optimizer"]
    assert optimizer["state"][0]["moment"].dtype == torch.float64
    assert optimizer["param_groups"][0]["count"] == 9
    assert optimizer["param_groups"][0]["names"] == ("a", None, True)
    for step, partial in partials.items():
        assert train(make, data, resume=Partial(step=step, data=partial)) == whole


def test_restored_optimizer_state_lies_like_its_parameter() -> None:
    seen: list[tuple[int, ...]] = []

    class Noting(Conv):
        def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
            self.optimizer = torch.optim.Adam([model.get_parameter("body.3.weight")], lr=0.01)
            return self.optimizer

        def after_step(self, model: nn.Module) -> None:
            (state,) = self.optimizer.state.values()
            seen.append(state["exp_avg"].stride())

    make = of(Noting)
    data = load(make_slices([20]), make)
    partials: dict[int, bytes] = {}
    whole = train(make, data, on_partial=partials.__setitem__)
    assert train(make, data, resume=Partial(step=3, data=partials[3])) == whole
    assert set(seen) == {(8, 1, 8, 4)}


def test_frozen_parameters_and_several_groups() -> None:
    class Frozen(DropoutAdam):
        def build_model(self) -> nn.Module:
            model = super().build_model()
            model.get_parameter("0.weight").requires_grad_(False)
            return model

        def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
            trained = [p for p in model.parameters() if p.requires_grad]
            groups: list[dict[str, Any]] = [{"params": trained[:1], "lr": 0.1}, {"params": trained[1:]}]
            return torch.optim.Adam(groups, amsgrad=True)

    make = of(Frozen)
    data = load(make_slices([20]), make)
    partials: dict[int, bytes] = {}
    whole = train(make, data, on_partial=partials.__setitem__)
    assert train(make, data, resume=Partial(step=5, data=partials[5])) == whole
    untouched = codec.decode(train(make, data, num_steps=0))["model"]["0.weight"]
    assert codec.decode(whole)["model"]["0.weight"].equal(untouched)


def test_the_scaler_is_state() -> None:
    class Overflowing(Plain):
        def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
            return super().loss(model, batch) * 1e4

    make = of(Overflowing)
    data = load(make_slices([20]), make)
    settings = arithmetic(precision="fp16")
    partials: dict[int, bytes] = {}
    whole = train(make, data, settings=settings, on_partial=partials.__setitem__)
    assert codec.decode(whole)["scaler"]["scale"] < 65536.0
    for step, partial in partials.items():
        assert train(make, data, settings=settings, resume=Partial(step=step, data=partial)) == whole


def test_mixed_precision_computes_in_the_type_it_says() -> None:
    class Noting(Plain):
        dtypes: list[torch.dtype]

        def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
            self.dtypes.append(model(batch["features"]).dtype)
            return super().loss(model, batch)

    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        dtypes: list[torch.dtype] = []
        make = of(Noting, dtypes=dtypes)
        train(make, load(make_slices([8]), make), settings=arithmetic(precision=precision), num_steps=1)
        assert dtypes == [dtype]


def test_a_model_is_trained_in_training_mode_and_predicts_in_evaluation_mode() -> None:
    class Pretrained(Plain):
        modes: list[bool]

        def build_model(self) -> nn.Module:
            return super().build_model().eval()

        def after_step(self, model: nn.Module) -> None:
            assert not torch.is_grad_enabled()

        def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
            self.modes.append(model.training)
            return super().loss(model, batch)

    modes: list[bool] = []
    make = of(Pretrained, modes=modes)
    state = train(make, load(make_slices([8]), make), num_steps=2)
    assert modes == [True, True]
    assert not load_constituent(make, state, CPU)[1].training
