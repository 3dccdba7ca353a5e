"""Deletions that do not take effect: the batch stays open, loudly, until what must be gone is gone."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.errors import PurgeIncomplete, StorageDenied
from sisa_ray.core.records import BatchCertified, BatchClosed, Purged, PurgeFailed
from sisa_ray.core.step import Moment, step
from sisa_ray.execution import commands, desk, evidence
from sisa_ray.execution.acceptance import Submission
from sisa_ray.execution.events import Event, Notice
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.session import Session
from sisa_ray.execution.verify import verify
from sisa_ray.storage.local import LocalStore
from sisa_ray.storage.log import CommitLog
from tests.execution.tables import make_config, make_table
from tests.support.inline import InlineWorkers

Patch = pytest.MonkeyPatch


@pytest.fixture
def config(tmp_path: Path, monkeypatch: Patch) -> SisaConfig:
    monkeypatch.setattr("sisa_ray.storage.purge.purge.__kwdefaults__", {"sleep": lambda seconds: None})
    config = make_config(tmp_path, make_table(60), sisa={"num_shards": 2, "num_slices": 2, "epochs": 2})
    commands.train(config, new_workers=InlineWorkers)
    return config


def unlearn(config: SisaConfig, *people: str) -> Any:
    return commands.unlearn(config, people, new_workers=InlineWorkers)


def take_no_effect(patch: Patch) -> None:
    """Deletion says that it worked, and did not: a bucket with object lock, or a mount that lies."""
    patch.setattr(LocalStore, "delete", lambda self, paths: list(paths))


def be_denied(patch: Patch) -> None:
    def deny(self: LocalStore, paths: Iterable[str]) -> None:
        if list(paths):
            raise StorageDenied(f"{self.url}: no permission to delete")

    patch.setattr(LocalStore, "delete", deny)


def logged(config: SisaConfig, *types: type) -> list[Any]:
    entries = CommitLog(existing_run(config).store).read()
    return [record for entry in entries for record in entry.records if isinstance(record, types)]


@pytest.mark.parametrize(
    ("fail", "error", "message"),
    [
        (take_no_effect, PurgeIncomplete, "are still there after deletion"),
        (be_denied, StorageDenied, "no permission to delete"),
    ],
)
def test_keep_the_batch_open_until_they_work(
    config: SisaConfig, monkeypatch: Patch, fail: Any, error: type[Exception], message: str
) -> None:
    with monkeypatch.context() as patch:
        fail(patch)
        with pytest.raises(error, match=message):
            unlearn(config, "p1")
        with pytest.raises(error, match=message):
            commands.train(config, new_workers=InlineWorkers)
    run = existing_run(config)
    (batch,) = run.state.batches
    (asked,) = run.state.requests.values()
    assert run.state.request_state(asked) == "purging"
    assert run.state.generation == 2  # what answers does not know them any more
    status = commands.status(config)
    assert (status.purge_due, status.open_requests, status.complete) == (True, 1, False)
    assert status.purge_trouble is not None
    assert message in status.purge_trouble
    assert desk.list_requests(config).purge_trouble == status.purge_trouble
    assert run.state.purge_trouble is not None
    assert run.state.purge_trouble.num_tries == 2
    assert evidence.certificates(config).rows == ()
    assert not logged(config, BatchClosed, BatchCertified)

    unlearn(config, "p2")
    after = commands.status(config)
    assert (after.purge_trouble, after.purge_due, after.open_requests) == (None, False, 0)
    order = [type(r) for r in logged(config, PurgeFailed, Purged, BatchClosed, BatchCertified)]
    first = order.index(PurgeFailed)
    assert order[first : first + 3] == [PurgeFailed, PurgeFailed, Purged]
    assert set(order[:first]) <= {Purged}
    assert order[-2:] == [BatchCertified, BatchCertified]
    assert batch in [row.batch for row in evidence.certificates(config).rows]
    assert verify(config, new_workers=InlineWorkers).bit_identical


def test_leave_the_person_out_of_storage_in_the_end(config: SisaConfig, monkeypatch: Patch) -> None:
    with monkeypatch.context() as patch:
        take_no_effect(patch)
        with pytest.raises(PurgeIncomplete):
            unlearn(config, "p1")
    root = Path(config.address)
    payload = [p for p in (root / "requests").iterdir() if b'"p1"' in p.read_bytes()]
    assert payload, "it could not be deleted"
    commands.train(config, new_workers=InlineWorkers)
    assert not [p for p in root.rglob("*") if p.is_file() and b'"p1"' in p.read_bytes()]


def test_are_tried_again_ever_more_seldom_by_whoever_has_a_clock(
    config: SisaConfig, monkeypatch: Patch
) -> None:
    """A coordinator goes on with other work meanwhile, and says what is wrong."""
    desk.request(config, [Submission(subjects=("p1",))])
    run = existing_run(config)
    now = run.now()
    run.log.now = lambda: now
    notices: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, Notice):
            notices.append(event.text)

    pauses = []
    with (
        InlineWorkers() as workers,
        Session(
            run, workers, command="test", on_event=note, moment=lambda: Moment(now=now, num_slots=1)
        ) as session,
    ):
        with monkeypatch.context() as patch:
            take_no_effect(patch)
            for _ in range(12):
                session.reconcile(train=False)
                trouble = run.state.purge_trouble
                assert trouble is not None
                pauses.append((trouble.retry_at - now).total_seconds())
                assert trouble.num_tries == len(pauses)
                head = run.head
                now = trouble.retry_at - timedelta(seconds=1)
                session.reconcile(train=False)
                assert run.head == head, "nothing before its time"
                if len(pauses) == 3:
                    session.accept(Submission(subjects=("p2",)))
                    session.reconcile(train=False)
                    assert len(run.state.batches) == 2
                now = trouble.retry_at
        assert pauses == [min(30.0 * 2**i, 6 * 3600.0) for i in range(12)]
        assert len(notices) == 12
        assert "trying again in 30 s" in notices[0]
        session.reconcile(train=False)
    assert run.state.purge_trouble is None
    assert not run.state.batches
    assert [row.num_requests for row in evidence.certificates(config).rows] == [1, 1]
    assert step(run.spec, run.state, train=False) is None
