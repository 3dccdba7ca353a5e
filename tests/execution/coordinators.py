"""Coordinators of small runs, for the tests: in this process, and what their logs say afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.errors import SisaError
from sisa_ray.core.tokens import Tokens
from sisa_ray.execution import commands, desk, hosting
from sisa_ray.execution.acceptance import Acceptance, Submission
from sisa_ray.execution.coordinator import Coordinator
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.workers import NewWorkers
from sisa_ray.storage.log import CommitLog
from tests.execution.tables import make_config, make_table
from tests.support.inline import InlineWorkers

SISA = {"num_shards": 2, "num_slices": 2, "epochs": 1}


def trained(directory: Path, **changes: Any) -> SisaConfig:
    config = make_config(directory, make_table(40), sisa=SISA, **changes)
    commands.train(config, new_workers=InlineWorkers)
    return config


@contextmanager
def running(
    config: SisaConfig, new_workers: NewWorkers = InlineWorkers, tokens: Callable[[], Tokens] | None = None
) -> Iterator[Coordinator]:
    one = Coordinator(config.address, tasks=hosting.TASKS, new_workers=new_workers, tokens=tokens)
    one.start()
    try:
        yield one
    finally:
        one.stop()


def eventually(condition: Callable[[], Any], within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def ask(*subjects: str, **fields: Any) -> Submission:
    return Submission(subjects=subjects, **fields)


def names(answers: Sequence[Acceptance | SisaError]) -> list[str]:
    assert all(isinstance(answer, Acceptance) for answer in answers), answers
    return [answer.request for answer in answers if isinstance(answer, Acceptance)]


def logged(config: SisaConfig, kind: type) -> list[tuple[int, Any]]:
    """Records of a kind, with the numbers of their entries."""
    entries = CommitLog(existing_run(config).store).read()
    return [(e.head.seq, record) for e in entries for record in e.records if isinstance(record, kind)]


def states(config: SisaConfig) -> list[str]:
    return sorted(row.state for row in desk.list_requests(config).rows)


def error_of(future: Future[Any]) -> str:
    error = future.exception(timeout=30)
    assert isinstance(error, SisaError)
    return str(error)
