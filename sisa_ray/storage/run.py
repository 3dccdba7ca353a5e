"""An open run: its spec, secret, commit log and the state that the log folds to."""

from __future__ import annotations

from pydantic import ValidationError

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.errors import (
    BucketMissing,
    IntegrityError,
    ObjectExists,
    ObjectMissing,
    RunConflict,
    RunNotFound,
    StorageDenied,
    StorageFull,
)
from sisa_ray.core.identity import SPEC_VERSION, Spec, differences
from sisa_ray.core.keys import Secret, canonical_json
from sisa_ray.core.records import Record, RunCreated
from sisa_ray.core.state import RunState
from sisa_ray.storage import keyring, layout
from sisa_ray.storage.log import CommitLog, Head
from sisa_ray.storage.objects import ObjectStore, open_store


class Run:
    """A run as this process knows it. :meth:`commit` is the only way to change it."""

    def __init__(self, store: ObjectStore, spec: Spec, secret: Secret) -> None:
        self.store = store
        self.spec = spec
        self.secret = secret
        self.log = CommitLog(store)
        self.head = Head.START
        self.state = RunState()
        self.refresh()

    @property
    def address(self) -> str:
        """Where the run lives."""
        return self.store.url

    def refresh(self) -> None:
        """Apply what was committed since the last look."""
        for entry in self.log.read(self.head):
            for record in entry.records:
                self.state.apply(record)
            self.head = entry.head

    def commit(self, *records: Record) -> None:
        """Append one entry and apply it.

        Raises:
            CommitFailed: where another process has written to the run since; this one must stop.
        """
        entry = self.log.append(records, head=self.head)
        for record in records:
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
        run.commit(RunCreated(spec_digest=spec.digest, secret_id=spec.secret_id))
    elif created.spec_digest != spec.digest:
        raise IntegrityError(
            f"{store.url}/{layout.SPEC}: is not the spec that the log's first entry names; restore spec.json"
        )
    return run


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
    named = [(ref.path, ref.size_bytes) for ref in run.state.slices.values()]
    named += [(ref.path, ref.size_bytes) for ref in run.state.stages.values()]
    return [path for path, size in named if path is not None and sizes.get(path) != size]
