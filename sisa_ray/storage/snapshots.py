"""Snapshots: the state after an entry of the log, so that opening a long one reads a bounded number of objects.

A snapshot is a cache. One that cannot be used (cut short, of another version, not written by a holder of the run's
secret, of an entry that the log does not have) is passed over, and in the end the whole log is read.
"""

from __future__ import annotations

import hmac
import json
import logging
from typing import Any

from pydantic import ValidationError

from sisa_ray.core.dumped import load_state, state_form
from sisa_ray.core.errors import ObjectMissing
from sisa_ray.core.keys import Secret, canonical_json, file_digest
from sisa_ray.core.state import RunState
from sisa_ray.storage import layout
from sisa_ray.storage.objects import ObjectStore

logger = logging.getLogger("sisa_ray.storage")

SNAPSHOT_VERSION = 1
SNAPSHOT_EVERY = 500
"""Entries between two snapshots."""

_NUM_KEPT = 2


def load_snapshot(store: ObjectStore, secret: Secret) -> RunState | None:
    """The latest state that can be used, or None."""
    paths = sorted((info.path for info in store.list(layout.SNAPSHOTS)), reverse=True)
    for path in paths:
        try:
            return _load(store, path, secret)
        except (ObjectMissing, ValueError, KeyError, TypeError, ValidationError) as error:
            logger.warning("%s/%s: passed over (%s)", store.url, path, type(error).__name__)
    return None


def store_snapshot(store: ObjectStore, secret: Secret, seq: int, state: bytes) -> None:
    """Store the state (as dumped) after entry ``seq``; older snapshots go, but for the one before."""
    header = {"version": SNAPSHOT_VERSION, "form": state_form(), "mac": _mac(secret, state)}
    store.put(layout.snapshot_path(seq), canonical_json(header) + b"\n" + state)
    paths = sorted(info.path for info in store.list(layout.SNAPSHOTS))
    store.delete(paths[:-_NUM_KEPT])


def _load(store: ObjectStore, path: str, secret: Secret) -> RunState:
    line, _, data = store.get(path).partition(b"\n")
    header: dict[str, Any] = json.loads(line)
    is_known = (header["version"], header["form"]) == (SNAPSHOT_VERSION, state_form())
    if not is_known or not hmac.compare_digest(header["mac"], _mac(secret, data)):
        raise ValueError("another version, or not written with the run's secret")
    state = load_state(data)
    if file_digest(store.get(layout.entry_path(state.entry.seq))) != state.entry.digest:
        raise ValueError("not of this log")
    return state


def _mac(secret: Secret, state: bytes) -> str:
    signed = state_form().encode("ascii") + b"\n" + state
    return hmac.digest(secret.derive("snapshot/1"), signed, "sha256").hex()
