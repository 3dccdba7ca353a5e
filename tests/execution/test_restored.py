"""Runs restored from a backup do not remember whom they forgot since; and who may be remembered again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sisa_ray.core.certificate import key_id
from sisa_ray.core.clocks import add_months
from sisa_ray.core.config import SisaConfig
from sisa_ray.core.errors import DataError, RunBehind
from sisa_ray.core.keys import canonical_json
from sisa_ray.core.records import SuppressionLifted
from sisa_ray.execution import commands, desk
from sisa_ray.execution.acceptance import Submission
from sisa_ray.execution.events import ignore
from sisa_ray.execution.forget import plan_batch
from sisa_ray.execution.intake import append_in
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.session import Session
from sisa_ray.execution.verify import verify
from sisa_ray.storage import signing
from sisa_ray.storage.log import CommitLog
from sisa_ray.storage.mirror import check_mirror, missing_tags
from tests.execution.tables import make_config, make_table
from tests.support.inline import InlineWorkers


@pytest.fixture
def config(tmp_path: Path) -> SisaConfig:
    config = make_config(tmp_path, make_table(60), sisa={"num_shards": 2, "num_slices": 2, "epochs": 2})
    commands.train(config, new_workers=InlineWorkers)
    return config


def unlearn(config: SisaConfig, *people: str) -> Any:
    return commands.unlearn(config, people, new_workers=InlineWorkers)


def predict(config: SisaConfig) -> Any:
    assert config.data.test is not None
    out = str(Path(config.storage_path).parent / "answers.parquet")
    return commands.predict(config, config.data.test, out=out, new_workers=InlineWorkers)


def append(config: SisaConfig, name: str, people: list[str]) -> None:
    """Further records, one for each person."""
    table = make_table(len(people), seed=9)
    table = table.set_column(0, "id", pa.array([f"{name}{i}" for i in range(len(people))]))
    table = table.set_column(1, "person", pa.array(people))
    path = Path(config.storage_path).parent / f"{name}.parquet"
    pq.write_table(table, path)
    commands.append(config, str(path), new_workers=InlineWorkers)


def bits(config: SisaConfig) -> dict[Any, tuple[str, str]]:
    state = existing_run(config).state
    return {p: (ref.file_digest, state.slices[p].content_digest) for p, ref in state.stages.items()}


def is_verified(config: SisaConfig) -> bool | None:
    return verify(config, new_workers=InlineWorkers).bit_identical


class Backup:
    """A copy of a run's directory, to be put in its place later."""

    def __init__(self, config: SisaConfig) -> None:
        self._root = Path(config.address)
        self._copy = self._root.with_name("backup")
        shutil.copytree(self._root, self._copy)

    def restore(self) -> None:
        shutil.rmtree(self._root)
        shutil.copytree(self._copy, self._root)


@pytest.fixture
def restored(config: SisaConfig) -> tuple[SisaConfig, dict[Any, Any]]:
    """A run as it was before two people were forgotten, one of whom it never held; and the bits that it had since."""
    unlearn(config, "p30")
    backup = Backup(config)
    unlearn(config, "p1", "nobody")
    unlearn(config, "p2")
    since = bits(config)
    backup.restore()
    return config, since


COMMANDS: dict[str, Callable[[SisaConfig], Any]] = {
    "train": lambda c: commands.train(c, new_workers=InlineWorkers),
    "unlearn": lambda c: unlearn(c, "p3"),
    "unlearn them again": lambda c: unlearn(c, "p1"),
    "predict": predict,
    "verify": lambda c: verify(c, new_workers=InlineWorkers),
    "append": lambda c: append(c, "more", ["p90"]),
    "extend": lambda c: desk.extend(c, "r", "complexity", new_workers=InlineWorkers),
    "lift": lambda c: desk.lift(c, ["p30"], "consent-renewed", new_workers=InlineWorkers),
}


