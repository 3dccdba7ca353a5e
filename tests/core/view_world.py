"""A run of which every checkpoint's people are known, with the views that its replicas would be shown."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sisa_ray.core.config import FencePolicy
from sisa_ray.core.places import Place
from sisa_ray.core.planner import Lineage, StagePlan, missing_stages
from sisa_ray.core.records import (
    BatchPlanned,
    CheckpointLost,
    GenerationPublished,
    Record,
    SlicesRewritten,
    StageBuilt,
    TableIngested,
)
from sisa_ray.core.requests import EntryMark
from sisa_ray.core.state import RunState
from sisa_ray.core.view import View, Voter, next_view, tainted
from tests.core.builders import RECEIVED, accepted, digest_of, make_slice, make_spec, make_stage

NUM_SHARDS, NUM_SLICES = 3, 4
EMPTY = NUM_SHARDS - 1
"""A shard that holds nobody."""
KEPT: Sequence[object] = ("all", [2, 4], [4])


class World:
    """A trained run; :meth:`act` lets something happen, after which a view is shown.

    Attributes:
        view: the latest.
        before: the one before it, None after another coordinator has taken over.
        open: the place of each person who is to be forgotten and is in slices still; nobody there where they are
            unknown.
    """

    def __init__(self, policy: FencePolicy, keep: object = "all") -> None:
        sisa = {"num_shards": NUM_SHARDS, "num_slices": NUM_SLICES, "epochs": 4}
        self.spec = make_spec(sisa=sisa, keep_checkpoints=keep, serving__fence=policy)
        self.policy = policy
        self.state = RunState()
        self.people: dict[Place, set[str]] = {
            (k, r): set() if k == EMPTY else {f"p{k}{r}{i}" for i in range(3)}
            for k in range(NUM_SHARDS)
            for r in range(1, NUM_SLICES + 1)
        }
        self.saw: dict[str, frozenset[str]] = {}
        """The checkpoint's path -> whose records it was trained on."""
        self.open: dict[str, tuple[str, Place]] = {}
        self.published: dict[int, dict[int, str]] = {}
        """Generation -> shard -> key of its constituent."""
        self.shown: list[View] = []
        self.before: View | None = None
        self.view: View | None = None
        self._count = 0
        slices = tuple(make_slice(*place, held) for place, held in self.people.items())
        self.apply(TableIngested(attempt="a0", columns="", slices=slices, num_rows=1, num_refused=0))
        self.build_all()
        self.publish()
        self.show()

    def apply(self, record: Record) -> None:
        seq = self.state.entry.seq + 1
        self.state.entry = EntryMark(seq=seq, digest=digest_of(seq), at=RECEIVED + timedelta(seconds=seq))
        self.state.apply(record)

    # What can happen

    def act(self, number: int) -> None:
        actions = (
            *(self.ask,) * 4,
            self.ask_for_somebody_unknown,
            *(self.erase,) * 3,
            *(self.build_one,) * 4,
            *(self.build_all,) * 3,
            *(self.publish,) * 5,
            self.lose,
            self.restart,
            lambda n: None,
        )
        actions[number % len(actions)](number // len(actions))
        self.show()

    def ask(self, number: int = 0) -> None:
        """Somebody asks to be forgotten."""
        asked = {person for person, _ in self.open.values()}
        held = sorted((p, place) for place, people in self.people.items() for p in people if p not in asked)
        if held:
            self._accept(*held[number % len(held)])

    def ask_for_somebody_unknown(self, number: int = 0) -> None:
        place = (number % NUM_SHARDS, 1 + number // NUM_SHARDS % NUM_SLICES)
        self._accept("nobody", place)

    def apply_fence(self, person: str) -> None:
        """A person asks to be forgotten, and a view is shown."""
        self._accept(person, next(place for place, held in self.people.items() if person in held))
        self.show()

    def _accept(self, person: str, place: Place) -> None:
        self._count += 1
        self.open[f"q{self._count}"] = (person, place)
        self.apply(accepted(f"q{self._count}", person))

    def erase(self, number: int = 0) -> None:
        """The slices of those who wait are rewritten."""
        waiting = dict(self.open)
        if not waiting:
            return
        self._count += 1
        batch = f"b{self._count}"
        affected = tuple(sorted({place for p, place in waiting.values() if p in self.people[place]}))
        self.apply(
            BatchPlanned(batch=batch, requests=tuple(waiting), unknown=(), num_records=1, affected=affected)
        )
        for person, place in waiting.values():
            self.people[place].discard(person)
        slices = tuple(make_slice(*place, self.people[place], attempt=batch) for place in affected)
        self.apply(SlicesRewritten(batch=batch, slices=slices))
        self.open.clear()

    def build_one(self, number: int = 0) -> None:
        """The first missing stage of a shard."""
        plans = missing_stages(self.spec, self.state, self.lineage)
        if plans:
            plan = plans[number % len(plans)]
            self._build(plan.shard, plan.stages[0])

    def build_all(self, number: int = 0) -> None:
        while plans := missing_stages(self.spec, self.state, self.lineage):
            for plan in plans:
                for stage in plan.stages:
                    self._build(plan.shard, stage)

    def _build(self, shard: int, stage: StagePlan) -> None:
        self._count += 1
        attempt, key = f"c{self._count}", stage.key
        ref = make_stage(shard, stage.stage, key=key, file_digest=key, kept=stage.keep, attempt=attempt)
        if ref.path is not None:
            slices = range(1, stage.stage + 1)
            self.saw[ref.path] = frozenset(p for r in slices for p in self.people[shard, r])
        self.apply(StageBuilt(ref=ref))

    def publish(self, number: int = 0) -> None:
        """Where everything is built, and nothing is published of it."""
        keys = tuple(self.lineage.keys(k)[-1] for k in range(NUM_SHARDS))
        if missing_stages(self.spec, self.state, self.lineage) or keys == self.state.published_keys:
            return
        generation = self.state.generation + 1
        self.apply(GenerationPublished(generation=generation, keys=keys))
        self.published[generation] = dict(enumerate(keys))

    def lose(self, number: int = 0) -> None:
        places = sorted(place for place, ref in self.state.stages.items() if ref.path is not None)
        if places:
            shard, stage = places[number % len(places)]
            self.apply(CheckpointLost(shard=shard, stage=stage, reason="missing"))

    def restart(self, number: int = 0) -> None:
        """Another coordinator, which knows of no earlier view."""
        self.view = None
        self.shown.clear()

    # What is shown

    @property
    def lineage(self) -> Lineage:
        return Lineage(self.spec, self.state)

    @property
    def fenced_from(self) -> dict[int, int]:
        first: dict[int, int] = {}
        for _, (shard, slice_) in self.open.values():
            first[shard] = min(slice_, first.get(shard, slice_))
        return first

    def show(self) -> None:
        self.before = self.view
        self.view = next_view(self.spec, self.state, self.fenced_from, self.before)
        assert self.view is not None
        self.shown.append(self.view)

    def must_drop(self, view: View) -> frozenset[int]:
        return tainted(self.spec, self.state, self.fenced_from, view)

    def knows_somebody(self, voter: Voter) -> bool:
        """Whether it was trained on somebody who asked to be forgotten, erased or not."""
        assert voter.ref.path is not None
        shard = voter.ref.shard
        held = {p for r in range(1, NUM_SLICES + 1) for p in self.people[shard, r]}
        asked = {person for person, _ in self.open.values()}
        return bool(self.saw[voter.ref.path] - (held - asked))

    def voter(self, shard: int) -> Voter | None:
        assert self.view is not None
        return next((v for v in self.view.voters if v.ref.shard == shard), None)
