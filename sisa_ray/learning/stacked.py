"""The constituents of an ensemble as one stacked model, for whoever serves many predictions.

Parameters and buffers of all constituents lie along a new first dimension, and one batched forward
(``torch.vmap``) answers for all of them. Models that cannot be batched so are kept side by side and asked one
after the other. Either way the answer of a slot depends on that slot's constituent, the batch, the number of
slots and the layout alone: the layout is decided on freshly initialised models, never on trained ones, so that
no constituent can move the bits of another.

Keep a shard in its slot: batched, some operators fold slots into channels (batch norm), and where a layer's
width fills no vector, a constituent's bits then depend on the number of its slot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import pyarrow as pa
import torch
from torch import nn

from sisa_ray.core.config import ArithmeticConfig
from sisa_ray.learning.backbone import Backbone
from sisa_ray.learning.ensemble import Floats
from sisa_ray.learning.loader import joined
from sisa_ray.learning.passes import features_of, padded, padded_batch
from sisa_ray.learning.recipe import Batch, Recipe, RecipeFactory
from sisa_ray.learning.structure import Layout, Structure, Tensors, fill, registered


class StackedModel:
    """Constituents in numbered slots, on one device; a slot may be empty.

    Immutable but for what it learns about its own form (layout, traced forwards): changes make a new one.
    One thread calls :meth:`forward`, within ``applied(arithmetic)`` held for as long as the process serves;
    another may prepare the next stack meanwhile.
    """

    def __init__(
        self,
        structure: Structure,
        filled: Sequence[bool],
        models: Sequence[nn.Module | None] | None,
        tensors: Tensors | None,
    ) -> None:
        """Use :meth:`build`."""
        self._structure = structure
        self._filled = tuple(filled)
        self._models = models
        self._tensors = tensors

    @classmethod
    def build(
        cls,
        recipe: RecipeFactory,
        states: Sequence[bytes | None],
        arithmetic: ArithmeticConfig,
        *,
        probe: Batch | None = None,
    ) -> StackedModel:
        """A stack whose slot ``i`` holds the constituent of checkpoint ``states[i]``.

        Args:
            states: None leaves a slot empty.
            arithmetic: its device holds the stack.
            probe: a pass of a few rows on that device, to decide the layout on (see
                :func:`~sisa_ray.learning.passes.probe_batch`); without it the first forward decides, and
                until then constituents are held side by side.

        Raises:
            IntegrityError: where a state cannot be decoded.
            RecipeError: where a state does not fit the recipe's model.
        """
        if not states:
            raise ValueError("states: must have at least one slot")
        structure = Structure(recipe, arithmetic)
        if probe is not None:
            # A recipe may refuse made-up rows: then the first real ones decide.
            with suppress(Exception):
                structure.decide(_embedded(structure, probe))
        empty = cls(structure, [False] * len(states), [None] * len(states), None)
        if structure.layout == "stacked":
            empty = cls(structure, empty._filled, None, structure.zeros(len(states)))
        # The empty stack is nobody else's, so it is filled in place: no second copy at the start.
        return empty._changed(dict(enumerate(states)), fresh=False)

    @property
    def num_slots(self) -> int:
        """Slots, empty ones included."""
        return len(self._filled)

    @property
    def filled(self) -> tuple[bool, ...]:
        """Which slots hold a constituent."""
        return self._filled

    @property
    def layout(self) -> Layout | None:
        """``stacked`` or ``looped``; None until a batch was seen."""
        return self._structure.layout

    @property
    def recipe(self) -> Recipe:
        """The recipe that predicts, to decode batches with."""
        return self._structure.recipe

    @property
    def backbone(self) -> Backbone | None:
        """What all constituents share; it runs once for a row, whatever their number."""
        return self._structure.backbone

    def batch(self, pieces: Sequence[pa.Table], rows: int) -> Batch:
        """A pass of ``rows`` rows for :meth:`forward`: those of all pieces (role columns), the rest padded.

        Each piece goes through the backbone by itself, so that what is made of it does not depend on the others.

        Raises:
            RecipeError: as ``decode`` and ``embed``.
        """
        if self.backbone is None:
            table = pieces[0] if len(pieces) == 1 else pa.concat_tables(pieces)
            return padded_batch(self.recipe, table, rows, self.device)
        embedded = [self.backbone.embed_table(features_of(piece)) for piece in pieces]
        return padded(joined(embedded), rows, self.device)

    @property
    def device(self) -> torch.device:
        """Where the stack lies, and where batches have to be."""
        return self._structure.device

    @property
    def size_bytes(self) -> int:
        """Memory that parameters and buffers occupy."""
        held = (
            [self._tensors]
            if self._tensors is not None
            else map(registered, filter(None, self._models or ()))
        )
        return sum(tensor.nbytes for tensors in held for tensor in tensors.values())

    def with_slots(self, changes: Mapping[int, bytes | None]) -> StackedModel:
        """A new stack in which these slots hold other constituents; None empties a slot.

        This one goes on serving. Stacked, the new one shares no memory with it; looped, it shares the models
        of the slots that stay. Its bits are those of a stack built from scratch.

        Raises:
            IntegrityError, RecipeError: as :meth:`build`; nothing is changed then.
            ValueError: where there is no such slot.
        """
        if unknown := sorted(set(changes) - set(range(self.num_slots))):
            raise ValueError(f"changes: there is no slot {unknown[0]}; they are 0..{self.num_slots - 1}")
        return self._changed(changes, fresh=True)

    def _changed(self, changes: Mapping[int, bytes | None], *, fresh: bool) -> StackedModel:
        filled = list(self._filled)
        # Models first: where another thread's forward is just stacking them, they still are the whole truth.
        models = None if (held := self._models) is None else list(held)
        tensors = self._tensors if models is None else None
        if tensors is not None and fresh:
            kept, tensors = tensors, self._structure.zeros(self.num_slots)
            for name, tensor in kept.items():
                tensors[name].copy_(tensor)
        for slot, state in changes.items():
            filled[slot] = state is not None
            model = None if state is None else self._structure.load(state)
            if models is not None:
                models[slot] = model
            else:
                assert tensors is not None, "a stack holds either models or tensors"
                fill(tensors, slot, model)
        return StackedModel(self._structure, filled, models, tensors)

    def forward(self, batch: Batch) -> Floats:
        """What every constituent says about each row of one pass.

        Args:
            batch: decoded and padded tensors on the stack's device (:meth:`batch`). The first pass of a new
                number of rows takes some 50 ms longer.

        Returns:
            Float64, shape ``(num_slots, rows, C)``, or ``(num_slots, rows)`` or ``(num_slots, rows, D)`` for
            regression. Answers of empty slots are zeros.

        Raises:
            RecipeError: where the recipe's answer has the wrong shape.
        """
        structure = self._structure
        with torch.inference_mode():
            if structure.layout is None:
                structure.decide(batch)
            if structure.layout == "looped":
                assert self._models is not None, "a looped stack holds models"
                answers = structure.looped(self._models, batch)
            else:
                answers = structure.stacked(self._as_tensors(), batch)
        values: Floats = answers.to("cpu", torch.float64).numpy()
        if not all(self._filled):
            # Of its own: where a recipe ignores its model, all slots are one piece of memory.
            values = values.copy()
            values[[slot for slot, is_filled in enumerate(self._filled) if not is_filled]] = 0.0
        return values

    def _as_tensors(self) -> Tensors:
        if self._tensors is None:
            assert self._models is not None, "a stack holds either models or tensors"
            tensors = self._structure.zeros(self.num_slots)
            for slot, model in enumerate(self._models):
                fill(tensors, slot, model)
            self._tensors, self._models = tensors, None
        return self._tensors


def _embedded(structure: Structure, probe: Batch) -> Batch:
    if structure.backbone is None:
        return probe
    return padded(structure.backbone.embed(probe), len(next(iter(probe.values()))), structure.device)
