"""The stage trainer: a pure function from a checkpoint and a shard's rows to the next checkpoint.

Whatever happened before in the process does not matter: recipe, model and optimizer are constructed anew,
state comes from bytes, and the global generators are seeded before every step (contract clauses 4 to 7).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from sisa_ray.core.config import ArithmeticConfig, Precision, WarmStartConfig
from sisa_ray.core.errors import IntegrityError, RecipeError
from sisa_ray.learning import codec
from sisa_ray.learning.arithmetic import (
    applied,
    autocast_dtype,
    model_seed,
    perturbation_seed,
    seeder,
    step_seeds,
)
from sisa_ray.learning.building import build_model, load_optimizer
from sisa_ray.learning.loader import Loader
from sisa_ray.learning.recipe import Batch, Recipe, RecipeFactory, new_recipe, overrides
from sisa_ray.learning.team import Buffers, Gradients, Team
from sisa_ray.learning.warm_start import shrink_and_perturb

_PROGRESS_EVERY_S = 0.2
_SEEDS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class StageTask:
    """Which stage to train: ``num_steps`` steps of the recipe's batch size over slices 1..``stage``.

    ``warm_start`` says what becomes of the checkpoint that it starts from: None leaves it as it is.
    """

    seed: int
    shard: int
    stage: int
    num_stages: int
    num_steps: int
    warm_start: WarmStartConfig | None = None


@dataclass(frozen=True, kw_only=True)
class Partial:
    """The state of a stage after ``step`` of its steps."""

    step: int
    data: bytes


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """The checkpoint after a stage.

    Attributes:
        state: what the next stage starts from; the same bytes for the same inputs.
        num_steps: steps of the stage, those before a resumption included.
        seconds: time that this call took.
        last_loss: loss of the last step, None where this call made none.
    """

    state: bytes
    num_steps: int
    seconds: float
    last_loss: float | None


def train_stage(
    *,
    recipe: RecipeFactory,
    data: Loader,
    arithmetic: ArithmeticConfig,
    task: StageTask,
    start: bytes | None,
    resume: Partial | None = None,
    on_partial: Callable[[int, bytes], None] | None = None,
    partial_every_s: float = 60.0,
    on_progress: Callable[[int], None] | None = None,
    team: Team | None = None,
) -> StageResult:
    """Train one stage. Uses the global generators and leaves them in some state.

    Args:
        start: the checkpoint of the stage before; None for a new model.
        resume: a mid-stage state of this very stage to go on from, instead of ``start``.
        on_partial: given (steps done, bytes of that state) every ``partial_every_s`` seconds; training waits.
        on_progress: given the steps done a few times a second, and after the last one.
        team: the workers that train it together, each of which calls this; bytes then are this worker's part.

    Raises:
        RecipeError: where the recipe breaks the contract.
        IntegrityError: where ``start`` or ``resume`` cannot be decoded.
    """
    began = time.perf_counter()
    last_loss = None
    if task.num_steps == 0 and start is not None:
        state = start
    else:
        with applied(arithmetic) as device:
            saved = start if resume is None else resume.data
            stage = _Stage(recipe, task, device, arithmetic.precision, saved, team)
            if resume is not None and stage.first_step != resume.step:
                raise IntegrityError(
                    f"a mid-stage checkpoint: is of step {stage.first_step}, not {resume.step}"
                )
            due = _Due(on_partial, partial_every_s, on_progress, team)
            last_loss = stage.train(data, due)
            state = stage.state()
            if team is not None:
                _check_same(team, stage.recipe, state)
    seconds = time.perf_counter() - began
    return StageResult(state=state, num_steps=task.num_steps, seconds=seconds, last_loss=last_loss)


def load_constituent(recipe: RecipeFactory, state: bytes, device: torch.device) -> tuple[Recipe, nn.Module]:
    """The recipe and the model of a checkpoint, in evaluation mode on ``device``. It seeds the generators.

    Raises:
        IntegrityError: where ``state`` cannot be decoded.
        RecipeError: where it does not fit the recipe's model.
    """
    saved = codec.decode(state)
    made = new_recipe(recipe)
    return made, build_model(made, int(saved["trainer"]["model_seed"]), saved, device).eval()


class _Stage:
    """The live objects of one stage: built anew under the shard's seed, then given the saved state."""

    def __init__(
        self,
        recipe: RecipeFactory,
        task: StageTask,
        device: torch.device,
        precision: Precision,
        data: bytes | None,
        team: Team | None,
    ) -> None:
        saved = None if data is None else codec.decode(data)
        self.task, self.team = task, team
        self.model_seed = model_seed(seed=task.seed, shard=task.shard)
        if saved is not None and saved["trainer"]["model_seed"] != self.model_seed:
            raise IntegrityError(f"a checkpoint of another shard or seed was given to shard {task.shard}")
        # A stage that was cut short has begun already.
        begins = saved is not None and "step" not in saved["trainer"]
        warm_start = task.warm_start if begins else None
        seed = perturbation_seed(seed=task.seed, shard=task.shard, stage=task.stage)
        fresh = None if warm_start is None else build_model(new_recipe(recipe), seed, None, device, team)
        self.recipe = new_recipe(recipe)
        self.seed_all = seeder(device)
        self.model = build_model(self.recipe, self.model_seed, saved, device, team)
        if warm_start is not None and fresh is not None:
            shrink_and_perturb(self.model, fresh, warm_start)
        self.optimizer = self.recipe.build_optimizer(self.model)
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            raise RecipeError(
                f"recipe {type(self.recipe).__name__}.build_optimizer: must return a torch optimizer, "
                f"not {type(self.optimizer).__name__}"
            )
        self.learning_rates = [float(group["lr"]) for group in self.optimizer.param_groups if "lr" in group]
        self.dtype = autocast_dtype(precision)
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type) if precision == "fp16" else None
        self.first_step = 0
        if saved is not None:
            if warm_start is None:  # moments belong to the weights as they were
                load_optimizer(self.optimizer, saved["optimizer"])
            if self.scaler is not None:
                self.scaler.load_state_dict(saved["scaler"])
            self.first_step = saved["trainer"].get("step", 0)

    def state(self, step: int | None = None) -> bytes:
        """The checkpoint's bytes: after the whole stage, or mid-stage after ``step`` steps."""
        optimizer = self.optimizer.state_dict()
        groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer["param_groups"]]
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": {**optimizer, "param_groups": groups},
            "trainer": {"model_seed": self.model_seed},
        }
        if self.scaler is not None:
            state["scaler"] = self.scaler.state_dict()
        if step is not None:
            state["trainer"]["step"] = step
        return codec.encode(state)

    def train(self, data: Loader, due: _Due) -> float | None:
        """Make the remaining steps; the last loss, if there was any step."""
        task, recipe, model = self.task, self.recipe, self.model
        # Everything optional is decided here: with small batches, microseconds in the loop count.
        augment = recipe.augment if overrides(recipe, "augment") else None
        set_rate = self._set_learning_rate if overrides(recipe, "learning_rate") else None
        after_step = torch.no_grad()(recipe.after_step) if overrides(recipe, "after_step") else None
        seed_all, zero_grad, forward = self.seed_all, self._zero_grad(), self._forward()
        update = self._update() if self.team is None else self._update_together(self.team)
        is_due = due.is_due if self.team is None else due.is_due_for_all
        batches = data.batches(
            shard=task.shard,
            stage=task.stage,
            batch_size=recipe.batch_size,
            first_step=self.first_step,
            last_step=task.num_steps,
        )
        if self.team is not None:
            batches = self.team.rows(batches)
        model.train()
        loss: torch.Tensor | None = None
        with closing(batches):
            for first in range(self.first_step, task.num_steps, _SEEDS_AT_ONCE):
                last = min(first + _SEEDS_AT_ONCE, task.num_steps)
                for step, (own, common) in enumerate(self._seeds(first, last), start=first):
                    seed_all(own)
                    batch = next(batches)
                    if augment is not None:
                        batch = augment(batch)
                    if set_rate is not None:
                        set_rate(step)
                    zero_grad()
                    loss = forward(batch)
                    if step == self.first_step:
                        _check_loss(recipe, loss)
                    update(loss, common)
                    if after_step is not None:
                        after_step(model)
                    if is_due():
                        due.report(step + 1, self)
        due.finish(task.num_steps)
        return None if loss is None else loss.item()

    def _seeds(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """For each step, the seed of what this worker draws, and that of what all of them draw alike."""
        task, team = self.task, self.team
        seeds = partial(
            step_seeds, seed=task.seed, shard=task.shard, stage=task.stage, first=first, last=last
        )
        common = seeds()
        return zip(common if team is None else seeds(rank=team.rank), common, strict=True)

    def _forward(self) -> Callable[[Batch], torch.Tensor]:
        """Batch to loss, under autocast if configured."""
        plain = partial(self.recipe.loss, self.model)
        if self.dtype is None:
            return plain
        autocast = torch.autocast(self.device.type, dtype=self.dtype)

        def mixed(batch: Batch) -> torch.Tensor:
            with autocast:
                return plain(batch)

        return mixed

    def _update_together(self, team: Team) -> Callable[[torch.Tensor, int], None]:
        """The same with the mean of all workers' gradients: after it all are seeded alike, and stay alike."""
        optimizer, scaler, seed_all = self.optimizer, self.scaler, self.seed_all
        gradients = Gradients(team, self._parameters())
        buffers = Buffers(self.model)

        def update(loss: torch.Tensor, seed: int) -> None:
            (loss if scaler is None else scaler.scale(loss)).backward()
            gradients.reduce()
            buffers.sync()
            seed_all(seed)
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()

        return update

    def _update(self) -> Callable[[torch.Tensor, int], None]:
        """Backward pass and optimizer step."""
        optimizer, scaler = self.optimizer, self.scaler

        def plain(loss: torch.Tensor, _: int) -> None:
            loss.backward()
            optimizer.step()

        def scaled(loss: torch.Tensor, _: int) -> None:
            assert scaler is not None
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

        return plain if scaler is None else scaled

    def _zero_grad(self) -> Callable[[], None]:
        """Drops all gradients; does by hand what ``Optimizer.zero_grad`` does in 30 times the time."""
        if type(self.optimizer).zero_grad is not torch.optim.Optimizer.zero_grad:
            return self.optimizer.zero_grad
        parameters = self._parameters()

        def drop() -> None:
            for parameter in parameters:
                parameter.grad = None

        return drop

    def _parameters(self) -> list[nn.Parameter]:
        grouped = (p for group in self.optimizer.param_groups for p in group["params"])
        return list(dict.fromkeys([*self.model.parameters(), *grouped]))

    def _set_learning_rate(self, step: int) -> None:
        task = self.task
        factor = self.recipe.learning_rate(task.stage, task.num_stages, step / task.num_steps)
        for group, rate in zip(self.optimizer.param_groups, self.learning_rates, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor


class _Due:
    """When progress or a mid-stage state has to be reported: one comparison a step."""

    def __init__(
        self,
        on_partial: Callable[[int, bytes], None] | None,
        partial_every_s: float,
        on_progress: Callable[[int], None] | None,
        team: Team | None,
    ) -> None:
        self._team = team
        self._is_partial_due = False
        now = time.monotonic()
        self._on_partial, self._on_progress = on_partial, on_progress
        self._every_s = partial_every_s
        self._partial_at = now + partial_every_s if on_partial or team else math.inf
        self._progress_at = now if on_progress else math.inf
        self.at = min(self._partial_at, self._progress_at)

    def is_due(self) -> bool:
        """Whether there is something to report."""
        return time.monotonic() >= self.at

    def is_due_for_all(self) -> bool:
        """The same for one of several workers: all of them save a mid-stage state when worker 0's clock says so."""
        assert self._team is not None
        now = time.monotonic()
        self._is_partial_due = self._team.agree(now >= self._partial_at)
        return self._is_partial_due or now >= self._progress_at

    def report(self, step: int, stage: _Stage) -> None:
        """Report what is due after ``step`` steps."""
        if self._on_progress and time.monotonic() >= self._progress_at:
            self._on_progress(step)
            self._progress_at = time.monotonic() + _PROGRESS_EVERY_S
        is_partial_due = self._is_partial_due if self._team else time.monotonic() >= self._partial_at
        if is_partial_due:
            # The stage's own checkpoint follows the last step.
            if self._on_partial and step < stage.task.num_steps:
                self._on_partial(step, stage.state(step))
            self._partial_at = time.monotonic() + self._every_s
        self.at = min(self._partial_at, self._progress_at)

    def finish(self, num_steps: int) -> None:
        """The last step is always reported."""
        if self._on_progress:
            self._on_progress(num_steps)


def _check_loss(recipe: Recipe, loss: object) -> None:
    name = f"recipe {type(recipe).__name__}.loss"
    if not isinstance(loss, torch.Tensor) or loss.dim() != 0:
        got = f"shape {list(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise RecipeError(f"{name}: must return a scalar tensor, not {got}; take the mean over the batch")
    if not loss.requires_grad:
        raise RecipeError(f"{name}: does not depend on any parameter that requires a gradient")


def _check_same(team: Team, recipe: Recipe, state: bytes) -> None:
    """What is not shared out must be the same on every worker: a recipe may tell them apart, unseen."""
    mine = {name: d for name, d in codec.entry_digests(state).items() if not codec.is_shared_out(name)}
    first, *others = team.gather(mine)
    for rank, other in enumerate(others, start=1):
        if name := codec.first_unequal(first, other):
            raise RecipeError(
                f"recipe {type(recipe).__name__}: {name} is another one on worker {rank} than on worker 0. What a "
                "worker draws before the optimizer's step is its own; keep it out of parameters and state"
            )
