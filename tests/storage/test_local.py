"""A local directory: durability, crashed writers, full, forbidden and vanished storage."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sisa_ray.core.errors import ObjectMissing, StorageDenied, StorageError, StorageFull, StorageUnavailable
from sisa_ray.storage.local import LocalStore
from sisa_ray.storage.objects import ObjectStore

Patch = pytest.MonkeyPatch


@pytest.fixture
def root(tmp_path: Path) -> Path:
    # A name that looks like our own temporary directory must not confuse anybody.
    root = tmp_path / "disk.tmp" / "mnist"
    root.mkdir(parents=True)
    return root


@pytest.fixture
def store(root: Path) -> LocalStore:
    return LocalStore(str(root), patience_s=0.3)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)]
    if mount is None or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("needs the permission to mount a file system")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=False, capture_output=True)


def files(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def failing(name: str, number: int, *, times: int = 10**9) -> Callable[..., Any]:
    """``os.<name>``, failing with ``number`` so many times."""
    real = getattr(os, name)
    left = [times]

    def fail(*args: Any, **kwargs: Any) -> Any:
        if left[0] > 0:
            left[0] -= 1
            raise OSError(number, os.strerror(number), str(args[0]))
        return real(*args, **kwargs)

    return fail


class TestDurability:
    def test_bytes_then_name_then_directory(self, store: LocalStore, root: Path, monkeypatch: Patch) -> None:
        """A name must never be durable before its bytes are."""
        events: list[str] = []

        def note(name: str, describe: Callable[..., str]) -> None:
            real = getattr(os, name)

            def noted(*args: Any, **kwargs: Any) -> Any:
                events.append(describe(*args))
                return real(*args, **kwargs)

            monkeypatch.setattr(os, name, noted)

        def synced(fd: int) -> str:
            path = Path(f"/proc/self/fd/{fd}").readlink()
            return f"sync {'temporary' if path.parent.name == '.tmp' else path.relative_to(root)}"

        if not Path("/proc/self/fd").is_dir():
            pytest.skip("needs /proc")
        store.put("a/0", b"x")
        note("fsync", synced)
        note("replace", lambda source, target: f"replace {target.relative_to(root)}")
        note("link", lambda source, target: f"link {target.relative_to(root)}")
        store.put("a/b/c/1", b"x")
        assert events == [
            "sync temporary",
            "sync a",
            "sync a/b",
            "replace a/b/c/1",
            "sync a/b/c",
        ]
        events.clear()
        store.create("a/b/c/2", b"x")
        assert events == ["sync temporary", "link a/b/c/2", "sync a/b/c"]
        events.clear()
        store.delete(["a/0"])
        assert events == ["sync a"]

    def test_a_failed_sync_is_not_taken_for_success(self, store: LocalStore, monkeypatch: Patch) -> None:
        monkeypatch.setattr(os, "fsync", failing("fsync", errno.EIO))
        with pytest.raises(StorageUnavailable, match="Input/output error"):
            store.put("a", b"x")

    def test_a_file_system_without_directory_syncs_will_do(
        self, store: LocalStore, monkeypatch: Patch
    ) -> None:
        real = os.fsync

        def fsync(fd: int) -> None:
            if Path(f"/proc/self/fd/{fd}").is_dir():
                raise OSError(errno.EINVAL, "Invalid argument")
            real(fd)

        monkeypatch.setattr(os, "fsync", fsync)
        store.put("a/b", b"x")
        assert store.get("a/b") == b"x"


class TestCrashedWriters:
    def test_a_killed_writer_leaves_the_old_object_and_a_temporary_file(
        self, store: LocalStore, root: Path
    ) -> None:
        store.put("data/a", b"old")
        code = (
            "import os, sys\n"
            "from sisa_ray.storage.local import LocalStore\n"
            "os.replace = os.link = lambda *args: os._exit(9)\n"
            "store = LocalStore(sys.argv[1])\n"
            "getattr(store, sys.argv[2])(sys.argv[3], b'the new content')\n"
        )
        for method, path in (("put", "data/a"), ("create", "log/0")):
            command = [sys.executable, "-c", code, str(root), method, path]
            assert subprocess.run(command, check=False).returncode == 9
        assert store.get("data/a") == b"old"
        assert [info.path for info in store.list()] == ["data/a"]
        assert not store.exists("log/0")
        left = [info for info in store.list(all_versions=True) if info.path != "data/a"]
        assert [info.size_bytes for info in left] == [15, 15]
        store.delete([info.path for info in left])
        assert files(root) == ["data/a"]

    def test_temporary_files_of_a_child_are_found_from_above(self, store: LocalStore, root: Path) -> None:
        (root / "scratch" / "attempt" / ".tmp").mkdir(parents=True)
        (root / "scratch" / "attempt" / ".tmp" / "0123").write_bytes(b"left")
        assert list(store.list("scratch/")) == []
        assert [info.path for info in store.list("scratch/", all_versions=True)] == [
            "scratch/attempt/.tmp/0123"
        ]

    def test_a_sweep_beside_a_writer_costs_it_a_second_try(
        self, store: LocalStore, root: Path, monkeypatch: Patch
    ) -> None:
        for name in ("replace", "link"):
            real = getattr(os, name)
            swept: list[str] = []

            def sweep_first(source: Path, target: Path, real: Any = real, swept: Any = swept) -> None:
                if not swept:
                    swept.append("once")
                    store.delete([info.path for info in store.list(all_versions=True)])
                    shutil.rmtree(root / "data", ignore_errors=True)  # as a prune does with an empty one
                real(source, target)

            monkeypatch.setattr(os, name, sweep_first)
            (store.put if name == "replace" else store.create)("data/a", b"x")
            assert swept == ["once"]
            assert store.get("data/a") == b"x"
            assert files(root) == ["data/a"]

    def test_failed_writes_leave_nothing(self, store: LocalStore, root: Path, monkeypatch: Patch) -> None:
        monkeypatch.setattr(os, "fsync", failing("fsync", errno.ENOSPC))
        with pytest.raises(StorageFull):
            store.put("a/b", b"x")
        assert files(root) == []


class TestDelete:
    def test_empty_directories_go_but_the_root_stays(self, store: LocalStore, root: Path) -> None:
        store.put("data/shard=0/slice=0/attempt/part", b"x")
        store.put("data/shard=0/slice=1/attempt/part", b"x")
        store.delete(["data/shard=0/slice=0/attempt/part"])
        assert not (root / "data/shard=0/slice=0").exists()
        assert (root / "data/shard=0/slice=1/attempt/part").exists()
        store.delete(["data/shard=0/slice=1/attempt/part"])
        assert not (root / "data").exists()
        assert root.is_dir()

    def test_writers_and_pruners_do_not_disturb_each_other(self, store: LocalStore) -> None:
        problems: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for _ in range(50):
                    store.put(f"a/b/{number}", b"x")
                    assert store.get(f"a/b/{number}") == b"x"
                    store.delete([f"a/b/{number}"])
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        assert list(store.list(all_versions=True)) == []


class TestFull:
    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
    @pytest.mark.parametrize("step", ["fsync", "replace", "mkdir"])
    def test_a_full_disk(
        self, store: LocalStore, root: Path, monkeypatch: Patch, step: str, number: int
    ) -> None:
        monkeypatch.setattr(os, step, failing(step, number))
        with pytest.raises(StorageFull) as caught:
            store.put("data/a", b"x")
        assert str(caught.value).startswith(f"{root}/data/a: no space is left; free some")

    def test_a_disk_that_is_really_full(self, small_disk: Path) -> None:
        store = LocalStore(str(small_disk / "mnist"), patience_s=0)
        store.put("data/small", bytes(1000))
        for action in (store.put, store.create):
            with pytest.raises(StorageFull, match="no space is left"):
                action("data/large", bytes(2**20))
        assert [info.path for info in store.list(all_versions=True)] == ["data/small"]
        store.put("data/other", bytes(1000))


class TestDenied:
    @pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
    def test_a_forbidden_directory(self, store: LocalStore, monkeypatch: Patch, number: int) -> None:
        monkeypatch.setattr(os, "mkdir", failing("mkdir", number))
        with pytest.raises(StorageDenied, match="give this user the permission"):
            store.put("data/a", b"x")

    def test_a_file_system_without_hard_links(
        self, store: LocalStore, root: Path, monkeypatch: Patch
    ) -> None:
        monkeypatch.setattr(os, "link", failing("link", errno.EPERM))
        with pytest.raises(StorageError, match="cannot make hard links"):
            store.create("log/0", b"x")
        assert files(root) == []


class TestVanished:
    """A root that was there and is not any more: an unmounted disk, not an empty store."""

    @pytest.fixture(params=["root", "child", "pickled"])
    def seen(self, request: pytest.FixtureRequest, store: LocalStore) -> ObjectStore:
        if request.param == "root":
            return store
        if request.param == "child":
            return store.child("scratch/attempt/")
        copied: ObjectStore = pickle.loads(pickle.dumps(store.child("scratch")))
        return copied

    @pytest.mark.parametrize("action", ["get", "open", "put", "create", "list", "delete", "exists"])
    def test_it_is_waited_for_and_never_made_anew(self, seen: ObjectStore, root: Path, action: str) -> None:
        root.rename(root.with_name("away"))
        actions: dict[str, Callable[[], object]] = {
            "get": lambda: seen.get("a"),
            "open": lambda: seen.open("a"),
            "put": lambda: seen.put("a", b"x"),
            "create": lambda: seen.create("a", b"x"),
            "list": lambda: list(seen.list()),
            "delete": lambda: seen.delete(["a"]),
            "exists": lambda: seen.exists("a"),
        }
        with pytest.raises(StorageUnavailable) as caught:
            actions[action]()
        assert f"the directory {root} is gone; is it unmounted?" in str(caught.value)
        assert "run the same command again" in str(caught.value)
        assert not root.exists()

    def test_an_unmounted_disk_is_not_filled_in(self, small_disk: Path) -> None:
        store = LocalStore(str(small_disk / "mnist"), patience_s=0)
        store.put("a", b"x")
        subprocess.run(["umount", str(small_disk)], check=True)
        with pytest.raises(StorageUnavailable, match="is it unmounted"):
            store.put("b", b"x")
        assert list(small_disk.iterdir()) == []

    def test_work_goes_on_when_it_is_back(self, root: Path) -> None:
        store = LocalStore(str(root), patience_s=30)
        store.put("a", b"1")
        away = root.with_name("away")
        root.rename(away)
        timer = threading.Timer(0.5, away.rename, args=(root,))
        timer.start()
        try:
            assert store.get("a") == b"1"
        finally:
            timer.join()

    def test_a_store_that_never_was_there_is_empty_and_made_by_the_first_write(self, tmp_path: Path) -> None:
        store = LocalStore(str(tmp_path / "x" / "new"), patience_s=0)
        assert list(store.list()) == []
        with pytest.raises(ObjectMissing):
            store.get("spec.json")
        store.create("spec.json", b"{}")
        assert store.get("spec.json") == b"{}"
        shutil.rmtree(tmp_path / "x")
        with pytest.raises(StorageUnavailable):
            store.get("spec.json")


def test_failures_that_pass_are_tried_again(store: LocalStore, monkeypatch: Patch) -> None:
    for name, number in (("fsync", errno.EIO), ("replace", errno.ESTALE), ("fsync", errno.EAGAIN)):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, failing(name, number, times=2))
            store.put("a", b"x")
    assert store.get("a") == b"x"


def test_a_create_that_failed_after_its_link_exists(store: LocalStore, monkeypatch: Patch) -> None:
    """The log compares bytes then; it must not be told that nothing was written."""
    real = os.link

    def link(source: Path, target: Path) -> None:
        real(source, target)
        monkeypatch.setattr(os, "link", real)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StorageError, match="exists already"):
        store.create("log/0", b"x")
    assert store.get("log/0") == b"x"


def test_an_object_and_a_directory_cannot_share_a_name(store: LocalStore) -> None:
    store.put("a", b"x")
    with pytest.raises(StorageError, match="a/b"):
        store.put("a/b", b"x")
