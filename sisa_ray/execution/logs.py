"""A log file for each shard, beside Ray's own logs, so that its dashboard and log commands show it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

logger = logging.getLogger("sisa_ray.shard")

_FORMAT = "%(asctime)s %(levelname)s %(message)s"


def log_file(run: str, shard: int) -> Path:
    """The log of one shard on this node, in the directory of the Ray session that this process is in."""
    context = ray.get_runtime_context()
    name = f"sisa_ray-{run}-shard-{shard:05d}.log"
    return Path(context.get_temp_dir(), context.get_session_name(), "logs", name)


@contextmanager
def shard_log(run: str, shard: int) -> Iterator[logging.Logger]:
    """A logger that writes to the shard's file while the block runs; it never holds a person's key or a value."""
    if not ray.is_initialized():
        yield logger
        return
    handler = logging.FileHandler(log_file(run, shard), encoding="utf-8")
    handler.setFormatter(logging.Formatter(_FORMAT))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield logger
    except BaseException as error:
        logger.warning("failed: %s: %s", type(error).__name__, error)
        raise
    finally:
        logger.removeHandler(handler)
        handler.close()
