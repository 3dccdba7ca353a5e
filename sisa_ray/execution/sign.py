"""The sign of life of a coordinator, in the run itself: how commands elsewhere know that somebody has it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading

from sisa_ray.core.errors import SisaError
from sisa_ray.storage import layout
from sisa_ray.storage.run import Run

logger = logging.getLogger("sisa_ray.coordinator")

HEARTBEAT_S = 5.0
"""Seconds between signs of life in the run; after six times as many, nobody is believed to have it."""


def show_life(run: Run, *, attempt: str, stop: threading.Event) -> None:
    """Renew the sign until ``stop``; then take it away, if it still is this coordinator's."""
    while not stop.is_set():
        try:
            write_sign(run, attempt=attempt)
        except SisaError as error:
            logger.warning("%s", error)
        stop.wait(HEARTBEAT_S)
    with contextlib.suppress(SisaError, ValueError, KeyError):
        if json.loads(run.store.get(layout.COORDINATOR))["attempt"] == attempt:
            run.store.delete([layout.COORDINATOR])


def write_sign(run: Run, *, attempt: str) -> None:
    """Renew the sign that a coordinator has the run."""
    sign = {
        "attempt": attempt,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "renewed_at": run.now().isoformat(),
    }
    run.store.put(layout.COORDINATOR, json.dumps(sign).encode())
