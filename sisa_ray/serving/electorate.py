"""The models of a replica: who votes, from which view, all of them in memory."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from sisa_ray.core.config import ArithmeticConfig
from sisa_ray.core.view import View, Voter
from sisa_ray.learning.arithmetic import resolved_device
from sisa_ray.learning.passes import probe_batch
from sisa_ray.learning.recipe import RecipeFactory, new_recipe
from sisa_ray.learning.stacked import StackedModel
from sisa_ray.storage.checkpoints import read_checked
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
    """

    serial: int
    version: int
    generation: int
    shards: tuple[int, ...]
    voters: tuple[Voter, ...]
    num_changed: int
    stack: StackedModel

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
    """Brings the voters of a view into memory: digests checked, safetensors only."""

    def __init__(
        self,
        store: ObjectStore,
        recipe: RecipeFactory,
        arithmetic: ArithmeticConfig,
        *,
        shards: tuple[int, ...],
        schema: object,
    ) -> None:
        self._store = store
        self._recipe = recipe
        self._arithmetic = arithmetic
        self._shards = shards
        self._schema = schema
        self._loaded: dict[int, Voter] = {}

    def load(self, view: View, before: Electorate | None) -> Electorate:
        """The electorate of a view. What it shares with ``before`` is not read again; ``before`` goes on answering.

        Raises:
            IntegrityError: where a checkpoint is gone or is not what was committed.
        """
        voters = tuple(v for v in view.voters if v.ref.shard in set(self._shards))
        wanted = {v.ref.shard: v for v in voters}
        if before is None:
            states = [self._read(wanted.get(shard)) for shard in self._shards]
            probe = probe_batch(
                new_recipe(self._recipe), self._schema, _PROBE_ROWS, resolved_device(self._arithmetic)
            )
            stack = StackedModel.build(self._recipe, states, self._arithmetic, probe=probe)
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

    def _read(self, voter: Voter | None) -> bytes | None:
        return None if voter is None else read_checked(self._store, voter.ref)


def _file(voter: Voter | None) -> str | None:
    return None if voter is None else voter.ref.file_digest
