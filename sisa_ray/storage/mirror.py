"""The suppression list's mirror: outside the run, so that a run restored from a backup cannot forget to forget.

One file a secret, in the keyring's directory: lines of JSON, each with tags that were added or lifted. It holds
tags alone, and is read whole when a run is opened for work.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from sisa_ray.core.errors import ConfigError, RunBehind
from sisa_ray.storage import keyring
from sisa_ray.storage.run import Run


def mirror_suppression(run: Run) -> None:
    """Bring the mirror up to the state of ``run``; durable on return.

    Raises:
        ConfigError: where it cannot be written.
    """
    there = _read(run)
    # Whom others accepted meanwhile, they commit before they mirror them.
    run.refresh(is_whole=False)
    with run.lock:
        now = set(run.state.suppressed)
    added, lifted = sorted(now - there), sorted(there - now)
    if added or lifted:
        append_to_mirror(run, added=added, lifted=lifted)


def append_to_mirror(run: Run, *, added: list[str], lifted: list[str]) -> None:
    """Add one line; durable on return."""
    file = _file(run)
    line = json.dumps({"added": added, "lifted": lifted}, separators=(",", ":")) + "\n"
    try:
        is_new = not file.exists()
        fd = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            _drop_cut_line(fd)
            os.write(fd, line.encode("ascii"))
            os.fsync(fd)
        finally:
            os.close(fd)
        if is_new:
            keyring.sync_directory(file.parent)
    except OSError as error:
        raise ConfigError(
            f"{keyring.VARIABLE}: the mirror of the suppression list cannot be written to {file}: {error.strerror}"
        ) from None


def missing_tags(run: Run) -> list[str]:
    """Tags that were suppressed once and that this run, as it is now, knows nothing of."""
    there = _read(run)
    if not there <= run.state.suppressed.keys():
        run.refresh(is_whole=False)  # others commit whom they accept before they mirror them
    with run.lock:
        return sorted(there - run.state.suppressed.keys())


def check_mirror(run: Run) -> None:
    """See that the run knows everybody who was suppressed.

    Raises:
        RunBehind: where it was restored from a time before some of them asked.
    """
    missing = missing_tags(run)
    if missing:
        people = "1 person" if len(missing) == 1 else f"{len(missing):,} people"
        raise RunBehind(
            f"{run.address}: was restored from before {people} asked to be forgotten (the mirror "
            f"{_file(run)} has them); it must not be used before they are forgotten again: run "
            f"`sisa-ray suppression replay {run.address}`"
        )


def _file(run: Run) -> Path:
    return keyring.directory() / f"{run.secret.secret_id}.suppressed"


def _drop_cut_line(fd: int) -> None:
    """Remove a last line that a crash cut short: what it would have said was never acknowledged."""
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        os.ftruncate(fd, os.pread(fd, size, 0).rfind(b"\n") + 1)


def _read(run: Run) -> set[str]:
    file = _file(run)
    tags: set[str] = set()
    try:
        text = file.read_text(encoding="ascii")
    except FileNotFoundError:
        return tags
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file}: cannot be read ({type(error).__name__}); restore it from a backup"
        ) from None
    # What follows the last line end was cut short by a crash.
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            change = json.loads(line)
            tags |= set(change["added"])
            tags -= set(change["lifted"])
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{file}: line {number} is no part of a mirror; restore it from a backup"
            ) from None
    return tags
