"""A run without storage, Ray or training: what the planner decides is carried out on sets and strings.

It commits in the order in which the real session does, and can crash before any durable action. After every
commit it checks what must hold at all times.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from sisa_ray.core import step as steps
from sisa_ray.core.identity import Spec
from sisa_ray.core.partition import Layout, place
from sisa_ray.core.places import Place
from sisa_ray.core.planner import (
    Lineage,
    ShardPlan,
    full_retrain_visits,
    missing_stages,
    named_paths,
    wanted_checkpoints,
    wanted_partials,
)
from sisa_ray.core.protection import BucketProtection
from sisa_ray.core.records import (
    AttemptClosed,
    AttemptOpened,
    BatchCertified,
    BatchClosed,
    BatchPlanned,
    CheckpointLost,
    GenerationPublished,
    PayloadRewritten,
    Purged,
    PurgePlanned,
    Record,
    RequestsFenced,
    RunCreated,
    SliceRef,
    SlicesRewritten,
    StageBuilt,
    StageRef,
    TableIngested,
    dump_record,
    load_record,
)
from sisa_ray.core.state import RunState, fold
from tests.core.builders import accepted, content_digest, digest_of, make_slice

SIZE_BYTES = 100


class Crash(Exception):
    """The process ends here."""


class World:
    """One run and the process at work on it.

    ``table`` maps record ids to subjects; ``objects`` the paths in storage to the subjects whose data they
    hold: a checkpoint holds everybody it was trained on.
    """

    def __init__(self, spec: Spec, table: Mapping[str, str]) -> None:
        self.spec = spec
        self.table = dict(table)
        self.log: list[bytes] = []
        self.committed: list[Record] = []
        self.objects: dict[str, frozenset[str]] = {}
        self.records: dict[str, frozenset[str]] = {}
        self.state = RunState()
        self.platform = "cpu"
        self.crash_in: int | None = None
        self.num_actions = 0
        self.forgotten: set[str] = set()
        self.destroyed: set[str] = set()
        self.stages_rebuilt: list[Place] = []
        self._ids = (f"{n:04d}" for n in itertools.count())
        self._attempt = ""

    # What a user does

    def train(self) -> None:
        """Ingest where that was not done, and train to a complete, published ensemble."""
        self._open("train")
        self._ingest()
        self._reconcile(train=True)

    def ingest(self) -> None:
        """Ingest alone."""
        self._open("ingest")
        self._ingest()
        self._reconcile(train=False)

    def unlearn(self, subjects: Iterable[str]) -> None:
        """Forget ``subjects``; those that asked before are left out."""
        self._open("unlearn")
        new = [s for s in subjects if f"tag {s}" not in self.state.suppressed]
        if new:
            request = next(self._ids)
            path = f"requests/{request}"
            self._put(path, new)
            tags = tuple(f"tag {s}" for s in new)
            self._commit(accepted(request, *tags, payload=path))
        self._reconcile(train=False)

    def crash(self) -> None:
        """Lose everything that is not durable: a new process reads the log."""
        records = self.read_log()
        assert records == self.committed
        self.state = fold(records)

    def destroy(self, path: str) -> None:
        """Lose an object behind the run's back."""
        del self.objects[path]
        self.destroyed.add(path)

    # What can be seen from outside

    def read_log(self) -> list[Record]:
        """All records, as they come back from storage."""
        return [load_record(data) for entry in self.log for data in json.loads(entry)]

    def summary(self) -> dict[str, object]:
        """What must not depend on how often the process crashed: no attempts, no costs."""
        state = self.state
        return {
            "slices": {where: (s.content_digest, s.num_records) for where, s in state.slices.items()},
            "stages": {
                where: (s.key, s.file_digest, s.path is not None, s.num_steps)
                for where, s in state.stages.items()
            },
            "objects": {path.rpartition("/")[0]: held for path, held in self.objects.items()},
            "suppressed": set(state.suppressed),
            "unknown": state.unknown,
            "generation": (state.generation, state.published_keys),
            "open": (state.requests, state.batches, state.attempt, state.purge_due),
            "closed": [batch.plan.affected for batch in state.closed_batches.values()],
        }

    def costs(self) -> list[int]:
        """Record-visits of each closed batch."""
        return [batch.closed.record_visits for batch in self.state.closed_batches.values()]

    # What the process does

    def _open(self, command: str) -> None:
        self._attempt = next(self._ids)
        if self.state.created is None:
            self._commit(
                RunCreated(
                    spec_digest=self.spec.digest, secret_id=self.spec.secret_id, protection=BucketProtection()
                )
            )
        self._commit(AttemptOpened(attempt=self._attempt, command=command))
        for ref in list(self.state.stages.values()):
            if ref.path is not None and ref.path not in self.objects:
                self._commit(CheckpointLost(shard=ref.shard, stage=ref.stage, reason="missing"))

    def _ingest(self) -> None:
        if self.state.ingested is not None:
            return
        sisa = self.spec.config.sisa
        held: dict[Place, set[str]] = defaultdict(set)
        num_refused = 0
        for record, where in zip(self.table, self._places(list(self.table.values())), strict=True):
            if f"tag {self.table[record]}" in self.state.suppressed:
                num_refused += 1
            else:
                held[where].add(record)
        places = itertools.product(range(sisa.num_shards), range(1, sisa.num_slices + 1))
        slices = tuple(self._store_slice(where, held[where]) for where in places)
        self._commit(
            TableIngested(
                attempt=self._attempt,
                columns="",
                slices=slices,
                num_rows=len(self.table),
                num_refused=num_refused,
            )
        )

    def _reconcile(self, *, train: bool) -> None:
        while (decision := steps.step(self.spec, self.state, train=train)) is not None:
            self._execute(decision)
        self._commit(AttemptClosed(attempt=self._attempt))

    def _execute(self, decision: steps.Decision) -> None:
        match decision:
            case steps.FenceRequests(requests=requests):
                self._commit(RequestsFenced(requests=requests))
            case steps.PlanBatch(requests=requests):
                self._commit(self._plan(requests))
            case steps.RewriteSlices(batch=batch):
                self._rewrite(batch)
            case steps.BuildStages(shards=plans):
                assert all(batch.rewritten for batch in self.state.batches.values())
                assert len({plan.shard for plan in plans}) == len(plans)
                for plan in plans:
                    self._build_shard(plan)
            case steps.Publish(generation=generation, keys=keys):
                self._commit(GenerationPublished(generation=generation, keys=keys))
            case steps.Purge():
                self._purge()
            case steps.RewritePayload(path=path, requests=requests):
                new = f"requests/{next(self._ids)}"
                self._put(new, {s for r in requests for s in self._named_by(r)})
                self._commit(PayloadRewritten(before=path, path=new, requests=requests))
            case steps.CloseBatch(batch=batch):
                self._close(batch)
            case steps.Certify(batch=batch):
                self._commit(BatchCertified(batch=batch, path=f"certificates/{batch}", digest=""))

    def _plan(self, requests: Sequence[str]) -> BatchPlanned:
        routed = self._routed(requests)
        slices = self.state.slices  # none before ingest: then everybody is unknown
        known = {
            s: where for s, where in routed.items() if where in slices and s in self._held(slices[where])
        }
        return BatchPlanned(
            batch=next(self._ids),
            requests=tuple(requests),
            unknown=tuple(f"tag {s}" for s in routed if s not in known),
            num_records=sum(self.table[r] in known for r in self.table),
            affected=tuple(sorted(set(known.values()))),
        )

    def _rewrite(self, batch: str) -> None:
        plan = self.state.batches[batch].plan
        gone = set(self._routed(plan.requests))
        slices = tuple(
            self._store_slice(
                where, {r for r in self._records(self.state.slices[where]) if self.table[r] not in gone}
            )
            for where in plan.affected
        )
        self._commit(SlicesRewritten(batch=batch, slices=slices))

    def _build_shard(self, plan: ShardPlan | None) -> None:
        while plan is not None:
            self._build(plan)
            left = missing_stages(self.spec, self.state, Lineage(self.spec, self.state), (plan.shard,))
            plan = left[0] if left else None

    def _build(self, plan: ShardPlan) -> None:
        previous = ""
        if plan.start is not None:
            assert plan.start.path in self.objects
            assert plan.start.stage == plan.stages[0].stage - 1
            previous = plan.start.file_digest
        assert [s.stage for s in plan.stages] == list(range(plan.stages[0].stage, plan.stages[-1].stage + 1))
        for stage in plan.stages:
            seen = frozenset().union(*(self._held(s) for s in plan.slices[: stage.stage]))
            partial = f"partials/{plan.shard}/{stage.stage}/{stage.key}/{self._attempt}"
            self._put(partial, seen)
            digest = digest_of("state", stage.key, previous, self.platform)
            path = f"checkpoints/{plan.shard}/{stage.stage}/{self._attempt}"
            if stage.keep:
                self._put(path, seen)
            self._commit(
                StageBuilt(
                    ref=StageRef(
                        shard=plan.shard,
                        stage=stage.stage,
                        key=stage.key,
                        path=path if stage.keep else None,
                        file_digest=digest,
                        size_bytes=SIZE_BYTES,
                        num_steps=stage.num_steps,
                        record_visits=stage.num_steps * self.spec.batch_size,
                        seconds=1.0,
                        platform={"device": self.platform},
                    )
                )
            )
            self.stages_rebuilt.append((plan.shard, stage.stage))
            self._delete(partial)
            previous = digest

    def _purge(self) -> None:
        named, partials = named_paths(self.spec, self.state), wanted_partials(self.spec, self.state)
        lost = [
            CheckpointLost(shard=ref.shard, stage=ref.stage, reason="retention")
            for ref in self.state.stages.values()
            if ref.path is not None and ref.path not in named
        ]
        doomed = [
            p
            for p in self.objects
            if p not in named and not (p.startswith("partials/") and p.split("/")[3] in partials)
        ]
        self._commit(*lost, PurgePlanned(attempt=self._attempt, num_objects=len(doomed)))
        for path in doomed:
            self._delete(path)
        self._commit(Purged(attempt=self._attempt, num_objects=len(doomed), num_bytes=0))
        # What a purge is for: nobody whose batch is rewritten is left anywhere.
        assert not [path for path, held in self.objects.items() if held & self.forgotten]

    def _close(self, batch: str) -> None:
        done = self.state.batches[batch]
        self._commit(
            BatchClosed(
                batch=batch,
                stages_rebuilt=done.stages_rebuilt,
                record_visits=done.record_visits,
                full_retrain_record_visits=full_retrain_visits(self.spec, self.state),
                objects_purged=done.objects_purged,
                bytes_purged=done.bytes_purged,
            )
        )

    # Durable actions

    def _act(self) -> None:
        if self.crash_in is not None:
            if self.crash_in == 0:
                self.crash_in = None
                raise Crash
            self.crash_in -= 1
        self.num_actions += 1

    def _commit(self, *records: Record) -> None:
        self._act()
        self.log.append(json.dumps([dump_record(r) for r in records]).encode())
        self.committed += records
        for record in records:
            self.state.apply(record)
            if isinstance(record, SlicesRewritten):
                self.forgotten |= set(self._routed(self.state.batches[record.batch].plan.requests))
        self._check()

    def _put(self, path: str, subjects: Iterable[str]) -> None:
        self._act()
        self.objects[path] = frozenset(subjects)

    def _delete(self, path: str) -> None:
        self._act()
        self.objects.pop(path, None)

    def _store_slice(self, where: Place, records: set[str]) -> SliceRef:
        ref = make_slice(*where, records, attempt=self._attempt)
        if ref.path is not None:
            self._put(ref.path, {self.table[r] for r in records})
            self.records[ref.path] = frozenset(records)
        return ref

    def _records(self, ref: SliceRef) -> frozenset[str]:
        records = self.records[ref.path] if ref.path is not None else frozenset()
        assert ref.content_digest == content_digest(records)
        return records

    def _held(self, ref: SliceRef) -> frozenset[str]:
        return self.objects[ref.path] if ref.path is not None else frozenset()

    def _routed(self, requests: Iterable[str]) -> dict[str, Place]:
        subjects = [s for r in requests for s in self._named_by(r)]
        return dict(zip(subjects, self._places(subjects), strict=True))

    def _named_by(self, request: str) -> list[str]:
        there = self.state.requests[request]
        named = sorted(s for s in self.objects[there.payload] if f"tag {s}" in there.tags)
        assert len(named) == len(there.tags)
        return named

    def _places(self, subjects: Sequence[str]) -> list[Place]:
        sisa = self.spec.config.sisa
        layout = Layout(num_shards=sisa.num_shards, num_slices=sisa.num_slices, seed=sisa.seed)
        shards, slices = place(subjects, layout)
        return list(zip(shards.tolist(), slices.tolist(), strict=True))

    # What must hold after every commit

    def _check(self) -> None:
        assert self.state == fold(self.committed)
        named = named_paths(self.spec, self.state)
        assert named <= self.objects.keys() | self.destroyed
        tainted = {path for path in named if self.objects.get(path, frozenset()) & self.forgotten}
        assert not tainted, f"named, though they hold the forgotten: {tainted}"

    def check_finished(self) -> None:
        """What must hold once a command that trains has ended."""
        state, spec = self.state, self.spec
        num_slices = spec.config.sisa.num_slices
        kept = wanted_checkpoints(spec, state)
        assert self.objects.keys() == named_paths(spec, state)
        assert {ref.stage for ref in state.stages.values() if ref.path} <= kept
        lineage = Lineage(spec, state)
        for shard in range(spec.config.sisa.num_shards):
            previous = ""
            for stage, key in enumerate(lineage.keys(shard), start=1):
                ref = state.stages[shard, stage]
                assert ref.key == key
                assert (ref.path in self.objects) == (stage in kept)
                # Every stage descends from the very bytes that the log names for the one before.
                assert ref.file_digest == digest_of("state", key, previous, ref.platform["device"])
                previous = ref.file_digest
            assert lineage.latest_clean(shard) == state.stages[shard, num_slices]
