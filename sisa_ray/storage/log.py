"""The commit log: numbered entries, each created only if absent, each chained to the one before by its hash."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar

from pydantic import ValidationError

from sisa_ray.core.errors import (
    CommitFailed,
    CommitStateUnknown,
    IntegrityError,
    ObjectExists,
    ObjectMissing,
    StorageUnavailable,
)
from sisa_ray.core.keys import canonical_json, file_digest
from sisa_ray.core.records import Record, dump_record, load_record
from sisa_ray.storage import layout
from sisa_ray.storage.objects import ObjectStore

LOG_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Head:
    """Where a log ends: the number and the hash of its last entry."""

    START: ClassVar[Head]

    seq: int
    digest: str


Head.START = Head(seq=-1, digest="")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One committed entry."""

    head: Head
    commit: str
    at: str
    records: tuple[Record, ...]


def _now() -> datetime:
    return datetime.now(UTC)


def _new_id() -> str:
    return uuid.uuid4().hex


class CommitLog:
    """The log of one run. The clock and the ids are given, so that tests decide them."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        clock: Callable[[], datetime] = _now,
        new_id: Callable[[], str] = _new_id,
    ) -> None:
        self._store = store
        self._clock = clock
        self._new_id = new_id

    def read(self, after: Head = Head.START) -> list[Entry]:
        """All entries after ``after``, in order.

        Raises:
            IntegrityError: naming the entry that is missing, was changed, or is from a newer version.
        """
        entries: list[Entry] = []
        head = after
        while True:
            path = layout.entry_path(head.seq + 1)
            try:
                data = self._store.get(path)
            except ObjectMissing:
                break
            entry = self._parse(path, data, head)
            entries.append(entry)
            head = entry.head
        self._check_nothing_beyond(head)
        return entries

    def append(self, records: Sequence[Record], *, head: Head) -> Entry:
        """Commit ``records`` as the entry after ``head``.

        Raises:
            CommitFailed: where another process has committed that number: nothing of this one was applied.
            CommitStateUnknown: where storage went away before it answered.
        """
        commit, at, seq = self._new_id(), self._clock().isoformat(), head.seq + 1
        data = canonical_json(
            {
                "version": LOG_VERSION,
                "seq": seq,
                "prev": head.digest,
                "commit": commit,
                "at": at,
                "records": [dump_record(r) for r in records],
            }
        )
        path = layout.entry_path(seq)
        try:
            if not self._won(path, data):
                raise CommitFailed(
                    f"{self._store.url}/{path}: another process has committed this entry; this one stops, nothing "
                    "of it was applied. Only one command at a time works on a run"
                )
        except StorageUnavailable as error:
            raise CommitStateUnknown(
                f"{self._store.url}/{path}: storage went away before it said whether the commit was applied "
                f"({error}); run the same command again: it finds out"
            ) from None
        return Entry(
            head=Head(seq=seq, digest=file_digest(data)), commit=commit, at=at, records=tuple(records)
        )

    def _won(self, path: str, data: bytes) -> bool:
        try:
            self._store.create(path, data)
        except ObjectExists:
            # An earlier try of this very commit may have won without our hearing of it.
            return self._store.get(path) == data
        return True

    def _parse(self, path: str, data: bytes, before: Head) -> Entry:
        name = f"{self._store.url}/{path}"
        mend = "restore the log from a backup; it must not be edited"
        try:
            entry: dict[str, Any] = json.loads(data)
            if entry["version"] != LOG_VERSION:
                raise IntegrityError(
                    f"{name}: was written by another version of sisa_ray (log version {entry['version']}, this one "
                    f"reads {LOG_VERSION}); use that version"
                )
            if canonical_json(entry) != data:
                raise IntegrityError(
                    f"{name}: is not in canonical form: it was changed after it was committed; {mend}"
                )
            if (entry["seq"], entry["prev"]) != (before.seq + 1, before.digest):
                raise IntegrityError(
                    f"{name}: does not follow the entry before it (its hash is another one): one of the two was "
                    f"changed after it was committed; {mend}"
                )
            records = tuple(load_record(r) for r in entry["records"])
            commit, at = str(entry["commit"]), str(entry["at"])
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise IntegrityError(
                f"{name}: is no log entry ({type(error).__name__}: {error}); {mend}"
            ) from None
        return Entry(
            head=Head(seq=before.seq + 1, digest=file_digest(data)), commit=commit, at=at, records=records
        )

    def _check_nothing_beyond(self, head: Head) -> None:
        """The log must end where reading stopped: a later entry means that one between is missing."""
        for info in self._store.list(layout.LOG):
            if info.path > layout.entry_path(head.seq):
                # It may have been committed since we looked.
                if info.path == layout.entry_path(head.seq + 1):
                    return
                raise IntegrityError(
                    f"{self._store.url}/{layout.entry_path(head.seq + 1)}: is missing, though {info.path} is there; "
                    "restore the log from a backup"
                )
