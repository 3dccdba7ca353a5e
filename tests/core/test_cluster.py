"""Histories of coordinators, clients and storage, and that each thing that must hold is seen to break."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, get_args

import pytest

from sisa_ray.core import planner
from sisa_ray.core import step as steps
from sisa_ray.core.config import UnlearningConfig
from sisa_ray.core.errors import CommitFailed, StorageError
from sisa_ray.core.identity import Spec
from sisa_ray.core.places import Places
from sisa_ray.core.planner import ShardPlan
from sisa_ray.core.records import PayloadOpened, PurgeFailed, PurgePlanned, Record, StageBuilt
from sisa_ray.core.requests import EntryMark, Request, refs_of
from sisa_ray.core.state import OPENED_FOR, RunState
from tests.core import cluster, cluster_coordinator, cluster_people, cluster_run
from tests.core.cluster_checks import Invariant, Violation
from tests.core.cluster_coordinator import Coordinator
from tests.core.cluster_pool import Pool
from tests.core.cluster_run import SimRun, Submission
from tests.core.cluster_store import START, Entry, Odds, Steps, Store, spec_of
from tests.core.cluster_world import World

NUM_SEEDS = 150

FAULTS = {
    "answer lost",
    "answer lost, tried again",
    "checkpoint vanished",
    "clean stop",
    "crash after",
    "crash before",
    "deletion without effect",
    "late write",
    "pause",
    "sent twice",
    "storage failed",
    "two coordinators",
}
SEEN = {
    "actor died",
    "deadline that was due",
    "batch joined a build",
    "payload rewritten",
    "plan cut",
    "purge failed",
    "purge of a few shards",
    "request rejected",
    "requests accepted together",
    "stage stopped",
}

Break = Callable[[pytest.MonkeyPatch], None]


class TestHistories:
    def test_hold_whatever_goes_wrong(self) -> None:
        faults: Counter[str] = Counter()
        seen: Counter[str] = Counter()
        for seed in range(NUM_SEEDS):
            try:
                world = cluster.play(seed)
            except Violation as violation:
                pytest.fail(f"{violation}: python -m tests.core.cluster --seed {seed}")
            faults += world.faults
            seen += world.seen
        assert set(faults) == FAULTS
        assert set(seen) == SEEN

    @pytest.mark.slow
    def test_many(self) -> None:
        assert cluster.main(["--seeds", "5000"]) == 0

    def test_are_replayed_exactly_in_another_process(self) -> None:
        """Whatever the order of sets there."""
        world = cluster.play(11, is_traced=True)
        command = [sys.executable, "-m", "tests.core.cluster", "--seed", "11"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == world.trace
        assert len(world.trace) > 20

    def test_that_break_are_named(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        publishes_what_is_not_built(monkeypatch)
        assert cluster.main(["--seeds", "10", "--first", "5"]) == 1
        shown = capsys.readouterr().out
        seed = shown.split("replay it: python -m tests.core.cluster --seed ")[1].split()[0]
        assert cluster.main(["--seed", seed]) == 1
        assert "published models know no forgotten" in capsys.readouterr().out.splitlines()[-1]


# Cores, folds, policies and executors that are broken on purpose


def forgets_a_request(patch: pytest.MonkeyPatch) -> None:
    """A fold."""
    plain = RunState.__dict__["apply"]

    def apply(state: RunState, record: Record) -> None:
        plain.__get__(state, RunState)(record)
        if isinstance(record, PurgePlanned):
            for name in [r.request for r in state.requests.values() if r.batch is None]:
                del state.requests[name]

    patch.setattr(RunState, "apply", apply)


def plans_everybody_again(patch: pytest.MonkeyPatch) -> None:
    """A ``step``."""
    patch.setattr(steps, "_waiting", lambda state: list(state.requests.values()))


def follows_whatever_came_before(patch: pytest.MonkeyPatch) -> None:
    """A commit that does not decide anew after one that was thought lost, nor stop when superseded."""
    patch.setattr(SimRun, "_check_attempt", lambda run, records: None)
    patch.setattr(SimRun, "_caught_up", lambda run: run.catch_up() is not None)


def publishes_what_is_not_built(patch: pytest.MonkeyPatch) -> None:
    """A ``step``."""
    patch.setattr(steps, "missing_stages", lambda spec, state, lineage: ())


def renames_stages(patch: pytest.MonkeyPatch) -> None:
    """An executor that commits the old bytes under new keys."""
    plain = Pool.build

    def build(pool: Pool, plans: Sequence[ShardPlan]) -> Steps:
        run = pool.owner.run
        for plan in plans:
            for stage in plan.stages:
                before = run.state.stages.get((plan.shard, stage.stage))
                if before is None or before.path is None:
                    return (yield from plain(pool, plans))
                ref = before.model_copy(update={"key": stage.key})
                yield from run.commit(StageBuilt(ref=ref))
        return None

    patch.setattr(Pool, "build", build)


def skips_purge(patch: pytest.MonkeyPatch) -> None:
    """A ``step``."""
    plain = steps.step

    def step(spec: Spec, state: RunState, **how: Any) -> steps.Decision | None:
        decision = plain(spec, state, **how)
        if isinstance(decision, steps.Purge):
            for batch in state.batches:
                return steps.CloseBatch(batch=batch)
            for batch in state.uncertified:
                return steps.Certify(batch=batch)
        return decision

    patch.setattr(steps, "step", step)


def looks_at_no_shard(patch: pytest.MonkeyPatch) -> None:
    """A fold that does not say which shards a batch has changed, so that a purge does not look there."""
    patch.setattr(RunState, "_may_hold_strays", lambda *_: None)


def keeps_what_is_tainted(patch: pytest.MonkeyPatch) -> None:
    """A planner that names every checkpoint of a key, whatever has been rewritten since."""
    plain = planner.named_paths

    def named_paths(spec: Spec, state: RunState) -> set[str]:
        of_batches = {
            ref.path for batch in state.batches.values() for ref in refs_of(batch.before) if ref.path
        }
        return plain(spec, state) | of_batches

    patch.setattr(planner, "named_paths", named_paths)


def purges_slices(patch: pytest.MonkeyPatch) -> None:
    """A planner that does not name the slices."""
    plain = planner.named_paths
    patch.setattr(
        planner,
        "named_paths",
        lambda spec, state: {p for p in plain(spec, state) if not p.startswith("data/")},
    )


def purges_what_is_in_flight(patch: pytest.MonkeyPatch) -> None:
    """A purge that takes payloads which no record names yet."""

    def unnamed(coordinator: Coordinator, listed: Collection[str]) -> list[str]:
        named = planner.named_paths(coordinator.spec, coordinator.run.state)
        return [p for p in listed if p not in named and p.startswith("requests/")]

    patch.setattr(Coordinator, "_unnamed", unnamed)


def ignores_the_precondition(patch: pytest.MonkeyPatch) -> None:
    """A store that overwrites log entries."""

    def create_entry(store: Store, entry: Entry) -> bool:
        store.log[entry.seq :] = [entry]
        store.on_entry(entry)
        return True

    patch.setattr(Store, "create_entry", create_entry)


def ignores_due_dates(patch: pytest.MonkeyPatch) -> None:
    """A policy."""

    def starts_at(
        waiting: Collection[Request], policy: UnlearningConfig, *, now: datetime, predicted_s: float
    ) -> datetime:
        return now if policy.batching == "at_once" else now + timedelta(days=300)

    patch.setattr(steps, "starts_at", starts_at)


def sleeps_through_deadlines(patch: pytest.MonkeyPatch) -> None:
    """A ``wakes_at`` that knows no time."""
    patch.setattr(steps, "wakes_at", lambda spec, state, moment: None)


def never_sweeps(patch: pytest.MonkeyPatch) -> None:
    """A coordinator that leaves what others wrote late."""
    patch.setattr(cluster_coordinator, "SWEEP_S", 1e12)


def gives_up_when_it_rests(patch: pytest.MonkeyPatch) -> None:
    """A coordinator whose pauses are no part of what is tried again."""

    def rest(coordinator: Coordinator) -> Steps:
        try:
            yield from plain(coordinator)
        except StorageError as error:
            raise Violation("a run ends", f"{coordinator.attempt} gives up: {error}") from error

    plain = Coordinator.rest
    patch.setattr(Coordinator, "sweeps_in_back_off", True)
    patch.setattr(Coordinator, "sweep", Coordinator.purge_once)
    patch.setattr(Coordinator, "rest", rest)


def rests_after_sweeping(patch: pytest.MonkeyPatch) -> None:
    """A coordinator that does not see that it can close the batch, once a sweep did what a purge could not."""
    patch.setattr(Coordinator, "sweeps_in_back_off", True)
    patch.setattr(Coordinator, "rests_after_sweep", True)


def keeps_abandoned_payloads(patch: pytest.MonkeyPatch) -> None:
    """A ``step`` that waits for ever for what was announced."""
    patch.setattr(steps, "OPENED_FOR", timedelta(days=1000))


def announces_one_path_again(patch: pytest.MonkeyPatch) -> None:
    """A process outside that writes again where a purge may be deleting."""

    def accept_from_outside(run: SimRun, submissions: Sequence[Submission]) -> Steps:
        path = f"requests/{run.world.new_id('p')}"
        while True:
            try:
                if path not in run.state.opened_payloads and cluster_run.judged(run, submissions, path).fresh:
                    yield from run.commit(PayloadOpened(path=path))
                return (yield from cluster_run.make_durable(run, submissions, path))
            except CommitFailed:
                yield from run.refresh()

    patch.setattr(cluster_people, "accept_from_outside", accept_from_outside)


def forgets_a_bystander(patch: pytest.MonkeyPatch) -> None:
    """An executor."""
    plain = Coordinator.erased
    patch.setattr(
        Coordinator, "erased", staticmethod(lambda records, gone: plain(records, {*gone, "s0", "s4"}))
    )


def trains_from_other_bytes(patch: pytest.MonkeyPatch) -> None:
    """A fold that keeps the stages after one that was rebuilt with other bits."""
    patch.setattr(RunState, "_drop_descendants", lambda state, ref: None)


LOST = Odds(pause=0.02, takeovers=2, lost=0.03)
MIXED = Odds(vanishing=3, other_platform=0.5, crash=0.01)
STICKY = Odds(sticky=2)
BROKEN: list[tuple[Break, Invariant, Odds | None]] = [
    (forgets_a_request, "nothing is lost", None),
    (plans_everybody_again, "nothing is done twice", None),
    (follows_whatever_came_before, "nothing is done twice", LOST),
    (publishes_what_is_not_built, "published models know no forgotten", None),
    (renames_stages, "published models know no forgotten", None),
    (skips_purge, "certified means purged", None),
    (keeps_what_is_tainted, "certified means purged", None),
    (looks_at_no_shard, "certified means purged", None),
    (purges_slices, "purge spares what is named", None),
    (purges_what_is_in_flight, "purge spares what is named", None),
    (
        announces_one_path_again,
        "purge spares what is named",
        Odds(pause=0.15, failed=0.05, takeovers=4, stops=2),
    ),
    (ignores_the_precondition, "the log does not fork", None),
    (ignores_due_dates, "deadlines are met", None),
    (sleeps_through_deadlines, "deadlines are met", None),
    (rests_after_sweeping, "deadlines are met", STICKY),
    (never_sweeps, "a run ends", Odds(pause=0.03, takeovers=2)),
    (gives_up_when_it_rests, "a run ends", STICKY),
    (keeps_abandoned_payloads, "a run ends", Odds(crash=0.04, failed=0.04)),
    (forgets_a_bystander, "contents are those of a run without them", None),
    (trains_from_other_bytes, "contents are those of a run without them", MIXED),
]
"""What is broken, what must be reported of it, and where it shows soon, of histories with which faults."""


class TestInvariants:
    @pytest.mark.parametrize(("broken", "invariant", "odds"), BROKEN, ids=[b[0].__name__ for b in BROKEN])
    def test_are_seen_to_break(
        self, monkeypatch: pytest.MonkeyPatch, broken: Break, invariant: Invariant, odds: Odds | None
    ) -> None:
        broken(monkeypatch)
        for seed in range(600):
            try:
                World(seed, odds=odds).play()
            except Violation as violation:
                if violation.invariant == invariant:
                    return
        pytest.fail(f"no history reports: {invariant}")

    def test_all_have_something_that_breaks_them(self) -> None:
        assert {invariant for _, invariant, _ in BROKEN} == set(get_args(Invariant))


class TestAnnouncedPayloads:
    """A process outside that ended before it committed the requests in a payload leaves an object that names people."""

    def test_are_purged_once_nobody_can_commit_them_any_more(self) -> None:
        spec, state = spec_of((), "all"), RunState()
        state.entry = EntryMark(seq=0, digest="", at=START)
        state.apply(PayloadOpened(path="requests/p"))
        due_at = START + OPENED_FOR
        assert steps.wakes_at(spec, state, steps.Moment(now=START)) == due_at
        assert steps.step(spec, state, train=False, moment=steps.Moment(now=due_at)) is None
        late = steps.Moment(now=due_at + timedelta(seconds=1))
        assert steps.step(spec, state, train=False, moment=late) == steps.Purge()
        state.entry = EntryMark(seq=1, digest="", at=late.now)
        # A command has no clock: the entry by which it took the run tells it the time.
        assert steps.step(spec, state, train=False) == steps.Purge()
        state.apply(PurgePlanned(attempt="a", num_objects=1))
        assert state.opened_payloads == {}

    def test_do_not_wake_a_purge_that_backs_off(self) -> None:
        spec, state = spec_of((), "all"), RunState()
        state.entry = EntryMark(seq=0, digest="", at=START)
        state.apply(PayloadOpened(path="requests/p"))
        retry_at = START + 5 * OPENED_FOR
        state.apply(PurgeFailed(problem="", retry_at=retry_at))
        now = steps.Moment(now=START + 2 * OPENED_FOR)
        assert steps.step(spec, state, train=False, moment=now) is None
        assert steps.wakes_at(spec, state, now) == retry_at


def histories(seeds: range) -> list[list[Entry]]:
    """The logs of some histories."""
    worlds = [World(seed) for seed in seeds]
    for world in worlds:
        world.play()
    return [world.store.log for world in worlds]


def test_what_is_kept_by_shard_is_what_is_worked_out_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow way: nothing that follows from a shard's slices and stages is kept."""
    kept = histories(range(20))
    monkeypatch.setattr(Places, "derived", lambda *_: {})
    assert histories(range(20)) == kept
