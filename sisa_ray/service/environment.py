"""What has to be set before Ray is first imported, so that its own log lines stay off the user's terminal."""

from __future__ import annotations

import os

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Said of every actor that we release. Those that really died are told of in our own words.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "|".join(
        (
            "A worker died or was killed while executing a task",
            "Raylet is terminated",  # with pages of its log
            "has been marked dead because",
            "ServeController.graceful_shutdown",
        )
    ),
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Announces a change of default that does not touch us: actors without a GPU use none.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def quiet_ray() -> None:
    """Set what is not set yet: whoever wants Ray's own logs sets these variables."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
