"""The file of tokens: readable by its owner alone, never half written, no writer's change lost."""

from __future__ import annotations

import json
import os
import pickle
import secrets
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sisa_ray.core.errors import ConfigError
from sisa_ray.core.tokens import Issued, Tokens
from sisa_ray.storage import keyring
from sisa_ray.storage import tokens as storage
from sisa_ray.storage.tokens import TokenReader, load, tokens_file, update

NOW = datetime(2026, 11, 2, 9, 30, tzinfo=UTC)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the tokens will be; there is nothing yet."""
    monkeypatch.setenv(storage.VARIABLE, str(tmp_path / "of-mine" / "tokens.json"))
    return tmp_path / "of-mine" / "tokens.json"


def add(tokens: Tokens, name: str = "web-shop") -> tuple[Tokens, Issued]:
    issued = tokens.create(
        name=name, roles=["read"], now=NOW, lifetime=None, random_bytes=secrets.token_bytes
    )
    return issued.tokens, issued


def leftovers(file: Path) -> set[str]:
    return {p.name for p in file.parent.iterdir()} - {file.name, f".{file.name}.lock"}


def test_tokens_lie_in_the_keyring_unless_a_place_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(storage.VARIABLE, raising=False)
    monkeypatch.setenv(keyring.VARIABLE, str(tmp_path))
    assert tokens_file() == tmp_path / "tokens.json"
    monkeypatch.setenv(storage.VARIABLE, "~/mine.json")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tokens_file() == tmp_path / "mine.json"


def test_without_a_file_nobody_is_known(file: Path) -> None:
    assert load() == Tokens()
    assert TokenReader().current() == Tokens()
    assert not file.parent.exists()


def test_what_is_written_comes_back(file: Path) -> None:
    issued = update(add)
    assert load() == issued.tokens == load(file)
    assert load().find(issued.bearer, NOW) == issued.token
    assert issued.bearer[14:] not in file.read_text()
    assert leftovers(file) == set()


def test_only_the_owner_can_read_whatever_the_umask(file: Path) -> None:
    before = os.umask(0)
    try:
        update(add)
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in file.parent.iterdir()} == {0o600}


def test_the_new_file_is_durable_before_it_takes_the_place_of_the_old(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update(add)
    events: list[str] = []
    plain = os.rename, os.replace

    def fsync(fd: int) -> None:
        events.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")

    def replace(source: Any, target: Any, **options: Any) -> None:
        events.append("replace")
        plain[1](source, target, **options)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    update(add)
    assert events == ["file", "replace", "directory"]


def test_a_write_that_fails_changes_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update(add)
    before = file.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"SISA_RAY_TOKENS: no tokens can be written to .*: No space left"):
        update(add)
    assert file.read_bytes() == before
    assert leftovers(file) == set()


def test_a_change_that_is_refused_writes_nothing(file: Path) -> None:
    update(add)
    before = file.stat()
    with pytest.raises(ConfigError, match="no token's id"):
        update(lambda tokens: (tokens.revoke("zzz"), None))
    update(lambda tokens: (tokens, None))
    assert file.stat() == before


def test_a_link_stays_a_link(file: Path, tmp_path: Path) -> None:
    file.parent.mkdir()
    file.symlink_to(tmp_path / "elsewhere.json")
    update(add)
    update(add)
    assert file.is_symlink()
    assert len(load().tokens) == len(load(tmp_path / "elsewhere.json").tokens) == 2


def test_no_writer_loses_what_another_wrote(file: Path) -> None:
    program = (
        "import secrets, sys\n"
        "from datetime import UTC, datetime\n"
        "from sisa_ray.storage.tokens import update\n"
        "def add(tokens):\n"
        "    issued = tokens.create(name=sys.argv[1], roles=['read'], now=datetime.now(UTC), lifetime=None,\n"
        "        random_bytes=secrets.token_bytes)\n"
        "    return issued.tokens, None\n"
        "for _ in range(20): update(add)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, f"writer-{i}"]) for i in range(4)]
    reader = TokenReader()
    while any(writer.poll() is None for writer in writers):
        reader.current()  # never half written
    assert [writer.wait() for writer in writers] == [0] * 4
    names = [t.name for t in load().tokens]
    assert [names.count(f"writer-{i}") for i in range(4)] == [20] * 4
    assert reader.current() == load()


def test_a_reader_sees_every_change_and_reads_only_then(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = TokenReader()
    assert reader.current() == Tokens()
    first = update(add)
    held = reader.current()
    assert held == first.tokens
    assert reader.current() is held
    update(lambda tokens: (tokens.revoke(first.token.token_id), None))
    assert reader.current() == Tokens()
    again = update(add)
    assert reader.current() == again.tokens
    file.unlink()
    assert reader.current() == Tokens()


@pytest.mark.parametrize("which", ["time", "size", "inode"])
def test_a_reader_tells_a_change_by_any_of_three(file: Path, which: str) -> None:
    update(add)
    reader = TokenReader()
    before, info = reader.current(), file.stat()
    times = (info.st_atime_ns, info.st_mtime_ns)
    other = json.dumps(Tokens().document()).ljust(info.st_size + (which == "size")).encode()
    if which == "inode":
        copy = file.with_name("copy")
        copy.touch(0o600)
        copy.write_bytes(other)
        os.utime(copy, ns=times)
        copy.replace(file)
    else:
        file.write_bytes(other)
        os.utime(file, ns=(times[0], times[1] + (which == "time")))
    assert before != Tokens() == reader.current()


def test_a_reader_does_not_cover_up_a_file_that_went_bad(file: Path) -> None:
    issued = update(add)
    reader = TokenReader()
    reader.current()
    good = file.read_bytes()
    file.write_bytes(good[:-20])
    for _ in range(2):
        with pytest.raises(ConfigError, match="is not JSON"):
            reader.current()
    file.write_bytes(good)
    assert reader.current() == issued.tokens
    file.chmod(0o644)
    os.utime(file, ns=(1, 1))
    with pytest.raises(ConfigError, match="chmod 600"):
        reader.current()


def test_a_reader_survives_pickling(file: Path) -> None:
    reader = TokenReader()
    update(add)
    reader.current()
    again = pickle.loads(pickle.dumps(reader))
    second = update(add)
    assert again.current() == second.tokens


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o601])
def test_loose_permissions_are_refused_with_the_fix(file: Path, mode: int) -> None:
    update(add)
    file.chmod(mode)
    before = file.read_bytes()
    for call in (load, TokenReader().current, lambda: update(add)):
        with pytest.raises(ConfigError, match=f"{file}: its permissions are {mode:o}.*chmod 600 {file}"):
            call()
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON; restore it"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"version": 1, "tokens": [', "is not JSON"),
        (b'{"version": 7, "members": []}', r"version: was written by a newer sisa_ray \(version 7;"),
        (b'{"version": 1, "tokens": [{"id": "s3cr3t"}]}', r"tokens\[0\]\.created_at: is missing"),
    ],
)
def test_a_file_that_is_none_of_ours_is_refused_and_left_alone(
    file: Path, content: bytes, message: str
) -> None:
    file.parent.mkdir()
    file.touch(0o600)
    file.write_bytes(content)
    for call in (load, TokenReader().current, lambda: update(add)):
        with pytest.raises(ConfigError, match=rf"^{file}: {message}") as caught:
            call()
        assert "s3cr3t" not in str(caught.value)
    assert file.read_bytes() == content


def test_what_cannot_be_read_or_written_is_named(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"{file}: cannot be read: Is a directory"):
        load()
    (tmp_path / "plain").touch()
    monkeypatch.setenv(storage.VARIABLE, str(tmp_path / "plain" / "tokens.json"))
    with pytest.raises(ConfigError, match=r"no tokens can be written to .*; choose another place"):
        update(add)
