"""Snapshots: a long log is opened by reading little, and whatever is wrong with one, the log is the truth."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sisa_ray.core.dumped import dump_state
from sisa_ray.core.errors import IntegrityError
from sisa_ray.core.keys import Secret, canonical_json
from sisa_ray.core.records import AttemptOpened
from sisa_ray.core.state import RunState
from sisa_ray.storage import layout
from sisa_ray.storage.local import LocalStore
from sisa_ray.storage.log import CommitLog, Head
from sisa_ray.storage.objects import ObjectInfo, ObjectStore, open_store
from sisa_ray.storage.run import Run
from sisa_ray.storage.snapshots import load_snapshot, store_snapshot
from tests.storage.runs import again, fill, new_run
from tests.storage.stores import Wrapped

NUM_ENTRIES = 55
EVERY = 20


class Counting(Wrapped):
    """Counts the objects that are read, and can be slow with some of them."""

    def __init__(self, store: ObjectStore, slow: Callable[[str], float] = lambda path: 0.0) -> None:
        super().__init__(store)
        self.read: list[str] = []
        self.at_once = 0
        self._slow = slow
        self._now = 0
        self._lock = threading.Lock()

    def get(self, path: str) -> bytes:
        with self._lock:
            self.read.append(path)
            self._now += 1
            self.at_once = max(self.at_once, self._now)
        time.sleep(self._slow(path))
        try:
            return super().get(path)
        finally:
            with self._lock:
                self._now -= 1


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run with a long log, which took a snapshot wherever one was due."""
    monkeypatch.setattr("sisa_ray.storage.run.SNAPSHOT_EVERY", EVERY)
    run = new_run(LocalStore(str(tmp_path / "run"), patience_s=0.1))
    for number in range(1, NUM_ENTRIES):
        fill(run, [f"r{number}"])
        run.snapshot()
    return run


def snapshots(run: Run) -> list[str]:
    return [info.path for info in run.store.list(layout.SNAPSHOTS)]


def whole(run: Run) -> RunState:
    """The state that the log alone gives."""
    store = NoSnapshots(run.store)
    return again(run, store).state


class NoSnapshots(Wrapped):
    def list(self, prefix: str = "", *, all_versions: bool = False, after: str = "") -> Iterator[ObjectInfo]:
        return iter(()) if prefix == layout.SNAPSHOTS else super().list(prefix, after=after)


class TestOpening:
    def test_a_long_log_is_opened_from_the_latest_snapshot(self, run: Run) -> None:
        store = Counting(run.store)
        opened = again(run, store)
        assert opened.state == run.state == whole(run)
        assert opened.head == run.head
        latest = snapshots(run)[-1]
        seq = int(Path(latest).stem)
        num_later = run.head.seq - seq
        assert 0 < num_later < EVERY
        assert store.read[:2] == [latest, layout.entry_path(seq)]
        # Entries are read ahead in ever larger groups, so that some beyond the end are asked for, too.
        assert len(store.read) <= 2 + 2 * num_later + 1
        assert min(store.read[2:]) == layout.entry_path(seq + 1)

    def test_only_the_last_two_stay(self, run: Run) -> None:
        assert snapshots(run) == [layout.snapshot_path(seq) for seq in (19, 39)]
        fill(run, [f"s{number}" for number in range(5)])
        run.snapshot()
        assert snapshots(run) == [layout.snapshot_path(seq) for seq in (39, 59)]

    def test_none_is_stored_before_it_is_due(self, run: Run) -> None:
        opened = again(run)
        fill(opened, [f"s{number}" for number in range(4)])
        opened.snapshot()
        assert snapshots(run)[-1] == layout.snapshot_path(39)
        fill(opened, ["s4"])
        opened.snapshot()
        assert snapshots(run)[-1] == layout.snapshot_path(59)

    def test_the_log_goes_on_from_it(self, run: Run) -> None:
        opened = again(run)
        opened.commit(AttemptOpened(attempt="a", command="train"))
        run.refresh()
        assert run.state == opened.state == whole(run)

    def test_a_missing_entry_after_it_is_named(self, run: Run) -> None:
        run.store.delete([layout.entry_path(run.head.seq - 1)])
        with pytest.raises(IntegrityError, match=f"{layout.entry_path(run.head.seq - 1)}: is missing"):
            again(run)


def rewritten(change: Callable[[dict[str, object]], object]) -> Callable[[bytes, Run], bytes]:
    def tamper(data: bytes, run: Run) -> bytes:
        line, _, state = data.partition(b"\n")
        header = json.loads(line)
        change(header)
        return canonical_json(header) + b"\n" + state

    return tamper


def of_another_log(data: bytes, run: Run) -> bytes:
    """Genuine, but of an entry that was not the one that the log has: a run restored and continued."""
    state = again(run).state
    state.entry = type(state.entry)(seq=40, digest="0" * 64, at=state.entry.at)
    store = LocalStore(f"{run.store.url}-other")
    store_snapshot(store, run.secret, 40, dump_state(state))
    return store.get(layout.snapshot_path(40))


def of_an_entry_that_is_gone(data: bytes, run: Run) -> bytes:
    state = again(run).state
    state.entry = type(state.entry)(seq=4000, digest="0" * 64, at=state.entry.at)
    store = LocalStore(f"{run.store.url}-other")
    store_snapshot(store, run.secret, 40, dump_state(state))
    return store.get(layout.snapshot_path(40))


def with_a_foreign_secret(data: bytes, run: Run) -> bytes:
    store = LocalStore(f"{run.store.url}-other")
    store_snapshot(store, Secret("s", bytes(32)), 40, data.partition(b"\n")[2])
    return store.get(layout.snapshot_path(40))


