"""Verification by re-execution: train from scratch in a scratch place and compare the bits."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import pyarrow as pa

from sisa_ray.core.errors import ConfigError, IntegrityError, PurgeIncomplete, RunConflict, SourceMissing
from sisa_ray.core.identity import differences
from sisa_ray.core.planner import Lineage, missing_stages, segments_of
from sisa_ray.core.records import Verified
from sisa_ray.core.step import Purge, step
from sisa_ray.execution.client import find_coordinator
from sisa_ray.execution.events import OnEvent, PhaseStarted, ignore
from sisa_ray.execution.intake import Origin, ingest_replica
from sisa_ray.execution.opening import Target, existing_run
from sisa_ray.execution.predict import constituent_predictions
from sisa_ray.execution.results import VerifyResult
from sisa_ray.execution.session import Session
from sisa_ray.execution.workers import NewWorkers, Workers
from sisa_ray.storage import layout
from sisa_ray.storage.checkpoints import check_stored
from sisa_ray.storage.features import differing_features
from sisa_ray.storage.mirror import check_mirror
from sisa_ray.storage.objects import ObjectStore
from sisa_ray.storage.purge import purge
from sisa_ray.storage.run import Run, open_with_spec
from sisa_ray.storage.slices import load_slice
from sisa_ray.storage.source import open_source
from sisa_ray.storage.tables import content_digest, role_columns

_NUM_READERS = 8
_BATCH_ROWS = 65_536


def verify(
    target: Target,
    *,
    shards: Sequence[int] | None = None,
    sample: int | None = None,
    on_event: OnEvent = ignore,
    new_workers: NewWorkers = Workers,
) -> VerifyResult:
    """Train the chosen shards (default: all) from scratch without anyone who was forgotten, and compare.

    Args:
        target: a run's address or configuration.
        shards: these shards.
        sample: so many shards, drawn at random.
        on_event: receives progress.
        new_workers: how the command gets its shard actors.

    Raises:
        RunConflict: where the run is not complete: train or finish it first.
    """
    run = existing_run(target)
    _choose(run.spec.config.sisa.num_shards, shards, sample)
    coordinator = find_coordinator(run.address)
    if coordinator is not None:
        found: VerifyResult = coordinator.call("verify", on_event=on_event, shards=shards, sample=sample)
        return found
    check_mirror(run)
    _require_complete(run)
    with (
        new_workers() as workers,
        Session(run, workers, command="verify", on_event=on_event, replica=True) as session,
    ):
        return verify_in(session, shards=shards, sample=sample)


def verify_in(
    session: Session, *, shards: Sequence[int] | None = None, sample: int | None = None
) -> VerifyResult:
    """:func:`verify`, in a session on the run."""
    started = time.monotonic()
    run = session.run
    chosen = _choose(run.spec.config.sisa.num_shards, shards, sample)
    _require_complete(run)
    if run.state.purge_due:
        purge(run, attempt=session.attempt)
    place = layout.scratch_prefix(session.attempt)
    store = run.store.child(place.rstrip("/"))
    try:
        replica, origin = _retrain(run, store, session.workers, chosen, session.report)
        session.report(PhaseStarted(text="comparing"))
        comparison = _Comparison(run, replica, chosen)
        comparison.compare(session.workers)
    finally:
        _remove(run.store, place)
    run.commit(Verified(shards=chosen, source=origin, outcome=comparison.outcome))
    return VerifyResult(
        address=run.address,
        outcome=comparison.outcome,
        source=origin,
        shards=chosen,
        num_slices=comparison.num_slices,
        num_checkpoints=comparison.num_checkpoints,
        num_predictions=comparison.num_predictions,
        first_difference=comparison.first_difference,
        seconds=time.monotonic() - started,
    )


def _require_complete(run: Run) -> None:
    decision = step(run.spec, run.state, train=True) if run.state.ingested else None
    if run.state.ingested is None or not (decision is None or isinstance(decision, Purge)):
        raise RunConflict(f"{run.address}: the run is not complete; `sisa-ray train RUN` completes it")


def _retrain(
    run: Run, store: ObjectStore, workers: Workers, shards: tuple[int, ...], on_event: OnEvent
) -> tuple[Run, Origin]:
    """A run of the same spec and appends in ``store``, trained from scratch on all who may be remembered."""
    # Only constituents are needed again; of all other checkpoints the digests are enough.
    config = run.spec.config.model_copy(update={"keep_checkpoints": (run.spec.config.sisa.num_slices,)})
    replica = open_with_spec(store, run.spec.model_copy(update={"config": config}))
    with Session(replica, workers, command="verify", on_event=on_event, replica=True) as session:
        on_event(PhaseStarted(text="ingesting from scratch"))
        origin = ingest_replica(run, replica, workers, shards=shards, attempt=session.attempt)
        on_event(PhaseStarted(text=f"training {len(shards)} shard(s) from scratch"))
        lineage = Lineage(replica.spec, replica.state)
        session.build(missing_stages(replica.spec, replica.state, lineage, shards))
    return replica, origin


class _Comparison:
    """Compares slices, checkpoints and predictions, in this order, up to the first difference."""

    def __init__(self, run: Run, replica: Run, shards: tuple[int, ...]) -> None:
        self._run = run
        self._replica = replica
        self._shards = shards
        self.num_slices = 0
        self.num_checkpoints = 0
        self.num_predictions = 0
        self.first_difference: str | None = None
        self._comparable = True

    @property
    def outcome(self) -> Literal["bit-identical", "different", "not comparable"]:
        # Slices do not depend on the platform: if they differ, that is an answer anywhere.
        if not self._comparable:
            return "not comparable"
        return "bit-identical" if self.first_difference is None else "different"

    def compare(self, workers: Workers) -> None:
        last = segments_of(self._run.spec, self._run.state)[-1].last
        places = [(k, r) for k in self._shards for r in range(1, last + 1)]
        with ThreadPoolExecutor(_NUM_READERS) as readers:
            self.first_difference = next(filter(None, readers.map(self._compare_slice, places)), None)
            self.num_slices = len(places)
            if self.first_difference is not None:
                return
            differences = self._platform_differences(places)
            if differences is not None:
                self._comparable = False
                self.first_difference = differences
                return
            self.first_difference = next(
                filter(None, readers.map(self._compare_features, self._shards)), None
            )
            if self.first_difference is not None:
                return
            self.first_difference = next(filter(None, readers.map(self._compare_checkpoint, places)), None)
            self.num_checkpoints = len(places)
        if self.first_difference is None:
            self.first_difference = self._compare_predictions(workers)

    def _compare_slice(self, place: tuple[int, int]) -> str | None:
        ref, other = self._run.state.slices[place], self._replica.state.slices[place]
        name = f"slice {place[1]} of shard {place[0]}"
        if ref.path is not None:
            try:
                stored = content_digest(load_slice(self._run.store, ref), self._run.secret.content_key)
            except IntegrityError as error:
                return f"{name}: {error}"
            if stored != ref.content_digest:
                return f"{name}: the stored records are not those that were committed"
        if ref.content_digest != other.content_digest:
            return f"{name}: {ref.num_records} records in the run, {other.num_records} from scratch, contents differ"
        return None

    def _compare_features(self, shard: int) -> str | None:
        """What a backbone made of records, cached in the run and computed again from scratch."""
        path = differing_features(self._run.store, self._replica.store, shard)
        return None if path is None else f"cached features of shard {shard}: bits differ ({path})"

    def _compare_checkpoint(self, place: tuple[int, int]) -> str | None:
        ref, other = self._run.state.stages[place], self._replica.state.stages[place]
        name = f"checkpoint of stage {place[1]} of shard {place[0]}"
        if ref.key != other.key:
            return f"{name}: has another stage key"
        if ref.path is not None:
            try:
                check_stored(self._run.store, ref)
            except IntegrityError as error:
                return f"{name}: {error}"
        if ref.file_digest != other.file_digest:
            return f"{name}: bits differ"
        return None

    def _platform_differences(self, places: Sequence[tuple[int, int]]) -> str | None:
        for place in places:
            ref, other = self._run.state.stages[place], self._replica.state.stages[place]
            if ref.platform != other.platform:
                changed = "; ".join(differences(ref.platform, other.platform))
                return f"stage {place[1]} of shard {place[0]} was trained on another platform ({changed})"
        return None

    def _compare_predictions(self, workers: Workers) -> str | None:
        """The stored constituents of both, asked about the same records."""
        last = segments_of(self._run.spec, self._run.state)[-1].last
        ours = [(self._run.store, self._run.state.stages[k, last]) for k in self._shards]
        theirs = [(self._replica.store, self._replica.state.stages[k, last]) for k in self._shards]
        for table in self._questions():
            both = constituent_predictions(self._run, workers, [*ours, *theirs], table)
            pairs = zip(self._shards, both[: len(ours)], both[len(ours) :], strict=True)
            for shard, mine, other in pairs:
                self.num_predictions += len(mine)
                if mine.tobytes() != other.tobytes():
                    return f"predictions of shard {shard}: bits differ"
        return None

    def _questions(self) -> Iterator[pa.Table]:
        """The test table, or where there is none, the records of the first slice that has any."""
        data = self._run.spec.config.data
        if data.test is not None:
            try:
                for batch in open_source(data, data.test, for_training=False).batches(_BATCH_ROWS):
                    yield batch.columns
                return
            except SourceMissing:
                pass
        for ref in self._run.state.slices.values():
            if ref.path is not None:
                yield role_columns(load_slice(self._run.store, ref))
                return


def _choose(num_shards: int, shards: Sequence[int] | None, sample: int | None) -> tuple[int, ...]:
    if shards is not None and sample is not None:
        raise ConfigError("shards, sample: give one of the two, not both")
    if sample is not None:
        if not 1 <= sample <= num_shards:
            raise ConfigError(f"sample: must be between 1 and {num_shards} (num_shards), not {sample}")
        return tuple(sorted(random.SystemRandom().sample(range(num_shards), sample)))
    chosen = tuple(sorted(set(range(num_shards) if shards is None else shards)))
    bad = [k for k in chosen if not 0 <= k < num_shards]
    if bad or not chosen:
        raise ConfigError(f"shards: must be between 0 and {num_shards - 1}, not {bad[0] if bad else 'none'}")
    return chosen


def _remove(store: ObjectStore, prefix: str) -> None:
    """Scratch data goes, and is shown to be gone."""
    store.delete([info.path for info in store.list(prefix, all_versions=True)])
    if any(True for _ in store.list(prefix, all_versions=True)):
        raise PurgeIncomplete(
            f"{store.url}/{prefix}: scratch data is still there; run verify again to remove it"
        )
