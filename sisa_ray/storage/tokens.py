"""The file of bearer tokens: readable by its owner alone, changed whole or not at all, by one writer at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from sisa_ray.core.errors import ConfigError
from sisa_ray.core.tokens import Tokens
from sisa_ray.storage import keyring

VARIABLE = "SISA_RAY_TOKENS"

Change = TypeVar("Change")
Stamp = tuple[int, int, int]


def tokens_file() -> Path:
    """Where tokens lie: ``SISA_RAY_TOKENS``, by default ``tokens.json`` in the keyring."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser().absolute() if named else keyring.directory() / "tokens.json"


def load(file: Path | None = None) -> Tokens:
    """All tokens of a file, by default of :func:`tokens_file`. None where there is no file: nobody may do anything.

    Raises:
        ConfigError: where it cannot be read, others may read it, or it is no such file.
    """
    return _read(file or tokens_file())[0]


def update(change: Callable[[Tokens], tuple[Tokens, Change]], *, file: Path | None = None) -> Change:
    """Replace the tokens by the first of what ``change`` makes of them; durable on return. Returns the second.

    Writers wait for each other, so that none loses what another wrote. Where ``change`` raises nothing is written.

    Raises:
        ConfigError: as :func:`load`, and where the file cannot be written.
    """
    # A link stays one: it is its target that is replaced.
    target = (file or tokens_file()).resolve()
    with _writing(target):
        before, _ = _read(target)
        after, result = change(before)
        if after.digest != before.digest:
            _write(target, after)
    return result


class TokenReader:
    """The tokens of a file as it is now. Read again only when it has changed: asking costs one ``stat``."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file or tokens_file()
        self._held: tuple[Stamp | None, Tokens] | None = None

    def current(self) -> Tokens:
        """All tokens.

        Raises:
            ConfigError: as :func:`load`. A file that went bad is never covered up by what it was before: somebody
                may have been taken out of it.
        """
        held = self._held
        try:
            now = _stamp(self.file.stat())
        except OSError:
            now = None
        if held is None or held[0] is None or held[0] != now:
            tokens, stamp = _read(self.file)
            held = (stamp, tokens)
            self._held = held
        return held[1]


def _stamp(info: os.stat_result) -> Stamp:
    return info.st_mtime_ns, info.st_size, info.st_ino


def _read(file: Path) -> tuple[Tokens, Stamp | None]:
    try:
        with file.open("rb") as opened:
            info = os.fstat(opened.fileno())
            data = opened.read()
    except FileNotFoundError:
        return Tokens(), None
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot be read: {error.strerror}; it must be a file of the user who runs this"
        ) from None
    if info.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"{file}: its permissions are {stat.S_IMODE(info.st_mode):o}, but only its owner may read the tokens; "
            f"run: chmod 600 {file}"
        )
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        # The error's text could hold a piece of the file.
        raise ConfigError(f"{file}: is not JSON; restore it from a backup, or make the tokens anew") from None
    try:
        return Tokens.from_document(document), _stamp(info)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


@contextlib.contextmanager
def _writing(file: Path) -> Iterator[None]:
    """Hold the lock beside the file: the file itself is another one after every write."""
    lock = file.with_name(f".{file.name}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _not_writable(file, error) from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as error:
            raise _not_writable(file, error) from None
        yield
    finally:
        os.close(fd)


def _write(file: Path, tokens: Tokens) -> None:
    temporary = file.with_name(f".{uuid.uuid4().hex}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as opened:
            json.dump(tokens.document(), opened, indent=2)
            opened.write("\n")
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(file)
        keyring.sync_directory(file.parent)
    except OSError as error:
        raise _not_writable(file, error) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _not_writable(file: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{VARIABLE}: no tokens can be written to {file}: {error.strerror}; choose another place"
    )
