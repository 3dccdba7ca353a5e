"""A layout: how many records and requests each slice of each shard has, how long its stages are, what is kept.

Legend of shapes: G kinds of shard, R slices a shard. Shards that are alike are one row with a number of copies,
so that a hundred thousand of them cost what one does.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from sisa_ray.core.errors import ConfigError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_TOLERANCE = 1e-9
_MAX_CELLS = 20_000_000
"""Slices of all shards together; above this arrays would fill the memory of an ordinary machine."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """Where records and requests are, and what a rebuild may start from."""

    sizes: FloatArray
    """(G, R): records of each slice of a shard of each kind; expectations need not be whole."""
    weights: FloatArray
    """(G, R): probability that a request falls into that slice of one given shard of that kind."""
    copies: IntArray
    """(G,): shards of each kind."""
    epochs: FloatArray
    """(R,): epochs of each stage over its slices 1..r."""
    kept: tuple[int, ...]
    """Stages whose checkpoints are kept, rising; the last one, the constituent, always is."""

    def __post_init__(self) -> None:
        if self.sizes.shape != self.weights.shape or self.sizes.shape != (
            len(self.copies),
            len(self.epochs),
        ):
            raise ConfigError(
                f"layout: sizes {self.sizes.shape} and weights {self.weights.shape} must both have a row for each of "
                f"{len(self.copies)} kinds of shard and a column for each of {len(self.epochs)} stages"
            )
        for name, values in (("sizes", self.sizes), ("weights", self.weights), ("epochs", self.epochs)):
            if not (np.isfinite(values).all() and (values >= 0).all()):
                raise ConfigError(f"{name}: must be finite and not negative; correct the negative ones")
        if (self.copies < 1).any():
            raise ConfigError("copies: must be at least 1; leave out kinds of shard that do not occur")
        total = float(self.copies @ self.weights.sum(axis=1))
        if abs(total - 1) > _TOLERANCE:
            raise ConfigError(
                f"weights: probabilities of all slices of all shards must sum to 1, not {total:.6g}; "
                "divide them by their sum"
            )
        stages = self.num_slices
        rising = all(a < b for a, b in pairwise(self.kept))
        if not self.kept or not rising or self.kept[0] < 1 or self.kept[-1] != stages:
            raise ConfigError(
                f"kept: must be rising stages from 1 that end with the last, {stages}, not {list(self.kept)}; "
                "the last stage's checkpoint is the model itself"
            )

    @property
    def num_slices(self) -> int:
        """R."""
        return int(self.sizes.shape[1])

    @property
    def num_shards(self) -> int:
        """S."""
        return int(self.copies.sum())

    @property
    def num_records(self) -> float:
        """N."""
        return float(self.copies @ self.sizes.sum(axis=1))

    @property
    def num_checkpoints(self) -> int:
        """Checkpoints in storage while nothing is being rebuilt."""
        return self.num_shards * len(self.kept)

    def keeping(self, kept: Collection[int]) -> Layout:
        """The same, with the checkpoints of ``kept`` alone (and of the last stage)."""
        return Layout(
            sizes=self.sizes,
            weights=self.weights,
            copies=self.copies,
            epochs=self.epochs,
            kept=tuple(sorted({*kept, self.num_slices})),
        )

    def spelled_out(self) -> Layout:
        """The same, with a row for each shard: what a simulation that erases records needs.

        Raises:
            ConfigError: where that is too large.
        """
        if self.num_shards * self.num_slices > _MAX_CELLS:
            raise ConfigError(
                f"num_shards × num_slices: {self.num_shards} × {self.num_slices} slices are too many to simulate; "
                f"at most {_MAX_CELLS:,} fit"
            )
        return Layout(
            sizes=np.repeat(self.sizes, self.copies, axis=0),
            weights=np.repeat(self.weights, self.copies, axis=0),
            copies=np.ones(self.num_shards, dtype=np.int64),
            epochs=self.epochs,
            kept=self.kept,
        )


def even_layout(
    num_records: float,
    num_shards: int,
    epochs: Sequence[Fraction | float],
    kept: Collection[int] | None = None,
) -> Layout:
    """Shards and slices of one size, in which every record is as likely to be asked for.

    ``epochs`` has one number a stage (``stage_epochs``); ``kept`` is all stages unless given. This is what placement by
    a keyed hash gives on average, whoever asks: a record's place tells nothing of how likely it is to go.

    >>> layout = even_layout(1000, 10, [1.0, 1.0], kept=[])
    >>> layout.sizes.tolist(), layout.kept, layout.num_checkpoints
    ([[50.0, 50.0]], (2,), 10)

    Raises:
        ConfigError: for numbers that describe no layout.
    """
    num_slices = len(epochs)
    if num_slices < 1 or num_shards < 1 or not num_records >= 1:
        raise ConfigError(
            f"layout: needs at least one record, shard and slice, not {num_records:g}, {num_shards} and {num_slices}"
        )
    shape = (1, num_slices)
    return Layout(
        sizes=np.full(shape, num_records / (num_shards * num_slices)),
        weights=np.full(shape, 1 / (num_shards * num_slices)),
        copies=np.array([num_shards], dtype=np.int64),
        epochs=np.array([float(e) for e in epochs]),
        kept=tuple(sorted({*(range(1, num_slices + 1) if kept is None else kept), num_slices})),
    )


def by_records(
    sizes: npt.ArrayLike, epochs: Sequence[Fraction | float], kept: Collection[int] | None = None
) -> Layout:
    """Slices of the given sizes, an array (S, R), in which every record is as likely to be asked for.

    Raises:
        ConfigError: for an array that describes no layout.
    """
    array = np.asarray(sizes, dtype=np.float64)
    if array.ndim != 2 or not array.sum() >= 1:
        raise ConfigError("sizes: must be a table of shards × slices with at least one record in it")
    num_slices = array.shape[1]
    return Layout(
        sizes=array,
        weights=array / array.sum(),
        copies=np.ones(len(array), dtype=np.int64),
        epochs=np.array([float(e) for e in epochs]),
        kept=tuple(sorted({*(range(1, num_slices + 1) if kept is None else kept), num_slices})),
    )
