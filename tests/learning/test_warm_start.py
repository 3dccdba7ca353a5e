"""Shrink and perturb: what a stage starts from, and that it is as exact as any other start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sisa_ray.core.config import WarmStartConfig
from sisa_ray.learning import codec
from sisa_ray.learning.arithmetic import perturbation_seed
from sisa_ray.learning.building import build_model
from sisa_ray.learning.trainer import Partial
from tests.learning.goldens import check_golden
from tests.learning.recipes import Plain
from tests.learning.sources import CPU, SEED, fresh_process, load, make_slices, recipe, train, train_fresh
from tests.learning.stages import NAMES, SIZES, of, stages

WARM = WarmStartConfig.model_validate({"shrink": 0.5, "perturb": 0.25})


@pytest.mark.parametrize("name", NAMES)
def test_cut_at_any_step_and_resumed_is_undisturbed(name: str) -> None:
    """A stage that was cut short is not shrunk once more."""
    make = recipe(name)
    slices = make_slices(SIZES, 3)
    start = train(make, load(slices, make))
    partials: dict[int, bytes] = {}
    common: dict[str, Any] = {"stage": 3, "start": start, "warm_start": WARM}
    whole = train(make, load(slices, make), **common, on_partial=partials.__setitem__)
    assert whole != train(make, load(slices, make), stage=3, start=start)
    for step, data in partials.items():
        resume = Partial(step=step, data=data)
        again = train(make, load(slices, make, "streaming"), **common, resume=resume)
        assert codec.first_difference(again, whole) is None


def test_stages_alone_in_fresh_processes_are_those_of_the_chain() -> None:
    with fresh_process() as process:
        for name in NAMES:
            expected = stages(recipe(name), warm_start=WARM)
            alone = process.submit(
                train_fresh, name, sizes=SIZES, stage=3, start=expected[1], warm_start=WARM, kind="streaming"
            )
            assert alone.result() == expected[2]


class Still(Plain):
    """Trains nothing, so that a stage ends as it starts; one layer is frozen, and there is a buffer."""

    def build_model(self) -> nn.Module:
        frozen, head = nn.Linear(self.width, self.width), nn.Linear(self.width, 3)
        frozen.requires_grad_(False)
        head.register_buffer("count", torch.rand(3))
        return nn.Sequential(frozen, head)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.0)


def test_what_a_stage_starts_from() -> None:
    """Trained parameters are shrunk and perturbed by a fresh model of this stage; nothing else is touched."""
    make = of(Still)
    data = load(make_slices(SIZES), make)
    start = train(make, data)
    before = codec.decode(start)["model"]
    heads = []
    for stage in (2, 3):
        seed = perturbation_seed(seed=SEED, shard=0, stage=stage)
        fresh = build_model(make(), seed, None, CPU).state_dict()
        after = codec.decode(train(make, data, stage=stage, start=start, warm_start=WARM))["model"]
        for name, value in before.items():
            is_trained = name in ("1.weight", "1.bias")
            assert torch.equal(after[name], value * 0.5 + fresh[name] * 0.25 if is_trained else value), name
        heads.append(after["1.weight"])
    assert not torch.equal(*heads)


def test_the_first_stage_and_one_without_steps_start_as_they_are() -> None:
    make = recipe("DropoutAdam")
    data = load(make_slices(SIZES), make)
    first = train(make, data)
    assert train(make, data, warm_start=WARM) == first
    assert train(make, data, stage=2, start=first, num_steps=0, warm_start=WARM) == first


def test_the_optimizer_starts_anew() -> None:
    make = recipe("DropoutAdam")
    data = load(make_slices(SIZES), make)
    kept = WarmStartConfig.model_validate({"shrink": 1, "perturb": 0})
    state = train(make, data, stage=3, num_steps=4, start=train(make, data), warm_start=kept)
    steps = {int(entry["step"]) for entry in codec.decode(state)["optimizer"]["state"].values()}
    assert steps == {4}


def test_golden_bits() -> None:
    check_golden("warm start", stages(recipe("DropoutAdam"), warm_start=WARM)[-1])
