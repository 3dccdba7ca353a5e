"""Several workers against the slow, obvious way: one process that computes for each of them in turn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sisa_ray.core.config import Parallel, Precision
from sisa_ray.core.errors import RecipeError
from sisa_ray.learning import codec
from sisa_ray.learning.arithmetic import applied, autocast_dtype, model_seed, seeder, step_seeds
from sisa_ray.learning.recipe import Batch, RecipeFactory, new_recipe
from sisa_ray.learning.team import Team
from sisa_ray.learning.trainer import Partial, load_constituent
from tests.learning.goldens import check_golden
from tests.learning.recipes import DropoutAdam, Plain
from tests.learning.sources import CPU, SEED, arithmetic, load, make_slices, recipe, train
from tests.learning.stages import SIZES, of
from tests.support.gang import run_gang

NUM_STEPS = 6
NAMES = ["DropoutAdam", "Conv", "Noisy"]
PARALLEL: list[Parallel] = ["ddp", "fsdp"]


def one_by_one(
    make: RecipeFactory, size: int, precision: Precision, stage: int = 1
) -> dict[str, torch.Tensor]:
    """The model after a stage: each worker's gradient by itself, then added in the order of ranks."""
    data = load(make_slices(SIZES), make)
    with applied(arithmetic(precision=precision)):
        made = new_recipe(make)
        seed_all = seeder(CPU)
        seed_all(model_seed(seed=SEED, shard=0))
        model = made.build_model().to(memory_format=made.memory_format)  # type: ignore[call-overload]
        optimizer = made.build_optimizer(model)
        rates = [group["lr"] for group in optimizer.param_groups]
        place = {"seed": SEED, "shard": 0, "stage": stage, "first": 0, "last": NUM_STEPS}
        seeds = [step_seeds(**place, rank=rank) for rank in range(size)]
        batches = data.batches(shard=0, stage=stage, batch_size=8, first_step=0, last_step=NUM_STEPS)
        dtype = autocast_dtype(precision)
        model.train()
        for step, batch in enumerate(batches):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * made.learning_rate(stage, 3, step / NUM_STEPS)
            buffers = [b.clone() for b in model.buffers()]
            after_first: list[torch.Tensor] = []
            grads = []
            for rank in range(size):
                for buffer, value in zip(model.buffers(), buffers, strict=True):
                    buffer.copy_(value)
                rows = slice(rank * 8 // size, (rank + 1) * 8 // size)
                seed_all(seeds[rank][step])
                mine = made.augment({key: tensor[rows].clone() for key, tensor in batch.items()})
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                    loss = made.loss(model, mine)
                loss.backward()
                after_first = after_first or [b.clone() for b in model.buffers()]
                grads.append([p.grad for p in model.parameters()])
            for buffer, value in zip(model.buffers(), after_first, strict=True):
                buffer.copy_(value)
            for parameter, *given in zip(model.parameters(), *grads, strict=True):
                total = given[0].clone()
                for grad in given[1:]:
                    total += grad
                parameter.grad = total / size
            seed_all(step_seeds(**place)[step])
            optimizer.step()
            with torch.no_grad():
                made.after_step(model)
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def together(make: RecipeFactory, size: int, parallel: Parallel, **given: Any) -> list[bytes]:
    """A stage by a gang: every worker's bytes."""

    def work() -> bytes:
        return train(make, load(make_slices(SIZES), make), team=Team(parallel), num_steps=NUM_STEPS, **given)

    return run_gang(size, work)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_workers_compute_what_one_would_for_each_in_turn(name: str, size: int, precision: Precision) -> None:
    make = of(Noisy, batch_size=8) if name == "Noisy" else recipe(name, batch_size=8)
    states = together(make, size, "ddp", settings=arithmetic(precision=precision))
    assert len(set(states)) == 1
    model, expected = codec.decode(states[0])["model"], one_by_one(make, size, precision)
    assert {key: tensor.tolist() for key, tensor in model.items()} == {
        key: tensor.tolist() for key, tensor in expected.items()
    }


@pytest.mark.parametrize("size", [2, 4])
def test_shared_out_joined_is_what_everybody_has_whole(size: int) -> None:
    make = recipe("DropoutAdam", batch_size=8)
    (whole, *_), parts = together(make, size, "ddp"), together(make, size, "fsdp")
    assert max(map(len, parts)) < len(whole)
    assert codec.first_difference(codec.join(parts), whole) is None
    assert codec.join(parts) == whole
    assert load_constituent(make, codec.join([codec.take(part, "model/", "trainer/") for part in parts]), CPU)


@pytest.mark.parametrize("parallel", PARALLEL)
@pytest.mark.parametrize(("size", "name", "precision"), [(2, "DropoutAdam", "bf16"), (4, "Norm", "fp32")])
def test_cut_at_any_step_and_resumed_is_undisturbed(
    size: int, name: str, precision: Precision, parallel: Parallel
) -> None:
    make = of(Norm, batch_size=8) if name == "Norm" else recipe(name, batch_size=8)
    settings = arithmetic(precision=precision)

    def work() -> tuple[bytes, list[bytes]]:
        team = Team(parallel)
        given: dict[str, Any] = {"team": team, "settings": settings}
        data = load(make_slices(SIZES), make)
        start = train(make, data, num_steps=3, **given)
        partials: dict[int, bytes] = {}
        steps: dict[str, Any] = {"stage": 3, "num_steps": NUM_STEPS, "start": start}
        whole = train(make, data, on_partial=partials.__setitem__, **steps, **given)
        assert sorted(partials) == list(range(1, NUM_STEPS))
        cuts = [Partial(step=step, data=partial) for step, partial in partials.items()]
        return whole, [train(make, data, resume=cut, **steps, **given) for cut in cuts]

    for whole, resumed in run_gang(size, work):
        assert set(resumed) == {whole}


@pytest.mark.parametrize("parallel", PARALLEL)
def test_golden(parallel: Parallel) -> None:
    states = together(of(Norm, batch_size=8), 2, parallel)
    check_golden(f"two workers, {parallel}", codec.join(states) if parallel == "fsdp" else states[0])


def test_another_number_of_workers_or_the_other_way_round_is_another_result() -> None:
    make = recipe("DropoutAdam", batch_size=8)
    alone = train(make, load(make_slices(SIZES), make), num_steps=NUM_STEPS)
    assert len({alone, together(make, 2, "ddp")[0], together(make, 4, "ddp")[0]}) == 3


def test_gradients_that_only_some_workers_have() -> None:
    make = of(Sometimes, batch_size=4)
    states = together(make, 2, "ddp")
    assert len(set(states)) == 1
    model = codec.decode(states[0])["model"]
    assert model["never.weight"].equal(model["never_copy"])  # not even weight decay
    assert not model["second.weight"].equal(model["second_copy"])


@pytest.mark.parametrize(
    ("kind", "parallel", "problem"),
    [
        ("Diverging", "ddp", "Diverging: model/mark is another one on worker 1 than on worker 0"),
        ("Sparse", "ddp", "a gradient is sparse"),
        ("Scalar", "fsdp", "Scalar: its model cannot be shared out: .*scalar"),
        ("ChannelsLast", "fsdp", "memory_format: is torch.channels_last"),
    ],
)
def test_what_workers_cannot_train_is_refused(kind: str, parallel: Parallel, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        together(of(globals()[kind], batch_size=4), 2, parallel)


class Norm(DropoutAdam):
    """Batch norm and layers that are gathered one by one, with parameters too short for four workers."""

    def build_model(self) -> nn.Module:
        first = nn.Sequential(nn.Linear(self.width, 5), nn.BatchNorm1d(5), nn.Dropout(0.2), nn.ReLU())
        return nn.Sequential(first, nn.Linear(5, 3))

    def fsdp_units(self, model: nn.Module) -> list[nn.Module]:
        assert isinstance(model, nn.Sequential)
        return [model[0]]


class Noisy(DropoutAdam):
    """Draws after every step, which must be the same for all."""

    def after_step(self, model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))


class Sometimes(Plain):
    """A layer that only worker 1 uses, and one that nobody does; weight decay would show an update."""

    def build_model(self) -> nn.Module:
        model = nn.Module()
        for name in ("first", "second", "never"):
            layer = nn.Linear(self.width, 3)
            model.add_module(name, layer)
            model.register_buffer(f"{name}_copy", layer.weight.detach().clone())
        return model

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        logits = model.get_submodule("first")(batch["features"])
        if torch.distributed.get_rank() == 1:
            logits = logits + model.get_submodule("second")(batch["features"])
        return nn.functional.cross_entropy(logits, batch["label"])


class Diverging(Plain):
    """Breaks the contract: tells workers apart."""

    def build_model(self) -> nn.Module:
        model = super().build_model()
        model.register_buffer("mark", torch.zeros(()))
        return model

    def after_step(self, model: nn.Module) -> None:
        model.get_buffer("mark").fill_(torch.distributed.get_rank())


class Sparse(Plain):
    """An embedding with sparse gradients."""

    def build_model(self) -> nn.Module:
        return nn.Embedding(3, 3, sparse=True)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch["label"]), batch["label"])


class Scalar(Plain):
    """A parameter without a first dimension."""

    def build_model(self) -> nn.Module:
        model = super().build_model()
        model.register_parameter("scale", nn.Parameter(torch.ones(())))
        return model


class ChannelsLast(Plain):
    """Parameters that are not contiguous."""

    memory_format = torch.channels_last
