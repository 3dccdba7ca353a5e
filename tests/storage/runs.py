"""Runs without a table, for the tests of what storage keeps beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sisa_ray.storage import layout
from sisa_ray.storage.objects import ObjectStore
from sisa_ray.storage.payloads import write_payload
from sisa_ray.storage.run import Run, open_with_spec
from tests.core.builders import accepted, make_spec


def new_run(store: ObjectStore) -> Run:
    """A new run in ``store``, its secret in the tests' keyring."""
    return open_with_spec(store, make_spec().model_copy(update={"secret_id": ""}))


def again(run: Run, store: ObjectStore | None = None) -> Run:
    """The run as another process finds it."""
    return Run(store or run.store, run.spec, run.secret)


def accept(run: Run, people: Mapping[str, Sequence[str]], *, payload: str = "p") -> str:
    """Accept several requests, by name, in one object; its path."""
    path = layout.payload_path(payload)
    write_payload(run.store, path, people)
    run.commit(*(accepted(name, *run.secret.tags(keys), payload=path) for name, keys in people.items()))
    return path


def fill(run: Run, names: Iterable[str]) -> None:
    """Grow the log by one accepted request each."""
    for name in names:
        run.commit(accepted(name, f"tag of {name}"))
