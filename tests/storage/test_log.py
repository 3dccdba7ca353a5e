"""The commit log: a chain of entries that only grows, one writer a number, and no doubt about one's own commit."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sisa_ray.core.errors import (
    CommitFailed,
    CommitStateUnknown,
    IntegrityError,
    ObjectExists,
    StorageUnavailable,
)
from sisa_ray.core.keys import canonical_json, file_digest
from sisa_ray.core.records import AttemptOpened, Record
from sisa_ray.storage import layout
from sisa_ray.storage.local import LocalStore
from sisa_ray.storage.log import CommitLog, Head
from sisa_ray.storage.objects import ObjectStore
from tests.storage.stores import CreateThenRaise, Wrapped


def record(name: str) -> Record:
    return AttemptOpened(attempt=name, command="train")


def names(log: CommitLog, after: Head = Head.START) -> list[str]:
    found: list[str] = []
    for entry in log.read(after):
        for one in entry.records:
            assert isinstance(one, AttemptOpened)
            found.append(one.attempt)
    return found


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "run"), patience_s=0.1)


@pytest.fixture
def log(store: LocalStore) -> CommitLog:
    """A log of four entries."""
    log = CommitLog(store)
    head = Head.START
    for name in "abcd":
        head = log.append([record(name)], head=head).head
    return log


def rewrite(store: ObjectStore, seq: int, **changes: Any) -> None:
    path = layout.entry_path(seq)
    store.put(path, canonical_json({**json.loads(store.get(path)), **changes}))


def test_an_empty_log(store: LocalStore) -> None:
    assert CommitLog(store).read() == []


def test_entries_are_read_in_order_and_from_anywhere(log: CommitLog) -> None:
    assert names(log) == ["a", "b", "c", "d"]
    entries = log.read()
    assert [entry.head.seq for entry in entries] == [0, 1, 2, 3]
    assert names(log, entries[1].head) == ["c", "d"]
    assert names(log, entries[3].head) == []


def test_every_entry_is_canonical_and_holds_the_hash_of_the_one_before(store: LocalStore) -> None:
    log = CommitLog(store, clock=lambda: datetime(2026, 1, 2, tzinfo=UTC), new_id=lambda: "id")
    first = log.append([record("a"), record("b")], head=Head.START)
    log.append([record("c")], head=first.head)
    data = [store.get(layout.entry_path(seq)) for seq in range(2)]
    parsed = [json.loads(piece) for piece in data]
    assert [entry["prev"] for entry in parsed] == ["", file_digest(data[0])]
    assert [entry["seq"] for entry in parsed] == [0, 1]
    assert (parsed[0]["commit"], parsed[0]["at"]) == ("id", "2026-01-02T00:00:00+00:00")
    assert [canonical_json(entry) for entry in parsed] == data
    assert log.read()[0] == first


@pytest.mark.parametrize("seq", [0, 1, 2])
def test_a_missing_entry_is_named_at_the_first_reading(log: CommitLog, store: LocalStore, seq: int) -> None:
    path = layout.entry_path(seq)
    store.delete([path])
    with pytest.raises(IntegrityError, match=f"{path}: is missing, though .*restore the log from a backup"):
        log.read()


def test_an_edited_entry_breaks_the_chain(log: CommitLog, store: LocalStore) -> None:
    rewrite(store, 1, at="2020-01-01T00:00:00+00:00")
    with pytest.raises(IntegrityError, match=rf"{layout.entry_path(2)}: does not follow the entry before it"):
        log.read()


def test_an_entry_in_anothers_place_breaks_the_chain(log: CommitLog, store: LocalStore) -> None:
    store.put(layout.entry_path(2), store.get(layout.entry_path(3)))
    with pytest.raises(IntegrityError, match=rf"{layout.entry_path(2)}: does not follow"):
        log.read()


def test_an_entry_that_was_reformatted_is_noticed_even_at_the_end(log: CommitLog, store: LocalStore) -> None:
    path = layout.entry_path(3)
    store.put(path, json.dumps(json.loads(store.get(path)), indent=1).encode())
    with pytest.raises(IntegrityError, match=rf"{path}: is not in canonical form"):
        log.read()


def test_an_entry_of_a_newer_version_says_so(log: CommitLog, store: LocalStore) -> None:
    rewrite(store, 3, version=3, records=[{"type": "something_new"}])
    with pytest.raises(
        IntegrityError, match=r"another version of sisa_ray \(log version 3, this one reads 2\)"
    ):
        log.read()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"\xff", b'{"version":2}'])
def test_what_is_no_entry_is_named(log: CommitLog, store: LocalStore, data: bytes) -> None:
    store.put(layout.entry_path(3), data)
    with pytest.raises(IntegrityError, match=rf"{layout.entry_path(3)}: .*restore the log from a backup"):
        log.read()


def test_an_unknown_record_is_refused(log: CommitLog, store: LocalStore) -> None:
    rewrite(store, 3, records=[{"type": "something_else"}])
    with pytest.raises(IntegrityError, match="is no log entry"):
        log.read()


def test_a_commit_whose_answer_was_lost_has_succeeded(store: LocalStore) -> None:
    lossy = CommitLog(CreateThenRaise(store, lambda: ObjectExists("exists already")))
    entry = lossy.append([record("a")], head=Head.START)
    assert CommitLog(store).read() == [entry]


def test_the_commit_of_another_fences_this_one(log: CommitLog, store: LocalStore) -> None:
    head = log.read()[2].head
    before = store.get(layout.entry_path(3))
    with pytest.raises(CommitFailed, match="another process has committed this entry"):
        log.append([record("mine")], head=head)
    assert store.get(layout.entry_path(3)) == before
    assert names(log) == ["a", "b", "c", "d"]


def test_equal_records_of_another_process_are_not_taken_for_ones_own(
    log: CommitLog, store: LocalStore
) -> None:
    with pytest.raises(CommitFailed):
        CommitLog(store).append([record("d")], head=log.read()[2].head)


@pytest.mark.parametrize("applies", [True, False])
def test_storage_that_goes_away_leaves_the_commit_unknown(store: LocalStore, applies: bool) -> None:
    away = CreateThenRaise(store, lambda: StorageUnavailable("no answer"), applies=applies)
    with pytest.raises(CommitStateUnknown, match=r"no answer.*run the same command again"):
        CommitLog(away).append([record("a")], head=Head.START)
    assert names(CommitLog(store)) == (["a"] if applies else [])


class AwayAfterCreate(Wrapped):
    def get(self, path: str) -> bytes:
        raise StorageUnavailable("no answer")


def test_storage_that_goes_away_before_the_winner_is_known_leaves_it_unknown(store: LocalStore) -> None:
    lossy = CreateThenRaise(store, lambda: ObjectExists("exists already"))
    with pytest.raises(CommitStateUnknown, match="no answer"):
        CommitLog(AwayAfterCreate(lossy)).append([record("a")], head=Head.START)


def test_racing_writers_lose_nothing(store: LocalStore) -> None:
    start = threading.Barrier(20)

    def work(name: str) -> None:
        log, head = CommitLog(store), Head.START
        start.wait()
        while True:
            try:
                log.append([record(name)], head=head)
                return
            except CommitFailed:
                head = log.read(head)[-1].head

    threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names(CommitLog(store))) == sorted(f"w{number}" for number in range(20))
    assert [info.path for info in store.list()] == [layout.entry_path(seq) for seq in range(20)]
