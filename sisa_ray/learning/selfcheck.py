"""The self-check: does a stage depend on anything but the checkpoint before it?

Stages 1 and 2 in one process, from memory, against stage 2 alone in a fresh process, streamed, and again cut
in the middle and resumed. What a recipe keeps to itself (a generator, a counter, a clock, a global)
differs between them. The halves are pure; execution runs them in two processes and compares.

It is a check and no proof: it makes up to 16 steps a stage, and what shows up later escapes it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from sisa_ray.core.config import ArithmeticConfig, WarmStartConfig
from sisa_ray.core.errors import SelfCheckError
from sisa_ray.learning import codec
from sisa_ray.learning.arithmetic import resolved_device
from sisa_ray.learning.loader import (
    Loader,
    ResidentLoader,
    SliceSource,
    StreamingLoader,
    TensorSource,
    decode_table,
)
from sisa_ray.learning.recipe import RecipeFactory, new_recipe
from sisa_ray.learning.trainer import Partial, StageTask, train_stage

# No period of a counter divides all of these, so none goes unnoticed by being in step.
_NUM_STEPS = {1: 13, 2: 16}
_CUTS = (5, 11)
_NUM_DECODED = 8
_CAUSES = (
    "Usual causes: a random generator, counter, cache or clock kept in the recipe, its module or a global; "
    "numpy's default_rng or torch.Generator instead of the global generators; state of the model that is no "
    "parameter or persistent buffer; an optimizer whose state_dict is not all of its state. Keep such state "
    "in the model's buffers, and draw from the global generators of torch, numpy and random: the trainer "
    "seeds them."
)


@dataclass(frozen=True, kw_only=True)
class ChainHalf:
    """Stages 1 and 2 in one process: the checkpoint between them, and digests of the entries after them."""

    between: bytes
    digests: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class AloneHalf:
    """Stage 2 alone, digests of its entries: in one go, and by the step after which it was interrupted."""

    digests: dict[str, str]
    resumed: dict[int, dict[str, str]]


def self_check_chain(
    *,
    recipe: RecipeFactory,
    sources: Sequence[SliceSource | TensorSource],
    arithmetic: ArithmeticConfig,
    seed: int,
    num_stages: int,
    warm_start: WarmStartConfig | None = None,
    shard: int = 0,
    tables: Sequence[SliceSource] | None = None,
) -> ChainHalf:
    """Train stages 1 and 2 of a shard that has records, one after the other in this process.

    Args:
        sources: the shard's slices, slice 1 first; two are used (or the only one, twice).
        tables: the same as records, where ``sources`` are what a backbone made of them.

    Raises:
        SelfCheckError: where ``decode`` draws random numbers, or mixes rows.
    """
    pair = _first_two(sources)
    _check_decode(recipe, [s for s in (sources if tables is None else tables) if isinstance(s, SliceSource)])
    states: list[bytes] = []
    for stage in (1, 2):
        # A loader of its own for each stage: decoding must not remember anything either.
        data = ResidentLoader(pair[:stage], recipe=recipe, seed=seed, device=resolved_device(arithmetic))
        result = train_stage(
            recipe=recipe,
            data=data,
            arithmetic=arithmetic,
            task=_task(data, seed, shard, stage, num_stages, warm_start),
            start=states[-1] if states else None,
        )
        states.append(result.state)
    return ChainHalf(between=states[0], digests=codec.entry_digests(states[1]))


def self_check_alone(
    *,
    recipe: RecipeFactory,
    sources: Sequence[SliceSource | TensorSource],
    arithmetic: ArithmeticConfig,
    seed: int,
    num_stages: int,
    between: bytes,
    warm_start: WarmStartConfig | None = None,
    shard: int = 0,
) -> AloneHalf:
    """Train stage 2 from the checkpoint ``between`` the stages, in a process that has trained nothing yet."""
    pair = _first_two(sources)
    data = StreamingLoader(pair, recipe=recipe, seed=seed, device=resolved_device(arithmetic))
    partials: dict[int, bytes] = {}

    def train(resume: Partial | None) -> dict[str, str]:
        result = train_stage(
            recipe=recipe,
            data=data,
            arithmetic=arithmetic,
            task=_task(data, seed, shard, 2, num_stages, warm_start),
            start=between,
            resume=resume,
            on_partial=partials.__setitem__,
            partial_every_s=0.0,
        )
        return codec.entry_digests(result.state)

    digests = train(None)
    cuts = [Partial(step=step, data=partials[step]) for step in _CUTS if step in partials]
    return AloneHalf(digests=digests, resumed={cut.step: train(cut) for cut in cuts})


def compare_halves(class_path: str, chain: ChainHalf, alone: AloneHalf) -> None:
    """Compare what the two processes computed with the recipe ``class_path``.

    Raises:
        SelfCheckError: naming the first entry of the state that differs, and the usual causes.
    """
    if name := codec.first_unequal(chain.digests, alone.digests):
        raise SelfCheckError(
            f"recipe {class_path!r}: its stages are not exact: {name} after stage 2 is another one in a "
            f"fresh process than in the process that trained stage 1. {_CAUSES}"
        )
    for step, resumed in alone.resumed.items():
        if name := codec.first_unequal(alone.digests, resumed):
            raise SelfCheckError(
                f"recipe {class_path!r}: its stages are not exact: {name} differs where a stage is "
                f"interrupted after {step} steps and resumed. {_CAUSES}"
            )


def _first_two(sources: Sequence[SliceSource | TensorSource]) -> list[SliceSource | TensorSource]:
    return list(sources[:2]) if len(sources) > 1 else [sources[0], sources[0]]


def _task(
    data: Loader, seed: int, shard: int, stage: int, num_stages: int, warm_start: WarmStartConfig | None
) -> StageTask:
    num_steps = _NUM_STEPS[stage] if data.num_rows(stage) else 0
    return StageTask(
        seed=seed,
        shard=shard,
        stage=stage,
        num_stages=num_stages,
        num_steps=num_steps,
        warm_start=warm_start,
    )


def _check_decode(recipe: RecipeFactory, sources: Sequence[SliceSource]) -> None:
    """Decode some rows together and one by one: the same tensors, and no random draws."""
    for source in sources:
        for bucket in range(source.num_buckets):
            if source.bucket_num_rows(bucket):
                _check_decode_rows(recipe, source.read_bucket(bucket).slice(0, _NUM_DECODED))
                return


def _check_decode_rows(recipe: RecipeFactory, table: pa.Table) -> None:
    made = new_recipe(recipe)
    name = f"recipe {type(made).__name__}.decode"
    before = _generator_states()
    together = decode_table(made, table)
    if _generator_states() != before:
        raise SelfCheckError(f"{name}: draws random numbers; it must not: move them to augment")
    for row in range(table.num_rows):
        alone = decode_table(made, table.slice(row, 1))
        for key, tensor in together.items():
            # Close, not equal: kernels may round differently for another number of rows.
            if key not in alone or not _close(alone[key][0], tensor[row]):
                raise SelfCheckError(
                    f"{name}: {key!r} of a row depends on the rows decoded with it; decode each row on its "
                    "own, by constants (nothing may be fitted on the data)"
                )


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-5, equal_nan=True)


def _generator_states() -> tuple[object, ...]:
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 - what recipes draw from
    return random.getstate(), str(numpy_state), torch.get_rng_state().tolist()
