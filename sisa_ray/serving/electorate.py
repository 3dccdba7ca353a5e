"""The models of a replica: who votes, from which view, all of them in memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from sisa_ray.core.identity import Spec
from sisa_ray.core.view import View, Voter
from sisa_ray.learning.arithmetic import resolved_device
from sisa_ray.learning.parts import read_constituent
from sisa_ray.learning.passes import probe_batch
from sisa_ray.learning.recipe import RecipeFactory, RecipeSpec, new_recipe
from sisa_ray.learning.stacked import StackedModel
from sisa_ray.storage.objects import ObjectStore

_PROBE_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class Electorate:
    """Who answers now. Immutable: a pass that has begun keeps the one that it began with.

    Attributes:
        serial: counts the electorates of this replica.
        version: of the view whose voters are in memory.
        generation: of that view.
        shards: that this replica holds, a slot each.
        voters: those that vote, in the order of their shards; fewer than are in memory once some were dropped.
        num_changed: in how many shards one person's records may be.
        stack: None where others hold the models.
        at_most: the position that those others respect, where they may be behind.
    """

    serial: int
    version: int
    generation: int
    shards: tuple[int, ...]
    voters: tuple[Voter, ...]
    num_changed: int
    stack: StackedModel | None
    at_most: int | None = None

    @property
    def slots(self) -> list[int]:
        """The slots of the voters."""
        slot_of = {shard: slot for slot, shard in enumerate(self.shards)}
        return [slot_of[voter.ref.shard] for voter in self.voters]

    @property
    def weights(self) -> list[int]:
        """Records of each voter."""
        return [voter.num_records for voter in self.voters]

    def without(self, dropped: Collection[int]) -> Electorate:
        """The same models, of which those of some shards vote no more."""
        voters = tuple(v for v in self.voters if v.ref.shard not in dropped)
        return replace(self, serial=self.serial + 1, voters=voters)

    def differing(self, view: View) -> frozenset[int]:
        """Shards of which ``view`` has another voter, or none."""
        others = {v.ref.shard: v for v in view.voters}
        return frozenset(v.ref.shard for v in self.voters if others.get(v.ref.shard) != v)


class ModelLoader:
    """Brings the voters of some shards into memory: digests checked, safetensors only.

    Args:
        spec: of the run.
        store: of the run.
        shards: that this replica holds.
    """

    def __init__(self, spec: Spec, store: ObjectStore, shards: tuple[int, ...]) -> None:
        self._spec = spec
        self._store = store
        self._shards = shards
        self._recipe: RecipeFactory | None = None
        self._loaded: dict[int, Voter] = {}

    def load(self, view: View, before: Electorate | None) -> Electorate:
        """The electorate of a view. What it shares with ``before`` is not read again; ``before`` goes on answering.

        Raises:
            IntegrityError: where a checkpoint is gone or is not what was committed.
        """
        voters = tuple(v for v in view.voters if v.ref.shard in set(self._shards))
        wanted = {v.ref.shard: v for v in voters}
        if before is None or before.stack is None:
            stack = self._build(view, wanted)
        else:
            changes = {
                slot: self._read(wanted.get(shard))
                for slot, shard in enumerate(self._shards)
                if _file(self._loaded.get(shard)) != _file(wanted.get(shard))
            }
            stack = before.stack.with_slots(changes) if changes else before.stack
        self._loaded = wanted
        return Electorate(
            serial=0 if before is None else before.serial + 1,
            version=view.version,
            generation=view.generation,
            shards=self._shards,
            voters=voters,
            num_changed=view.num_ingests,
            stack=stack,
        )

    def _build(self, view: View, wanted: Mapping[int, Voter]) -> StackedModel:
        schema, config = schema_of(view.columns), self._spec.config
        if self._recipe is None:
            self._recipe = RecipeSpec(
                class_path=config.recipe.class_path,
                args=config.recipe.args,
                search_dirs=self._spec.code_dirs,
                code=self._spec.code,
            ).factory(schema)
        device = resolved_device(config.arithmetic)
        # The layout is decided on rows that every replica makes up alike.
        probe = probe_batch(new_recipe(self._recipe), schema, _PROBE_ROWS, device)
        states = [self._read(wanted.get(shard)) for shard in self._shards]
        stack = StackedModel.build(self._recipe, states, config.arithmetic, probe=probe)
        if stack.backbone is not None:
            stack.backbone.require(self._spec.backbone)
        return stack

    def _read(self, voter: Voter | None) -> bytes | None:
        return None if voter is None else read_constituent(self._store, voter.ref)


def without_models(view: View, before: Electorate | None) -> Electorate:
    """The electorate of a view for whoever asks others to vote."""
    return Electorate(
        serial=0 if before is None else before.serial + 1,
        version=view.version,
        generation=view.generation,
        shards=tuple(range(view.num_shards)),
        voters=view.voters,
        num_changed=view.num_ingests,
        stack=None,
    )


def schema_of(columns: str) -> pa.Schema:
    """The Arrow schema of the role columns, from a view's."""
    return pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(columns)))


def _file(voter: Voter | None) -> str | None:
    return None if voter is None else voter.ref.file_digest
