"""The signing key: one for all processes, readable by its owner alone, apart from the data."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from sisa_ray.core.errors import ConfigError
from sisa_ray.storage import keyring, signing

S3 = "s3://bucket"


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "keyring" / "of-mine"
    monkeypatch.setenv(keyring.VARIABLE, str(directory))
    monkeypatch.delenv(signing.VARIABLE, raising=False)
    return directory


@pytest.fixture
def supplied(tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of a key that the environment names; it is not there yet."""
    monkeypatch.setenv(signing.VARIABLE, str(tmp_path / "supplied.pem"))
    return tmp_path / "supplied.pem"


def private_pem(
    key: Ed25519PrivateKey | Ed448PrivateKey, *, encryption: KeySerializationEncryption | None = None
) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


def public_pem(key: Ed25519PrivateKey | Ed448PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def put(file: Path, data: bytes, *, mode: int = 0o600) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    file.chmod(mode)
    return file


def test_a_key_is_made_once_and_comes_back(keys: Path) -> None:
    made = signing.load_or_create(storage_path=S3)
    again = signing.load_or_create(storage_path=S3)
    assert again.private_bytes_raw() == made.private_bytes_raw()
    # Nothing else is left behind.
    assert {file.name for file in keys.iterdir()} == {"signing.pem", "signing.pub"}


def test_the_files_are_what_other_tools_read(keys: Path) -> None:
    made = signing.load_or_create(storage_path=S3)
    assert (keys / "signing.pem").read_bytes() == private_pem(made)
    assert (keys / "signing.pub").read_bytes() == public_pem(made)


@pytest.mark.parametrize("name", ["signing.pub", "signing.pem"])
def test_the_public_half_can_be_had_from_both_files(keys: Path, name: str) -> None:
    made = signing.load_or_create(storage_path=S3)
    public = signing.load_public(keys / name)
    assert public.public_bytes_raw() == made.public_key().public_bytes_raw()
    assert signing.load_public(str(keys / name)) == public


def test_only_the_owner_can_read_whatever_the_umask(keys: Path) -> None:
    before = os.umask(0)
    try:
        signing.load_or_create(storage_path=S3)
    finally:
        os.umask(before)
    assert stat.S_IMODE((keys / "signing.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700


def test_all_who_start_at_once_end_with_the_same_key(keys: Path) -> None:
    """And nobody reads a key that is not written to its end."""
    start = Barrier(8)

    def load() -> bytes:
        start.wait()
        return signing.load_or_create(storage_path=S3).private_bytes_raw()

    with ThreadPoolExecutor(8) as threads:
        found = {future.result() for future in [threads.submit(load) for _ in range(8)]}
    assert len(found) == 1
    public = signing.load_public(keys / "signing.pub")
    assert public == signing.load_public(keys / "signing.pem")
    assert {file.name for file in keys.iterdir()} == {"signing.pem", "signing.pub"}


def test_the_key_of_whoever_was_first_is_taken(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process comes between the look and the link."""
    first = Ed25519PrivateKey.generate()
    plain = os.link

    def link(source: Path, target: Path) -> None:
        if target.suffix == ".pem":
            put(Path(target), private_pem(first))
        plain(source, target)

    monkeypatch.setattr(os, "link", link)
    assert signing.load_or_create(storage_path=S3).private_bytes_raw() == first.private_bytes_raw()
    assert (keys / "signing.pub").read_bytes() == public_pem(first)


def test_the_key_is_durable_before_it_has_its_name(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    plain = os.link

    def link(source: Path, target: Path) -> None:
        events.append("link")
        plain(source, target)

    def fsync(fd: int) -> None:
        events.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "fsync", fsync)
    signing.load_or_create(storage_path=S3)
    assert events[:2] == ["file", "link"]
    assert events[-1] == "directory"


def test_a_supplied_key_is_used_and_nothing_is_written(supplied: Path, keys: Path) -> None:
    key = Ed25519PrivateKey.generate()
    put(supplied, private_pem(key))
    assert signing.load_or_create(storage_path=S3).private_bytes_raw() == key.private_bytes_raw()
    assert not keys.exists()
    assert not supplied.with_suffix(".pub").exists()


def test_a_supplied_key_may_lie_in_the_home_directory(
    supplied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(signing.VARIABLE, "~/supplied.pem")
    key = Ed25519PrivateKey.generate()
    put(supplied, private_pem(key))
    assert signing.load_or_create(storage_path=S3).private_bytes_raw() == key.private_bytes_raw()


def test_a_supplied_key_that_is_not_there_is_not_made(supplied: Path) -> None:
    with pytest.raises(ConfigError, match=rf"SISA_RAY_SIGNING_KEY: there is no file {supplied}; .*openssl"):
        signing.load_or_create(storage_path=S3)
    assert not supplied.exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o601])
@pytest.mark.parametrize("is_supplied", [True, False])
def test_loose_permissions_are_refused_with_the_fix(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, *, is_supplied: bool
) -> None:
    file = tmp_path / "supplied.pem" if is_supplied else keys / "signing.pem"
    if is_supplied:
        monkeypatch.setenv(signing.VARIABLE, str(file))
    put(file, private_pem(Ed25519PrivateKey.generate()), mode=mode)
    with pytest.raises(ConfigError, match=f"permissions are {mode:o}.*chmod 600 {file}"):
        signing.load_or_create(storage_path=S3)


def broken_files() -> list[bytes]:
    key = Ed25519PrivateKey.generate()
    return [
        b"",
        b"not a key",
        private_pem(key)[:-40],
        private_pem(Ed448PrivateKey.generate()),
        private_pem(key, encryption=BestAvailableEncryption(b"password")),
        public_pem(key),
        key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
    ]


@pytest.mark.parametrize("number", range(8))
def test_what_is_no_ed25519_key_is_refused_without_a_piece_of_it(supplied: Path, number: int) -> None:
    data = broken_files()[number]
    put(supplied, data)
    with pytest.raises(ConfigError, match=rf"{supplied}: .*openssl genpkey -algorithm ed25519") as caught:
        signing.load_or_create(storage_path=S3)
    body = data.split(b"\n")[1:2]
    assert not any(line and line.decode(errors="replace") in str(caught.value) for line in body)
    assert supplied.read_bytes() == data


def test_a_broken_key_of_ours_is_not_replaced(keys: Path) -> None:
    file = put(keys / "signing.pem", b"broken")
    with pytest.raises(ConfigError, match=str(file)):
        signing.load_or_create(storage_path=S3)
    assert file.read_bytes() == b"broken"


def test_a_key_inside_the_storage_is_refused(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = tmp_path / "storage"
    (tmp_path / "link").symlink_to(storage)
    for inside in ("storage/k.pem", "storage/keys/k.pem", "other/../storage/k.pem", "link/k.pem"):
        monkeypatch.setenv(signing.VARIABLE, str(tmp_path / inside))
        with pytest.raises(ConfigError, match=r"lies inside the storage .*another directory"):
            signing.load_or_create(storage_path=str(storage))
    monkeypatch.delenv(signing.VARIABLE)
    monkeypatch.setenv(keyring.VARIABLE, str(storage / "keys"))
    with pytest.raises(ConfigError, match=r"lies inside the storage"):
        signing.load_or_create(storage_path=str(storage))
    assert not storage.exists()


def test_a_key_beside_the_storage_is_fine(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(keyring.VARIABLE, str(tmp_path / "storage-keys"))
    signing.load_or_create(storage_path=str(tmp_path / "storage"))
    assert (tmp_path / "storage-keys" / "signing.pem").exists()


def test_a_keyring_that_cannot_be_written_is_named(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(keyring.VARIABLE, str(tmp_path / "file" / "keys"))
    with pytest.raises(ConfigError, match=r"no signing key can be written to .*; choose another"):
        signing.load_or_create(storage_path=S3)


def test_what_cannot_be_read_is_named(supplied: Path) -> None:
    supplied.mkdir()
    with pytest.raises(ConfigError, match=rf"{supplied}: cannot be read: Is a directory"):
        signing.load_or_create(storage_path=S3)
    with pytest.raises(ConfigError, match=rf"{supplied}: cannot be read: Is a directory"):
        signing.load_public(supplied)


@pytest.mark.parametrize(
    "data",
    [
        lambda: b"",
        lambda: b"not a key",
        lambda: public_pem(Ed25519PrivateKey.generate())[:-40],
        lambda: public_pem(Ed448PrivateKey.generate()),
        lambda: (
            Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        ),
        lambda: Ed25519PrivateKey.generate().public_key().public_bytes_raw(),
        lambda: private_pem(Ed448PrivateKey.generate()),
        lambda: private_pem(Ed25519PrivateKey.generate(), encryption=BestAvailableEncryption(b"password")),
    ],
    ids=["empty", "text", "cut off", "Ed448", "OpenSSH", "raw", "private Ed448", "with a password"],
)
def test_what_is_no_ed25519_public_key_is_refused(tmp_path: Path, data: Callable[[], bytes]) -> None:
    file = put(tmp_path / "key.pub", data())
    with pytest.raises(ConfigError, match=rf"^{file}: "):
        signing.load_public(file)


def test_a_public_key_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{tmp_path}/no.pub: cannot be read: No such file"):
        signing.load_public(tmp_path / "no.pub")