class TestRestored:
    @pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
    def test_is_refused_for_work_and_for_answers(
        self, restored: tuple[SisaConfig, Any], command: Callable[[SisaConfig], Any]
    ) -> None:
        config, _ = restored
        before = bits(config), existing_run(config).head
        with pytest.raises(RunBehind, match=r"before 3 people asked .*`sisa-ray suppression replay"):
            command(config)
        assert (bits(config), existing_run(config).head) == before
        assert not (Path(config.storage_path).parent / "answers.parquet").exists()

    def test_can_be_looked_at_and_asked_to_forget(self, restored: tuple[SisaConfig, Any]) -> None:
        """Whoever asks now must not be turned away because of what others have to mend."""
        config, _ = restored
        status = commands.status(config)
        assert (status.generation, status.complete) == (2, False)
        assert status.next_step is not None
        assert status.next_step.startswith("suppression replay: restored from before 3 people asked")
        assert len(desk.list_requests(config).rows) == 1
        (answer,) = desk.request(config, [Submission(subjects=("p5",))])
        assert answer.state == "accepted"

    def test_forgets_them_again_by_their_tags(self, restored: tuple[SisaConfig, Any]) -> None:
        config, since = restored
        result = desk.replay(config, new_workers=InlineWorkers)
        assert result.num_replayed == 3
        assert bits(config) == since
        assert commands.status(config).complete
        run = existing_run(config)
        check_mirror(run)
        assert set(run.secret.tags(["p1", "p2", "p30", "nobody"])) == set(run.state.suppressed)
        (unknown,) = run.secret.tags(["nobody"])
        assert run.state.unknown == {unknown}
        assert not run.state.requests
        assert list(run.state.closed_batches.values())[-1].certificate is not None
        assert is_verified(config)
        assert predict(config).num_voters == 2

    def test_forgets_them_once(self, restored: tuple[SisaConfig, Any]) -> None:
        config, since = restored
        desk.replay(config, new_workers=InlineWorkers)
        again = desk.replay(config, new_workers=InlineWorkers)
        assert again.num_replayed == 0
        assert bits(config) == since
        assert unlearn(config, "p1").num_already_forgotten == 1

    def test_forgets_them_with_those_who_wait(self, config: SisaConfig) -> None:
        desk.request(config, [Submission(subjects=("p4", "p5"))])
        backup = Backup(config)
        unlearn(config, "p1")
        since = bits(config)
        backup.restore()
        assert desk.replay(config, new_workers=InlineWorkers).num_replayed == 1
        assert bits(config) == since
        assert is_verified(config)

    def test_a_run_that_was_never_behind_replays_nobody(self, config: SisaConfig) -> None:
        unlearn(config, "p1")
        before = bits(config)
        assert desk.replay(config, new_workers=InlineWorkers).num_replayed == 0
        assert bits(config) == before


class TestLifting:
    def test_is_logged_and_signed(self, config: SisaConfig) -> None:
        unlearn(config, "p1", "p2")
        result = desk.lift(config, ["p1", "p1"], "consent-renewed", new_workers=InlineWorkers)
        assert result.num_lifted == 1
        run = existing_run(config)
        tags = run.secret.tags(["p1"])
        records = [r for e in CommitLog(run.store).read() for r in e.records]
        (lifted,) = [r for r in records if isinstance(r, SuppressionLifted)]
        assert (lifted.tags, lifted.reason) == (tuple(tags), "consent-renewed")
        key = signing.load_public(signing.key_file())
        assert lifted.key_id == key_id(key)
        identity = {"run": run.spec.digest, "secret_id": run.spec.secret_id}
        content = canonical_json({**identity, "tags": tags, "reason": "consent-renewed"})
        key.verify(bytes.fromhex(lifted.signature), b"sisa_ray/lift/1\n" + content)
        assert set(run.state.suppressed) == set(run.secret.tags(["p2"]))
        assert missing_tags(run) == []

    def test_leaves_models_and_their_verification_as_they_are(self, config: SisaConfig) -> None:
        """The source has them still; what was trained without them stays so."""
        unlearn(config, "p1", "p2")
        before = bits(config)
        desk.lift(config, ["p1"], "consent-renewed", new_workers=InlineWorkers)
        commands.train(config, new_workers=InlineWorkers)
        assert bits(config) == before
        assert is_verified(config)
        Path(config.data.train).unlink()
        assert is_verified(config)

    def test_lets_later_records_of_theirs_be_learned(self, config: SisaConfig) -> None:
        unlearn(config, "p1", "p2")
        append(config, "before", ["p1", "p2", "p70"])
        desk.lift(config, ["p1"], "consent-renewed", new_workers=InlineWorkers)
        append(config, "after", ["p1", "p2", "p71"])
        state = existing_run(config).state
        assert [a.num_refused for a in state.appended] == [2, 1]
        assert is_verified(config)
        assert unlearn(config, "p1").num_records == 1
        assert is_verified(config)

    def test_a_rejected_request_leaves_out_what_came_meanwhile(self, config: SisaConfig) -> None:
        (asked,) = desk.request(config, [Submission(subjects=("p1",))])
        run = existing_run(config)
        with InlineWorkers() as workers:
            table = make_table(2, seed=9).set_column(0, "id", pa.array(["n0", "n1"]))
            pq.write_table(
                table.set_column(1, "person", pa.array(["p1", "p80"])),
                Path(config.storage_path) / "n.parquet",
            )
            with Session(run, workers, command="test", on_event=ignore) as session:
                append_in(session, table=str(Path(config.storage_path) / "n.parquet"))
                desk.reject_in(session, name=asked.request, reason="withdrawn")
        commands.train(config, new_workers=InlineWorkers)
        assert existing_run(config).state.suppressed == {}
        assert is_verified(config)

    def test_is_refused_for_whom_it_would_mean_nothing(self, config: SisaConfig) -> None:
        unlearn(config, "p1")
        desk.request(config, [Submission(subjects=("p2", "p1"))])
        before = existing_run(config).state
        wrong: dict[str, tuple[list[str], str]] = {
            "not suppressed": (["p9"], "row 0: is not suppressed"),
            "open": (["p2"], "row 0: is named by an open request"),
            "done and open": (["p1"], "row 0: is named by an open request"),
            "nobody": ([], "the list is empty"),
        }
        for people, message in wrong.values():
            with pytest.raises(DataError, match=message):
                desk.lift(config, people, "entered-in-error", new_workers=InlineWorkers)
        after = existing_run(config).state
        assert after.suppressed == before.suppressed
        assert missing_tags(existing_run(config)) == []

    def test_names_the_row_that_the_caller_gave(self, config: SisaConfig) -> None:
        unlearn(config, "p1")
        with pytest.raises(DataError, match="row 2: is not suppressed"):
            desk.lift(config, ["p1", "p1", "p9"], "entered-in-error", new_workers=InlineWorkers)


