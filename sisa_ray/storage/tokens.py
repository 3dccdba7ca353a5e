"""The file of tokens: beside the keyring, readable by its owner alone, read again whenever it changes."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from sisa_ray.core.errors import ConfigError
from sisa_ray.core.tokens import Token, Tokens, checked_roles
from sisa_ray.storage import keyring

VARIABLE = "SISA_RAY_TOKENS"
_VERSION = 1


def token_file() -> Path:
    """Where tokens lie: ``SISA_RAY_TOKENS``, by default ``tokens.json`` in the keyring."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser().absolute() if named else keyring.directory() / "tokens.json"


def load_tokens() -> Tokens:
    """The tokens; none where there is no file.

    Raises:
        ConfigError: where others may read the file, or it is none of ours.
    """
    file = token_file()
    try:
        mode, text = file.stat().st_mode, file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Tokens()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file}: cannot be read ({type(error).__name__}); restore it, or delete it"
        ) from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"{file}: its permissions are {stat.S_IMODE(mode):o}, but only its owner may read it; run: chmod 600 {file}"
        )
    try:
        data = json.loads(text)
        version = data["version"]
        if version == _VERSION:
            return Tokens(tuple(_token(entry) for entry in data["tokens"]))
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError):
        raise ConfigError(
            f"{file}: is no file of tokens; restore it, or delete it and create tokens anew"
        ) from None
    raise ConfigError(
        f"{file}: version is {version!r}, this sisa_ray reads {_VERSION}; use the version that wrote it"
    )


def change_tokens(change: Callable[[Tokens], Tokens]) -> None:
    """Change the file, all of it or nothing; others who do so at the same time wait.

    Raises:
        ConfigError: where it cannot be read or written, and whatever ``change`` raises; then it stays as it is.
    """
    file = token_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(file.with_name(f".{file.name}.lock")):
            after = change(load_tokens())
            content = {"version": _VERSION, "tokens": [_entry(token) for token in after.tokens]}
            _write(file, json.dumps(content, indent=1))
    except OSError as error:
        raise ConfigError(
            f"{VARIABLE}: tokens cannot be written to {file}: {error.strerror}; choose another place"
        ) from None


class TokenFile:
    """The tokens as the file has them now. While it cannot be read, those that it had."""

    def __init__(self) -> None:
        self._mark: tuple[int, int, int] | None = None
        self._tokens = Tokens()

    def read(self) -> Tokens:
        """The tokens; the file is looked at each time, and read where it changed."""
        try:
            found = token_file().stat()
            mark = (found.st_mtime_ns, found.st_size, found.st_ino)
        except OSError:
            mark = None
        if mark != self._mark:
            with suppress(ConfigError):
                self._tokens = load_tokens()
                self._mark = mark
        return self._tokens


def _token(entry: dict[str, Any]) -> Token:
    expires_at = entry["expires_at"]
    digest = entry["secret_sha256"]
    if not (isinstance(digest, str) and len(bytes.fromhex(digest)) == 32):
        raise ValueError
    return Token(
        token=str(entry["id"]),
        name=str(entry["name"]),
        roles=checked_roles(entry["roles"]),
        secret_hash=digest,
        created_at=_time(entry["created_at"]),
        expires_at=None if expires_at is None else _time(expires_at),
    )


def _entry(token: Token) -> dict[str, Any]:
    return {
        "id": token.token,
        "name": token.name,
        "roles": list(token.roles),
        "secret_sha256": token.secret_hash,
        "created_at": token.created_at.isoformat(),
        "expires_at": None if token.expires_at is None else token.expires_at.isoformat(),
    }


def _time(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError
    return found


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _write(file: Path, text: str) -> None:
    temporary = file.with_name(f".{uuid.uuid4().hex}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(file)
        keyring.sync_directory(file.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()