BROKEN: dict[str, Callable[[bytes, Run], bytes]] = {
    "empty": lambda data, run: b"",
    "cut in the header": lambda data, run: data[:20],
    "cut in the state": lambda data, run: data[:-20],
    "one bit of the state": lambda data, run: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
    "somebody taken out": lambda data, run: data.replace(b"tag of r3", b"tag of r4"),
    "no text": lambda data, run: b"\xff\xfe\x00",
    "no object": lambda data, run: b"[]\n{}",
    "newer": rewritten(lambda header: header.update(version=2)),
    "of another form": rewritten(lambda header: header.update(form="0" * 64)),
    "of another form, unsaid": rewritten(lambda header: header.pop("form")),
    "no mac": rewritten(lambda header: header.pop("mac")),
    "mac of another type": rewritten(lambda header: header.update(mac=None)),
    "mac not in ascii": rewritten(lambda header: header.update(mac="é")),
    "foreign secret": with_a_foreign_secret,
    "another log": of_another_log,
    "entry that is gone": of_an_entry_that_is_gone,
}


class TestBrokenOnes:
    @pytest.mark.parametrize("tamper", BROKEN.values(), ids=BROKEN)
    def test_are_passed_over_for_the_one_before(
        self, run: Run, tamper: Callable[[bytes, Run], bytes], caplog: pytest.LogCaptureFixture
    ) -> None:
        expected = whole(run)
        before, latest = snapshots(run)
        run.store.put(latest, tamper(run.store.get(latest), run))
        store = Counting(run.store)
        with caplog.at_level(logging.WARNING):
            opened = again(run, store)
        assert opened.state == expected
        assert before in store.read
        assert f"{run.address}/{latest}: passed over" in caplog.text
        assert "tag of" not in caplog.text

    def test_all_of_them_leave_the_whole_log(self, run: Run, caplog: pytest.LogCaptureFixture) -> None:
        expected = whole(run)
        for path in snapshots(run):
            run.store.put(path, b"{}")
        store = Counting(run.store)
        assert again(run, store).state == expected
        assert {layout.entry_path(seq) for seq in range(NUM_ENTRIES)} <= set(store.read)
        assert caplog.text.count("passed over") == 2

    def test_a_whole_one_gives_no_warning(self, run: Run, caplog: pytest.LogCaptureFixture) -> None:
        again(run)
        assert caplog.text == ""

    def test_one_that_is_deleted_meanwhile_is_passed_over(self, run: Run) -> None:
        latest = snapshots(run)[-1]

        class Deleting(Wrapped):
            def get(self, path: str) -> bytes:
                if path == latest:
                    self.inner.delete([path])
                return super().get(path)

        state = load_snapshot(Deleting(run.store), run.secret)
        assert state is not None
        assert layout.snapshot_path(state.entry.seq) == layout.snapshot_path(19)


class TestReadingAhead:
    def test_keeps_the_order_whoever_answers_first(self, run: Run) -> None:
        def slow(path: str) -> float:
            return 0.02 if path.startswith(layout.LOG) and int(Path(path).stem) % 3 == 0 else 0.0

        store = Counting(run.store, slow)
        entries = CommitLog(store).read()
        assert [entry.head.seq for entry in entries] == list(range(NUM_ENTRIES))
        assert entries == CommitLog(run.store).read()
        assert store.at_once > 1
        assert store.at_once <= 16

    def test_never_asks_for_many_that_are_not_there(self, tmp_path: Path) -> None:
        log, head = CommitLog(LocalStore(str(tmp_path / "long"))), Head.START
        for number in range(130):
            head = log.append([AttemptOpened(attempt=str(number), command="train")], head=head).head
        store = Counting(LocalStore(str(tmp_path / "long")))
        entries = CommitLog(store).read()
        assert len(entries) == 130
        assert len(store.read) <= 130 + 16
        store.read.clear()
        assert CommitLog(store).read(entries[-2].head) == entries[-1:]
        assert len(store.read) <= 3

    def test_one_entry_is_one_read_more(self, run: Run) -> None:
        """Who follows a log asks all the time: nothing new costs one read."""
        store = Counting(run.store)
        log = CommitLog(store)
        assert log.read(run.head, is_whole=False) == []
        assert store.read == [layout.entry_path(NUM_ENTRIES)]

    def test_a_broken_entry_among_many_is_named(self, run: Run) -> None:
        run.store.put(layout.entry_path(33), b"{}")
        with pytest.raises(IntegrityError, match=layout.entry_path(33)):
            CommitLog(run.store).read()


@pytest.mark.parametrize("kind", ["local", pytest.param("s3", marks=pytest.mark.s3)])
def test_listings_begin_after_a_path(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    root = str(tmp_path) if kind == "local" else f"s3://{request.getfixturevalue('s3_bucket')}"
    store = open_store(f"{root}/runs/a")
    names = [layout.entry_path(seq) for seq in range(12)]
    for name in (*names, "data/x", "snapshots/0"):
        store.put(name, b"x")
    open_store(f"{root}/runs/b").put(names[11], b"x")

    def listed(prefix: str, after: str) -> list[str]:
        return [info.path for info in store.list(prefix, after=after)]

    assert listed(layout.LOG, names[8]) == names[9:]
    assert listed(layout.LOG, names[11]) == []
    assert listed(layout.LOG, layout.entry_path(99)) == []
    assert listed(layout.LOG, "") == names
    assert listed(layout.LOG, "data/z") == names
    assert sorted(listed("", names[10])) == [names[11], "snapshots/0"]
    assert listed(layout.LOG, "snapshots/") == []
