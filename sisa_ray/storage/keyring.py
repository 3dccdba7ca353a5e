"""The keyring: secrets of runs, outside their buckets, readable by their owner alone."""

from __future__ import annotations

import json
import os
import secrets
import stat
import uuid
from pathlib import Path

from sisa_ray.core.errors import ConfigError, RunConflict
from sisa_ray.core.keys import Secret

VARIABLE = "SISA_RAY_KEYRING"
_VERSION = 1
_NUM_BYTES = 32


def directory() -> Path:
    """Where secrets lie: ``SISA_RAY_KEYRING``, by default ``~/.config/sisa_ray/keys``."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser().absolute() if named else Path.home() / ".config" / "sisa_ray" / "keys"


def create(*, storage_path: str) -> Secret:
    """Make a new secret.

    Raises:
        ConfigError: where the keyring lies inside ``storage_path`` (whoever has the data would have the secret)
            or cannot be written.
    """
    keys = directory()
    if "://" not in storage_path and keys.resolve().is_relative_to(Path(storage_path).resolve()):
        raise ConfigError(
            f"{VARIABLE}: the keyring {keys} lies inside the storage {storage_path}; secrets must be kept apart "
            "from the data: choose another directory"
        )
    secret = Secret(uuid.uuid4().hex, secrets.token_bytes(_NUM_BYTES))
    content = {"version": _VERSION, "secret_id": secret.secret_id, "secret": secret.reveal().hex()}
    try:
        _write(_file(secret.secret_id), json.dumps(content))
    except OSError as error:
        raise ConfigError(
            f"{VARIABLE}: no secret can be written to the keyring {keys}: {error.strerror}; choose another directory"
        ) from None
    return secret


def load(secret_id: str) -> Secret:
    """The secret of a run.

    Raises:
        RunConflict: where this keyring does not have it.
        ConfigError: where others may read its file, or it is no key file.
    """
    file = _file(secret_id)
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        raise RunConflict(
            f"the run's secret {secret_id} is not in the keyring {file.parent}; copy {file.name} there from the "
            f"machine that created the run, or set {VARIABLE} to the directory that has it"
        ) from None
    except OSError as error:
        raise _unreadable(file, error) from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"{file}: its permissions are {stat.S_IMODE(mode):o}, but only its owner may read a secret; "
            f"run: chmod 600 {file}"
        )
    try:
        content = json.loads(file.read_text(encoding="ascii"))
        secret = Secret(content["secret_id"], bytes.fromhex(content["secret"]))
        version = content["version"]
    except OSError as error:
        raise _unreadable(file, error) from None
    except (ValueError, KeyError, TypeError) as error:
        # The error's text could hold a piece of the file.
        raise ConfigError(
            f"{file}: is no key file ({type(error).__name__}); restore it from a backup"
        ) from None
    is_whole = len(secret.reveal()) == _NUM_BYTES
    if version != _VERSION or secret.secret_id != secret_id or not is_whole:
        raise ConfigError(
            f"{file}: holds another secret, or another version of one; restore it from a backup"
        )
    return secret


def discard(secret_id: str) -> None:
    """Delete a secret that nothing was made with."""
    _file(secret_id).unlink(missing_ok=True)


def _file(secret_id: str) -> Path:
    return directory() / f"{secret_id}.json"


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="ascii") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    # The run is of no use without it: the name must be durable, too.
    sync_directory(file.parent)


def sync_directory(path: Path) -> None:
    """Make new names in a directory durable."""
    directory_fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory_fd)
    finally:
        os.close(directory_fd)


def _unreadable(file: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{file}: cannot be read: {error.strerror}; it must belong to the user who runs this")
