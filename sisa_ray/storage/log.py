"""The commit log: numbered entries, each created only if absent, each chained to the one before by its hash."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from sisa_ray.core.records import LOG_VERSION, Record, dump_record, load_record
from sisa_ray.storage import layout
from sisa_ray.storage.objects import ObjectStore

_MOST_AHEAD = 16
"""Entries that are read at once."""


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
    at: datetime
    records: tuple[Record, ...]


def _now() -> datetime:
    return datetime.now(UTC)


def _new_id() -> str:
    return uuid.uuid4().hex


def _aware(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("a time without a time zone")
    return at


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
        self.now = clock
        self._new_id = new_id

    def read(self, after: Head = Head.START, *, is_whole: bool = True) -> list[Entry]:
        """All entries after ``after``, in order. ``is_whole`` looks for later ones beyond a missing one, too.

        Raises:
            IntegrityError: naming the entry that is missing, was changed, or is from a newer version.
        """
        entries: list[Entry] = []
        head = after
        for data in self._stored_after(head.seq):
            entry = self._parse(layout.entry_path(head.seq + 1), data, head)
            entries.append(entry)
            head = entry.head
        if is_whole:
            self._check_nothing_beyond(head)
        return entries

    def _stored_after(self, seq: int) -> Iterator[bytes]:
        """The bytes of the entries after ``seq`` as far as they are there; long logs are read many at a time."""
        ahead = 1
        with ThreadPoolExecutor(_MOST_AHEAD) as readers:
            while True:
                numbers = range(seq + 1, seq + 1 + ahead)
                read = map if ahead == 1 else readers.map
                for data in read(self._stored, numbers):
                    if data is None:
                        return
                    yield data
                seq, ahead = seq + ahead, min(2 * ahead, _MOST_AHEAD)

    def _stored(self, seq: int) -> bytes | None:
        try:
            return self._store.get(layout.entry_path(seq))
        except ObjectMissing:
            return None

    def append(self, records: Sequence[Record], *, head: Head) -> Entry:
        """Commit ``records`` as the entry after ``head``.

        Raises:
            CommitFailed: where another process has committed that number: nothing of this one was applied.
            CommitStateUnknown: where storage went away before it answered.
        """
        commit, at, seq = self._new_id(), self.now(), head.seq + 1
        data = canonical_json(
            {
                "version": LOG_VERSION,
                "seq": seq,
                "prev": head.digest,
                "commit": commit,
                "at": at.isoformat(),
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
            commit, at = str(entry["commit"]), _aware(entry["at"])
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, fault["loc"]))
            raise IntegrityError(f"{name}: is no log entry ({where}: {fault['msg']}); {mend}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"{name}: is no log entry ({type(error).__name__}: {error}); {mend}"
            ) from None
        return Entry(
            head=Head(seq=before.seq + 1, digest=file_digest(data)), commit=commit, at=at, records=records
        )

    def _check_nothing_beyond(self, head: Head) -> None:
        """The log must end where reading stopped: a later entry means that one between is missing."""
        last = layout.entry_path(head.seq) if head.seq >= 0 else layout.LOG
        beyond = sorted(info.path for info in self._store.list(layout.LOG, after=last))
        # The next one may have been committed since we looked.
        if beyond and beyond[0] != layout.entry_path(head.seq + 1):
            raise IntegrityError(
                f"{self._store.url}/{layout.entry_path(head.seq + 1)}: is missing, though {beyond[0]} is there; "
                "restore the log from a backup"
            )
