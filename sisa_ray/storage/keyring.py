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
        ConfigError: where the keyring lies inside ``storage_path``: whoever has the data would have the secret.
    """
    keys = directory()
    if "://" not in storage_path and keys.resolve().is_relative_to(Path(storage_path).resolve()):
        raise ConfigError(
            f"{VARIABLE}: the keyring {keys} lies inside the storage {storage_path}; secrets must be kept apart "
            "from the data: choose another directory"
        )
    keys.mkdir(parents=True, exist_ok=True, mode=0o700)
    secret = Secret(uuid.uuid4().hex, secrets.token_bytes(_NUM_BYTES))
    content = {"version": _VERSION, "secret_id": secret.secret_id, "secret": secret.reveal().hex()}
    fd = os.open(_file(secret.secret_id), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="ascii") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
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
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"{file}: its permissions are {stat.S_IMODE(mode):o}, but only its owner may read a secret; "
            f"run: chmod 600 {file}"
        )
    try:
        content = json.loads(file.read_text(encoding="ascii"))
        secret = Secret(content["secret_id"], bytes.fromhex(content["secret"]))
        version = content["version"]
    except (ValueError, KeyError, TypeError) as error:
        # The error's text could hold a piece of the file.
        raise ConfigError(
            f"{file}: is no key file ({type(error).__name__}); restore it from a backup"
        ) from None
    if version != _VERSION or secret.secret_id != secret_id:
        raise ConfigError(
            f"{file}: holds another secret, or another version of one; restore it from a backup"
        )
    return secret


def discard(secret_id: str) -> None:
    """Delete a secret that nothing was made with."""
    _file(secret_id).unlink(missing_ok=True)


def _file(secret_id: str) -> Path:
    return directory() / f"{secret_id}.json"
