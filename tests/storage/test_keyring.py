"""The keyring: secrets that only their owner can read, apart from the data."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from sisa_ray.core.errors import ConfigError, RunConflict
from sisa_ray.core.keys import Secret
from sisa_ray.storage import keyring


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "keyring" / "of-mine"
    monkeypatch.setenv(keyring.VARIABLE, str(directory))
    return directory


@pytest.fixture
def secret(keys: Path) -> Secret:
    return keyring.create(storage_path="s3://bucket")


def file_of(secret: Secret, keys: Path) -> Path:
    return keys / f"{secret.secret_id}.json"


def test_a_secret_comes_back(secret: Secret) -> None:
    assert keyring.load(secret.secret_id).reveal() == secret.reveal()
    assert len(secret.reveal()) == 32


def test_every_secret_is_another(secret: Secret) -> None:
    other = keyring.create(storage_path="s3://bucket")
    assert other.secret_id != secret.secret_id
    assert other.reveal() != secret.reveal()


def test_only_the_owner_can_read(secret: Secret, keys: Path) -> None:
    assert stat.S_IMODE(file_of(secret, keys).stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700


def test_the_mode_does_not_depend_on_the_umask(keys: Path) -> None:
    before = os.umask(0)
    try:
        made = keyring.create(storage_path="s3://bucket")
    finally:
        os.umask(before)
    assert stat.S_IMODE(file_of(made, keys).stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_loose_permissions_are_refused_with_the_fix(secret: Secret, keys: Path, mode: int) -> None:
    file = file_of(secret, keys)
    file.chmod(mode)
    with pytest.raises(ConfigError, match=f"permissions are {mode:o}.*chmod 600 {file}"):
        keyring.load(secret.secret_id)


def test_a_missing_secret_says_where_to_get_it(keys: Path) -> None:
    with pytest.raises(RunConflict, match=r"copy nobody.json there from the machine that created the run"):
        keyring.load("nobody")


def put_text(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(0o600)


def changed(**changes: object) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), **changes})


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-5],
        lambda _: "",
        lambda _: "[]",
        lambda text: text.replace('"secret":', '"other":'),
        lambda text: text + "é",
        changed(secret="xyz-not-hex"),
        changed(secret=""),
        changed(secret="abcd"),
        changed(secret_id="another"),
        changed(version=2),
    ],
)
def test_a_damaged_file_is_refused_and_its_content_is_not_shown(
    secret: Secret, keys: Path, damage: Callable[[str], str]
) -> None:
    file = file_of(secret, keys)
    put_text(file, damage(file.read_text()))
    with pytest.raises(ConfigError, match="restore it from a backup") as caught:
        keyring.load(secret.secret_id)
    assert str(file) in str(caught.value)
    assert secret.reveal().hex()[:8] not in str(caught.value)
    assert "xyz" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_file_that_cannot_be_read_is_named(
    secret: Secret, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ConfigError, match=r"cannot be read: Permission denied"):
        keyring.load(secret.secret_id)


def test_a_keyring_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(keyring.VARIABLE, str(tmp_path / "file" / "keys"))
    with pytest.raises(ConfigError, match=r"SISA_RAY_KEYRING: no secret can be written"):
        keyring.create(storage_path="s3://bucket")


def test_a_keyring_inside_the_storage_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "storage")
    for inside in ("storage", "storage/keys", "other/../storage/keys", "link/keys"):
        monkeypatch.setenv(keyring.VARIABLE, str(tmp_path / inside))
        with pytest.raises(ConfigError, match=r"lies inside the storage .*choose another directory"):
            keyring.create(storage_path=str(tmp_path / "storage"))
    assert not (tmp_path / "storage").exists()


def test_a_keyring_beside_the_storage_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(keyring.VARIABLE, str(tmp_path / "storage-keys"))
    secret = keyring.create(storage_path=str(tmp_path / "storage"))
    assert [f.name for f in (tmp_path / "storage-keys").iterdir()] == [f"{secret.secret_id}.json"]


def test_a_secret_is_durable_before_it_is_used(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(stat.S_ISDIR(os.fstat(fd).st_mode)))
    keyring.create(storage_path="s3://bucket")
    assert synced == [False, True]


def test_a_discarded_secret_is_gone(secret: Secret, keys: Path) -> None:
    keyring.discard(secret.secret_id)
    keyring.discard(secret.secret_id)
    assert not list(keys.iterdir())


def test_by_default_it_lies_in_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(keyring.VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert keyring.directory() == tmp_path / ".config" / "sisa_ray" / "keys"