class TestTheDesk:
    def test_extends_as_far_as_the_law_allows_and_once(self, config: SisaConfig) -> None:
        gdpr, ccpa, custom = desk.request(
            config,
            [
                Submission(subjects=("p1",)),
                Submission(subjects=("p2",), basis="ccpa"),
                Submission(subjects=("p3",), basis="custom"),
            ],
        )
        rows = {r.request: r for r in desk.list_requests(config).rows}
        for answer, due in (
            (gdpr, add_months(rows[gdpr.request].received_at, 3)),
            (ccpa, rows[ccpa.request].received_at + timedelta(days=90)),
        ):
            row = desk.extend(config, answer.request[:12], "complexity", new_workers=InlineWorkers)
            assert (row.request, row.due_at, row.is_extended) == (answer.request, due, True)
            with pytest.raises(DataError, match="was extended before"):
                desk.extend(config, answer.request, "number-of-requests", new_workers=InlineWorkers)
        with pytest.raises(DataError, match="'custom' knows no extension"):
            desk.extend(config, custom.request, "complexity", new_workers=InlineWorkers)
        assert {r.request for r in desk.list_requests(config).rows if r.is_extended} == {
            gdpr.request,
            ccpa.request,
        }

    def test_rejects_what_is_not_begun_and_gives_the_people_back(self, config: SisaConfig) -> None:
        one, two = desk.request(config, [Submission(subjects=("p1", "p2")), Submission(subjects=("p2",))])
        row = desk.reject(config, one.request, "identity-not-verified", new_workers=InlineWorkers)
        assert (row.state, row.seconds_left) == ("rejected", None)
        run = existing_run(config)
        assert set(run.state.suppressed) == set(run.secret.tags(["p2"]))
        assert missing_tags(run) == []
        done = commands.train(config, new_workers=InlineWorkers)
        assert done.stages_built > 0
        rows = {r.request: r.state for r in desk.list_requests(config).rows}
        assert rows == {one.request: "rejected", two.request: "certified"}
        assert unlearn(config, "p1").num_forgotten == 1
        assert is_verified(config)

    def test_rejects_nothing_that_is_being_carried_out(self, config: SisaConfig) -> None:
        (answer,) = desk.request(config, [Submission(subjects=("p1",))])
        run = existing_run(config)
        run.commit(plan_batch(run, (answer.request,)))
        with pytest.raises(DataError, match="is being carried out already"):
            desk.reject(config, answer.request, "withdrawn", new_workers=InlineWorkers)
        assert desk.extend(config, answer.request, "complexity", new_workers=InlineWorkers).is_extended

    def test_names_of_requests_must_say_which(self, config: SisaConfig) -> None:
        closed = unlearn(config, "p30").request
        names = [
            a.request for a in desk.request(config, [Submission(subjects=(f"p{i}",)) for i in range(17)])
        ]
        shared = next(c for c in "0123456789abcdef" if sum(name.startswith(c) for name in names) > 1)
        wrong = {
            "": "is not open",
            "zzz": "is not open",
            closed: "is not open",
            shared: "beginning of several",
        }
        for name, message in wrong.items():
            with pytest.raises(DataError, match=message):
                desk.reject(config, name, "withdrawn", new_workers=InlineWorkers)
            with pytest.raises(DataError, match=message):
                desk.extend(config, name, "complexity", new_workers=InlineWorkers)
        assert len(existing_run(config).state.requests) == 17
