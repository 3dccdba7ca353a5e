"""The key that signs certificates: a file beside the run's secrets, or one that is supplied. Never in a run."""

from __future__ import annotations

import contextlib
import os
import stat
import uuid
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from sisa_ray.core.errors import ConfigError
from sisa_ray.storage import keyring

VARIABLE = "SISA_RAY_SIGNING_KEY"
_MAKE_ONE = "make one with `openssl genpkey -algorithm ed25519`"


def key_file() -> Path:
    """Where the private key lies: ``SISA_RAY_SIGNING_KEY``, by default ``signing.pem`` in the keyring."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser().absolute() if named else keyring.directory() / "signing.pem"


def load_or_create(*, storage_path: str) -> Ed25519PrivateKey:
    """The signing key. It is made at first use, unless ``SISA_RAY_SIGNING_KEY`` names one.

    Raises:
        ConfigError: where it lies inside the storage, others may read it, or it is no Ed25519 key.
    """
    file = key_file()
    if "://" not in storage_path and file.resolve().is_relative_to(Path(storage_path).resolve()):
        raise ConfigError(
            f"{VARIABLE}: the signing key {file} lies inside the storage {storage_path}; whoever has the data could "
            "sign for it: keep the key in another directory"
        )
    if not file.exists():
        if os.environ.get(VARIABLE):
            raise ConfigError(f"{VARIABLE}: there is no file {file}; {_MAKE_ONE}, or unset the variable")
        _create(file)
    key = _load(file)
    if not os.environ.get(VARIABLE) and not file.with_suffix(".pub").exists():
        _publish(file.with_suffix(".pub"), key.public_key())
    return key


def load_public(path: str | Path) -> Ed25519PublicKey:
    """A public key (PEM) to check certificates with; of a private key's file, its public half.

    Raises:
        ConfigError: where it cannot be read, or is no Ed25519 key.
    """
    file = Path(path)
    data = _read(file)
    if b"PRIVATE KEY" in data:
        return _load(file).public_key()
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{file}: is no public key in PEM form; give the signer's signing.pub") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{file}: is a key of another kind; certificates are signed with Ed25519")
    return key


def _load(file: Path) -> Ed25519PrivateKey:
    data = _read(file)
    mode = file.stat().st_mode
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"{file}: its permissions are {stat.S_IMODE(mode):o}, but only its owner may read the signing key; "
            f"run: chmod 600 {file}"
        )
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{file}: is no private key in PEM form without a password; {_MAKE_ONE}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"{file}: is a key of another kind; certificates are signed with Ed25519: {_MAKE_ONE}"
        )
    return key


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}; give the path of a key file") from None


def _create(file: Path) -> None:
    """Make a key. Of two processes that do so at once, both end with the same one."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _put(file, private)


def _publish(file: Path, key: Ed25519PublicKey) -> None:
    """Put the public key beside the private one, for auditors."""
    _put(file, key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def _put(file: Path, data: bytes) -> None:
    """Write a file durably, whole or not at all, unless there is one."""
    temporary = file.with_name(f".{uuid.uuid4().hex}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, file)
        keyring.sync_directory(file.parent)
    except OSError as error:
        raise ConfigError(
            f"{VARIABLE}: no signing key can be written to {file}: {error.strerror}; choose another place"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
