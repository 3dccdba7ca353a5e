"""Where a purge looks: below the shards that a batch has changed, and everywhere as long as anything may lie there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sisa_ray.core.errors import StateMoved
from sisa_ray.core.partition import place
from sisa_ray.core.planner import layouts_of
from sisa_ray.execution import commands, session
from sisa_ray.execution import forget as forgetting
from sisa_ray.execution.acceptance import Submission
from sisa_ray.execution.events import ignore
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.session import SWEEP_S, Session
from sisa_ray.storage.run import Run
from tests.execution.tables import make_config, make_table
from tests.support.inline import InlineWorkers

NUM_SHARDS = 9


@pytest.fixture
def at_work(tmp_path: Path) -> Iterator[Session]:
    """A session that has trained a run, looked everywhere once, and goes on."""
    config = make_config(
        tmp_path, make_table(80), sisa={"num_shards": NUM_SHARDS, "num_slices": 2, "epochs": 1}
    )
    commands.train(config, new_workers=InlineWorkers)
    with (
        InlineWorkers() as workers,
        Session(existing_run(config), workers, command="test", on_event=ignore) as session,
    ):
        forget(session, "p0")
        yield session


def forget(session: Session, *people: str) -> None:
    session.accept(Submission(subjects=people))
    session.reconcile(train=False)
    assert not session.run.state.requests
    assert not session.run.state.uncertified


def shard_of(run: Run, person: str) -> int:
    return int(place([person], layouts_of(run.spec, run.state)[0])[0][0])


def strays(run: Run, shard: int) -> list[str]:
    """Leave objects that nothing names, of every kind that a shard has."""
    at = f"shard={shard:05d}"
    digest = "0" * 64
    paths = [
        f"data/{at}/slice=0001/late/0000000000000000.parquet",
        f"checkpoints/{at}/stage=0001/late/0000000000000000/state.safetensors",
        f"checkpoints/{at}/stage=0001/late/partial-{digest}-0000000001-{digest}.safetensors",
        f"features/{at}/slice=0001/late/{digest}-{'0' * 16}-00000-{digest}.safetensors",
    ]
    for path in paths:
        run.store.put(path, b"somebody")
    return paths


def left(run: Run, paths: list[str]) -> list[str]:
    return [path for path in paths if run.store.exists(path)]


def test_below_what_a_batch_has_changed_and_beside_the_shards(at_work: Session) -> None:
    run = at_work.run
    shard = shard_of(run, "p1")
    here, elsewhere = strays(run, shard), strays(run, (shard + 1) % NUM_SHARDS)
    beside = ["requests/late.json", "scratch/late/rows"]
    for path in beside:
        run.store.put(path, b"somebody")
    forget(at_work, "p1")
    assert left(run, here + beside) == []
    assert left(run, elsewhere) == elsewhere  # nobody of this batch can be in them
    assert at_work.sweep()
    assert left(run, elsewhere) == []
    assert not at_work.sweep()


def test_everywhere_for_somebody_whom_no_slice_holds(at_work: Session) -> None:
    paths = strays(at_work.run, 1)
    forget(at_work, "a stranger")
    assert left(at_work.run, paths) == []


@pytest.mark.parametrize("why", ["a session begins", "nobody looked for a while", "a commit was refused"])
def test_everywhere_as_long_as_anything_may_lie_there(
    at_work: Session, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    run = at_work.run
    shard = shard_of(run, "p1")
    if why == "a session begins":
        at_work.__exit__(None, None, None)
        at_work = Session(run, at_work.workers, command="test", on_event=ignore).__enter__()
    elif why == "nobody looked for a while":
        monkeypatch.setattr(session, "SWEEP_S", SWEEP_S - time.monotonic() - 1e6)
    else:
        plain = forgetting.rewrite_slices
        refused: list[str] = []

        def rewrite_slices(run: Run, batch: str, *, attempt: str) -> object:
            if not refused:
                refused.append(batch)
                raise StateMoved("others wrote")
            return plain(run, batch, attempt=attempt)

        monkeypatch.setattr(session, "rewrite_slices", rewrite_slices)
    paths = strays(run, (shard + 1) % NUM_SHARDS)
    forget(at_work, "p1")
    assert left(run, paths) == []


def test_what_a_session_left_undone_is_swept_by_the_next(at_work: Session) -> None:
    run = at_work.run
    paths = strays(run, 1)
    at_work.__exit__(RuntimeError, RuntimeError("lost"), None)
    assert run.state.attempt is not None
    with Session(run, at_work.workers, command="test", on_event=ignore) as successor:
        assert run.state.purge_shards is None
        successor.reconcile(train=False)
        assert left(run, paths) == []
