"""Patience with storage: passing failures are tried again, definite ones are raised at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from sisa_ray.core.errors import StorageUnavailable

logger = logging.getLogger("sisa_ray.storage")

DEFAULT_PATIENCE_S = 120.0
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 5.0
_WARN_AFTER_S = 3.0

T = TypeVar("T")


class Transient(Exception):
    """A failure that may pass; carries what storage said."""


def with_patience(operation: Callable[[], T], *, what: str, patience_s: float) -> T:
    """The result of ``operation``, repeated with back-off while it raises :class:`Transient`.

    Raises:
        StorageUnavailable: where that goes on for ``patience_s``.
    """
    started = time.monotonic()
    pause = _FIRST_PAUSE_S
    warned = False
    while True:
        try:
            return operation()
        except Transient as error:
            waited = time.monotonic() - started
            if waited + pause > patience_s:
                raise StorageUnavailable(
                    f"{what}: storage did not answer for {waited:.0f} s ({error}); nothing that was committed is "
                    "lost: run the same command again when it is back"
                ) from None
            if waited > _WARN_AFTER_S and not warned:
                warned = True
                logger.warning("%s: waiting for storage (%s), for at most %.0f s", what, error, patience_s)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)
