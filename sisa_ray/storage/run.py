"""An open run: its spec, secret, commit log and the state that the log folds to."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from pydantic import ValidationError

from sisa_ray.core.clocks import shortest_days
from sisa_ray.core.config import SisaConfig
from sisa_ray.core.dumped import dump_state
from sisa_ray.core.errors import (
    BucketMissing,
    CommitFailed,
    IntegrityError,
    ObjectExists,
    ObjectMissing,
    RunConflict,
    RunNotFound,
    StateMoved,
    StorageDenied,
    StorageFull,
)
from sisa_ray.core.identity import SPEC_VERSION, Spec, differences
from sisa_ray.core.keys import Secret, canonical_json
from sisa_ray.core.protection import refuse_retention
from sisa_ray.core.records import FROM_OUTSIDE, AttemptOpened, Record, RunCreated
from sisa_ray.core.requests import EntryMark
from sisa_ray.core.state import RunState
from sisa_ray.storage import keyring, layout
from sisa_ray.storage.log import CommitLog, Entry, Head
from sisa_ray.storage.objects import ObjectStore, open_store
from sisa_ray.storage.snapshots import SNAPSHOT_EVERY, load_snapshot, store_snapshot

_STAGES_AN_ENTRY = 20


class Run:
    """A run as this process knows it. :meth:`commit` is the only way to change it.

    Several threads may commit. Whoever iterates over the state while others do holds :attr:`lock`.
    """

    def __init__(self, store: ObjectStore, spec: Spec, secret: Secret) -> None:
        self.store = store
        self.spec = spec
        self.secret = secret
        self.log = CommitLog(store)
        self.state = load_snapshot(store, secret) or RunState()
        self.head = Head(seq=self.state.entry.seq, digest=self.state.entry.digest)
        self._snapshot_seq = self.head.seq
        self.lock = threading.RLock()
        self.attempt: str | None = None
        """The attempt that this process works under, once it has taken the run."""
        self.in_flight: set[str] = set()
        """Objects being written that no committed record names yet: a purge in this process spares them."""
        self.refresh()

    @property
    def address(self) -> str:
        """Where the run lives."""
        return self.store.url

    def now(self) -> datetime:
        """The time on the log's clock."""
        return self.log.now()

    def refresh(self, *, is_whole: bool = True) -> None:
        """Apply what was committed since the last look.

        ``is_whole``: also see to it that no entry is missing before a later one.
        """
        with self.lock:
            for entry in self.log.read(self.head, is_whole=is_whole):
                self._apply(entry)

    def commit(self, *records: Record) -> None:
        """Append one entry and apply it.

        Requests may be accepted by other processes at any time: what this one, having taken the run, was about
        to commit then follows theirs.

        Raises:
            CommitFailed: where another process has taken the run since; this one must stop.
            StateMoved: where an earlier commit of this process, thought lost, turns out to have been applied: what
                was about to be committed must be decided anew.
        """
        with self.lock:
            while True:
                self._check_attempt(records)
                try:
                    entry = self.log.append(records, head=self.head)
                except CommitFailed:
                    if not self._caught_up():
                        raise
                    continue
                self._apply(entry)
                return

    def snapshot(self) -> None:
        """Store a snapshot where the last one is long ago."""
        # Of a large state more seldom, so that what it costs stays in proportion to what was written meanwhile.
        every = max(SNAPSHOT_EVERY, len(self.state.stages) // _STAGES_AN_ENTRY)
        if self.head.seq - self._snapshot_seq < every:
            return
        with self.lock:
            seq, state = self.head.seq, dump_state(self.state)
        store_snapshot(self.store, self.secret, seq, state)
        self._snapshot_seq = seq

    def _check_attempt(self, records: Sequence[Record]) -> None:
        """What was read of the log meanwhile may have told that another process has the run."""
        is_taking = any(isinstance(record, AttemptOpened) for record in records)
        if self.attempt is not None and self.state.attempt != self.attempt and not is_taking:
            raise CommitFailed(
                f"{self.address}: another process has taken the run; this one stops. Only one command at a time "
                "works on a run"
            )

    def _caught_up(self) -> bool:
        """Apply what was committed meanwhile; whether this process still has the run."""
        news = self.log.read(self.head, is_whole=False)
        for entry in news:
            self._apply(entry)
        if self.attempt is None or self.state.attempt != self.attempt:
            return False
        if not all(isinstance(record, FROM_OUTSIDE) for entry in news for record in entry.records):
            raise StateMoved(
                f"{self.address}: a commit that was thought lost had been applied; run the same command again"
            )
        return True

    @contextmanager
    def writing(self, path: str) -> Iterator[None]:
        """Write an object and commit the record that names it; until then no purge of this process takes it."""
        with self.lock:
            self.in_flight.add(path)
        try:
            yield
        finally:
            with self.lock:
                self.in_flight.discard(path)

    def _apply(self, entry: Entry) -> None:
        self.state.entry = EntryMark(seq=entry.head.seq, digest=entry.head.digest, at=entry.at)
        for record in entry.records:
            self.state.apply(record)
        self.head = entry.head


def read_spec(store: ObjectStore) -> Spec | None:
    """The spec at a store's root, or None where there is no run.

    Raises:
        IntegrityError: where it cannot be read, or was written by a newer version.
    """
    try:
        data = store.get(layout.SPEC)
    except ObjectMissing:
        return None
    try:
        spec = Spec.model_validate_json(data)
    except ValidationError as error:
        newer = f'"version":{SPEC_VERSION}'.encode() not in data
        fix = "it was written by another version of sisa_ray; use that one" if newer else str(error)
        raise IntegrityError(f"{store.url}/{layout.SPEC}: cannot be understood: {fix}") from None
    if spec.version != SPEC_VERSION:
        raise IntegrityError(
            f"{store.url}/{layout.SPEC}: version is {spec.version}, this sisa_ray reads {SPEC_VERSION}; "
            "use the version of sisa_ray that wrote it"
        )
    return spec


def open_run(address: str) -> Run:
    """Open the run at ``address`` (``<storage_path>/<name>``).

    Raises:
        RunNotFound: where nothing is there.
        RunConflict: where its secret is not in this machine's keyring.
    """
    store = open_store(address)
    spec = read_spec(store)
    if spec is None:
        raise RunNotFound(
            f"{address}: there is no run here; an address is <storage_path>/<name>, "
            "and `sisa-ray ingest CONFIG` or `sisa-ray train CONFIG` creates a run"
        )
    return _opened(store, _at_address(spec, address))


def open_with_spec(store: ObjectStore, spec: Spec) -> Run:
    """Open the run with the spec's identity, creating it where there is none.

    ``spec.secret_id`` may be empty: then the run's own secret is used, or a new one made.

    Raises:
        RunConflict: where a run with another identity lies there; what differs is listed.
    """
    there = read_spec(store)
    if there is None:
        _refuse_retention(store, spec)
        secret = (
            keyring.load(spec.secret_id)
            if spec.secret_id
            else keyring.create(storage_path=spec.config.storage_path)
        )
        fresh = spec.model_copy(update={"secret_id": secret.secret_id})
        try:
            store.create(layout.SPEC, canonical_json(fresh.model_dump(mode="json")))
            there = fresh
        except ObjectExists:  # somebody was faster, or our own retry won
            there = read_spec(store)
            assert there is not None
        except (BucketMissing, StorageDenied, StorageFull):  # definite: there is no run
            if not spec.secret_id:
                keyring.discard(secret.secret_id)
            raise
        if there.secret_id != secret.secret_id and not spec.secret_id:
            keyring.discard(secret.secret_id)
    if there.digest != spec.digest:
        lines = "\n".join(f"  {line}" for line in differences(there.identity, spec.identity))
        raise RunConflict(
            f"{store.url}: a run of that name has another spec:\n{lines}\n"
            "Give this one another name, or restore the configuration and the recipe's code."
        )
    merged = spec.model_copy(update={"secret_id": there.secret_id})
    return _opened(store, merged)


def with_circumstances(spec: Spec, config: SisaConfig) -> Spec:
    """The spec with a configuration's paths, resources and retention, none of which is identity."""
    names = (
        "name",
        "storage_path",
        "resources",
        "unlearning",
        "serving",
        "aggregation",
        "keep_checkpoints",
        "partial_checkpoint_every_s",
    )
    update: dict[str, object] = {name: getattr(config, name) for name in names}
    update["data"] = spec.config.data.model_copy(
        update={"train": config.data.train, "test": config.data.test}
    )
    return spec.model_copy(update={"config": spec.config.model_copy(update=update)})


def _at_address(spec: Spec, address: str) -> Spec:
    storage_path, _, name = address.rstrip("/").rpartition("/")
    config = spec.config.model_copy(update={"storage_path": storage_path, "name": name})
    return spec.model_copy(update={"config": config})


def _opened(store: ObjectStore, spec: Spec) -> Run:
    run = Run(store, spec, keyring.load(spec.secret_id))
    created = run.state.created
    if created is None:
        protection = store.protection()
        run.commit(RunCreated(spec_digest=spec.digest, secret_id=spec.secret_id, protection=protection))
    elif created.spec_digest != spec.digest:
        raise IntegrityError(
            f"{store.url}/{layout.SPEC}: is not the spec that the log's first entry names; restore spec.json"
        )
    return run


def _refuse_retention(store: ObjectStore, spec: Spec) -> None:
    """Refuse a bucket that keeps the deleted for longer than the run's shortest legal clock."""
    policy = spec.config.unlearning
    clock_days = shortest_days(policy.basis, custom_days=policy.custom_days)
    refuse_retention(store.protection(), clock_days=clock_days, where=store.url)


def discard_run(run: Run) -> None:
    """Delete a run that never held anything, its secret included: a refused first ingest leaves nothing.

    The spec goes last, and the log from its end, so that whatever a crash leaves is a run that can be opened.
    """
    assert run.state.ingested is None
    assert not run.state.requests
    paths = [info.path for info in run.store.list("", all_versions=True)]
    run.store.delete([p for p in paths if p != layout.SPEC and not p.startswith(layout.LOG)])
    for path in sorted((p for p in paths if p.startswith(layout.LOG)), reverse=True):
        run.store.delete([path])
    run.store.delete([layout.SPEC])
    keyring.discard(run.spec.secret_id)


def missing_objects(run: Run) -> list[str]:
    """Named objects that are gone or have another size than was committed: one listing, no reading."""
    listed = [*run.store.list(layout.DATA), *run.store.list(layout.CHECKPOINTS)]
    sizes = {info.path: info.size_bytes for info in listed}
    named = [(ref.path, ref.size_bytes) for ref in run.state.slices.values() if ref.path is not None]
    named += [item for ref in run.state.stages.values() for item in ref.objects.items()]
    return [path for path, size in named if sizes.get(path) != size]
