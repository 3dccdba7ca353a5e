"""Patience with storage: passing failures are tried again, definite ones are raised at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from sisa_ray.core.errors import ObjectExists, StorageError, StorageUnavailable

logger = logging.getLogger("sisa_ray.storage")

DEFAULT_PATIENCE_S = 120.0
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 5.0
_WARN_AFTER_S = 3.0
_NUM_TRIES = 3

T = TypeVar("T")


class Transient(Exception):
    """A failure that may pass; carries what storage said."""


def with_patience(
    operation: Callable[[], T],
    *,
    what: str,
    patience_s: float,
    is_repeatable: bool = True,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """The result of ``operation``, repeated with back-off while it raises :class:`Transient`.

    Patience counts from the first failure, and a second and a third try are always made: a transfer of minutes
    that breaks off has used up none of it.

    Args:
        operation: what to try.
        what: its object, for messages.
        patience_s: seconds that storage may stay away.
        is_repeatable: False where a try whose answer was lost may have changed what the next one meets.
        clock: seconds that only grow.
        sleep: waits.

    Raises:
        StorageUnavailable: where it goes on failing for ``patience_s``; or where an operation that is not repeatable
            is refused after a try whose outcome is unknown.
    """
    failing_since: float | None = None
    warned = False
    pause = _FIRST_PAUSE_S
    num_failures = 0
    while True:
        try:
            result = operation()
        except Transient as error:
            num_failures += 1
            now = clock()
            failing_since = now if failing_since is None else failing_since
            waited = now - failing_since
            if num_failures >= _NUM_TRIES and waited + pause > patience_s:
                raise StorageUnavailable(
                    f"{what}: storage did not answer for {waited:.0f} s ({error}); nothing that was committed is "
                    "lost: run the same command again when it is back"
                ) from None
            if waited > _WARN_AFTER_S and not warned:
                warned = True
                logger.warning("%s: waiting for storage (%s), for at most %.0f s", what, error, patience_s)
        except StorageError as error:
            if num_failures and not is_repeatable and not isinstance(error, ObjectExists):
                raise StorageUnavailable(
                    f"{error}; before that the answer to the same write was lost, so it may have been applied"
                ) from None
            raise
        else:
            if warned:
                logger.warning("%s: storage is back", what)
            return result
        sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)
