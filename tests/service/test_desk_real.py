"""The privacy desk's day on a real small run: what is asked for, done, certified and checked, and how it reads."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Group, RenderableType
from rich.text import Text

from sisa_ray.core.config import SisaConfig
from sisa_ray.execution import commands
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.results import RequestRow, RequestsResult
from sisa_ray.service import render, render_desk
from sisa_ray.storage.local import LocalStore
from tests.service.small_runs import PEOPLE, configure, document, invoke, living_in, public_key
from tests.service.standins import status_result

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def config(tmp_path: Path) -> SisaConfig:
    """A run with its table, not trained yet."""
    config = configure(tmp_path)
    commands.ingest(config)
    return config


def ago(**times: float) -> str:
    return (datetime.now(UTC) - timedelta(**times)).isoformat(timespec="seconds")


def states(run: str) -> list[str]:
    return [row["state"] for row in document("requests", run)["rows"]]


def test_a_request_is_accepted_carried_out_certified_and_checked(config: SisaConfig, tmp_path: Path) -> None:
    run = config.address
    invoke("train", run)
    assert invoke("requests", run) == ("no requests\n", "")
    assert invoke("certificate", "list", run) == ("no batch is certified yet\n", "")
    someone, other, another = living_in(config, 1)[:3]

    text, _ = invoke("request", run, someone, "nobody", "--key", "ticket-1", "--received-at", ago(days=3))
    assert text.startswith("accepted 1 request\n")
    assert "  accepted  2 " in text
    again, _ = invoke("request", run, someone, "nobody", "--key", "ticket-1")
    assert again.startswith("accepted 0 requests; 1 request had been made before\n")
    assert invoke("request", run, other, someone, "--key", "ticket-1", code=2)[1].startswith(
        "error: idempotency_key: was used for request "
    )
    assert states(run) == ["accepted"]
    text, _ = invoke("requests", run)
    assert " gdpr " in text
    assert any(f" {days} d " in text for days in range(24, 28)), text  # a month less three days
    assert "next: train: finishes what an earlier command began" in invoke("status", run)[0]

    invoke("unlearn", run, other)
    assert states(run) == ["certified", "certified"]
    text, _ = invoke("requests", run)
    assert "2 (1 unknown)" in text
    assert text.count(" closed ") == 2
    assert invoke("requests", run, "--open") == ("no requests\n", "")

    invoke("request", run, another, "--urgent")
    invoke("train", run)
    assert states(run) == ["certified"] * 3

    certificate, receipt, segment = (str(tmp_path / n) for n in ("certificate", "receipt", "segment"))
    assert invoke("certificate", "fetch", run, "--out", certificate) == (f"written to {certificate}\n", "")
    invoke("certificate", "receipt", run, another, "--out", receipt)
    text, _ = invoke("log", run, "--export", segment)
    assert text == f"{len(Path(segment).read_bytes().splitlines())} entries written to {segment}\n"
    verify = ["certificate", "verify", "--public-key", public_key()]
    text, err = invoke(*verify, certificate, "--log", segment, "--replay", run)
    batch = json.loads(Path(certificate).read_bytes())["batch"]
    assert text == (
        f"certificate of batch {batch[:8]} of run 'run'\n"
        "checked: form, signature, paths, log, replay: valid\n"
        "replay: bit-identical\n"
    )
    assert "training from scratch" in err
    shown = document(*verify, certificate, "--log", segment, "--replay", run)
    assert (shown["valid"], shown["replay"]["outcome"]) == (True, "bit-identical")
    assert shown["checked"] == ["form", "signature", "paths", "log", "replay"]
    text, _ = invoke(*verify, receipt, "--certificate", certificate)
    assert text.startswith(f"receipt of batch {batch[:8]} of run 'run'\n")

    rows = document("certificate", "list", run)["rows"]
    assert [row["num_requests"] for row in rows] == [1, 2]
    text, _ = invoke("certificate", "list", run)
    assert f"{batch[:8]}  " in text
    first = str(tmp_path / "first")
    invoke("certificate", "fetch", run, "--out", first, "--batch", rows[1]["batch"][:8])
    assert document(*verify, first)["batch"] == rows[1]["batch"]
    text, _ = invoke("log", run)
    assert re.search(rf"batch certified +batch {batch[:12]}  path certificates/{batch}", text)
    assert "request accepted" in text


def test_each_subject_may_have_a_request_of_their_own(config: SisaConfig, tmp_path: Path) -> None:
    file = tmp_path / "leavers.txt"
    file.write_text("\n".join([*PEOPLE[:3], f" {PEOPLE[3]}"]), encoding="utf-8")
    call = ["request", config.address, "--subjects-file", str(file), "--each", "--basis", "ccpa"]
    text, err = invoke(*call)
    assert text.startswith("accepted 4 requests\n")
    assert "spaces around the subject count as part of it (lines 4)" in err
    rows = document("requests", config.address)["rows"]
    assert [(row["num_subjects"], row["basis"]) for row in rows] == [(1, "ccpa")] * 4
    assert all(44 * 86_400 < row["seconds_left"] <= 45 * 86_400 for row in rows)


def test_a_request_that_came_late_says_so(config: SisaConfig) -> None:
    text, _ = invoke("request", config.address, PEOPLE[0], "--received-at", ago(days=50, hours=3))
    assert " overdue: it runs at once\n" in text
    text, _ = invoke("requests", config.address)
    assert any(f"  {days} d " in text and " h late\n" in text for days in range(19, 23)), text
    assert document("requests", config.address)["rows"][0]["was_overdue"]


def test_clocks_are_extended_once_and_requests_rejected_in_time(config: SisaConfig) -> None:
    run = config.address
    (asked,) = document("request", run, PEOPLE[0], "--received-at", "2026-01-31T10:00Z")["requests"]
    assert asked["due_at"].startswith("2026-02-28T10:00")
    text, _ = invoke("extend", run, asked["request"][:8], "--reason", "complexity")
    assert text == f"request {asked['request'][:8]}: accepted, due 2026-04-30\n"
    assert " gdpr extended " in invoke("requests", run)[0]
    _, err = invoke("extend", run, asked["request"][:8], "--reason", "complexity", code=2)
    assert err == (
        f"error: request {asked['request'][:8]}: was extended before; the law knows one extension\n"
    )
    (custom,) = document("request", run, PEOPLE[1], "--basis", "custom")["requests"]
    _, err = invoke("extend", run, custom["request"], "--reason", "complexity", code=2)
    assert err == "error: basis: 'custom' knows no extension; only gdpr and ccpa do\n"

    text, _ = invoke("reject", run, custom["request"], "--reason", "identity-not-verified")
    assert text.startswith(f"request {custom['request'][:8]}: rejected, due ")
    _, err = invoke("reject", run, custom["request"], "--reason", "withdrawn", code=2)
    assert "is not open, or not of this run; `sisa-ray requests RUN` lists them" in err
    assert [row["state"] for row in document("requests", run, "--open")["rows"]] == ["accepted"]
    text, _ = invoke("log", run)
    assert f"request {asked['request'][:12]}  due_at 2026-04-30T10:00:00Z  reason complexity" in text
    invoke("train", run)
    assert sorted(states(run)) == ["certified", "rejected"]


def test_suppressions_are_replayed_after_a_restore_and_lifted_for_a_reason(
    config: SisaConfig, tmp_path: Path
) -> None:
    run = config.address
    invoke("train", run)
    shutil.copytree(run, tmp_path / "backup")
    invoke("unlearn", run, PEOPLE[0], PEOPLE[1])
    assert invoke("suppression", "replay", run)[0] == "the run knows everybody in the mirror; nothing to do\n"
    shutil.rmtree(run)
    shutil.copytree(tmp_path / "backup", run)
    _, err = invoke("train", run, code=2)
    assert "sisa-ray suppression replay" in err
    text, _ = invoke("suppression", "replay", run)
    assert text == "replayed 2 suppressions; generation 2 is published\n"
    assert states(run) == ["certified"]
    invoke("verify", run)

    lift = ["suppression", "lift", run, "--reason", "consent-renewed"]
    _, err = invoke(*lift, PEOPLE[0], PEOPLE[5], code=2)
    assert err == "error: subjects: row 1: is not suppressed in this run; nothing was lifted\n"
    text, _ = invoke(*lift, PEOPLE[0])
    assert text == "lifted 1 suppression; a later ingest may learn from them again\n"
    assert "1 subject asked to be forgotten" in invoke("status", run)[0]
    tag = existing_run(run).secret.tags([PEOPLE[0]])[0]
    assert re.search(rf"suppression lifted +tags {tag[:12]}  reason consent-renewed", invoke("log", run)[0])


@pytest.fixture
def _no_deletion(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Deletion says that it worked, and did not."""
    monkeypatch.setattr("sisa_ray.storage.purge.purge.__kwdefaults__", {"sleep": lambda seconds: None})
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "delete", lambda self, paths: list(paths))
        yield


@pytest.mark.usefixtures("_no_deletion")
def test_a_purge_in_trouble_is_told_by_status_and_requests(config: SisaConfig) -> None:
    invoke("request", config.address, PEOPLE[0])
    _, err = invoke("train", config.address, code=4)
    assert "are still there after deletion" in err
    for command in ("status", "requests"):
        text, _ = invoke(command, config.address)
        (line,) = (line for line in text.splitlines() if line.startswith("purge: "))
        assert "are still there after deletion" in line
    assert states(config.address) == ["purging"]
    assert ", purge due\n" in invoke("status", config.address)[0]


def styles(shown: RenderableType) -> dict[str, str]:
    """The lines of a group that are in one style."""
    assert isinstance(shown, Group)
    return {part.plain: str(part.style) for part in shown.renderables if isinstance(part, Text)}


def test_a_purge_in_trouble_is_bold_and_red() -> None:
    in_trouble = status_result(purge_trouble="3 objects are still there", purge_due=True)
    assert styles(render.status_text(in_trouble))["purge: 3 objects are still there"] == "bold red"
    assert not [line for line in styles(render.status_text(status_result())) if line.startswith("purge: ")]


def row(seconds_left: float | None) -> RequestRow:
    now = datetime(2026, 5, 31, 12, tzinfo=UTC)
    return RequestRow(
        request="0123456789abcdef" * 2,
        state="fenced" if seconds_left is not None else "certified",
        num_subjects=1200,
        num_unknown=0,
        basis="gdpr",
        priority="normal",
        received_at=now,
        accepted_at=now,
        fenced_at=now,
        due_at=now,
        closed_at=None if seconds_left is not None else now,
        is_extended=False,
        was_overdue=False,
        seconds_left=seconds_left,
        batch=None,
        certificate=None,
    )


@pytest.mark.parametrize(
    ("seconds", "text", "style"),
    [
        (86_400 * 30.0, "30 d 0 h", ""),
        (86_400 * 2 - 1.0, "1 d 23 h", ""),
        (3599.0, "0 d 0 h", ""),
        (0.0, "0 d 0 h", ""),
        (-1.0, "0 d 0 h late", "bold red"),
        (-86_400 * 3 - 7200.0, "3 d 2 h late", "bold red"),
        (None, "closed", ""),
    ],
)
def test_time_left_in_words(seconds: float | None, text: str, style: str) -> None:
    result = RequestsResult(
        address="/runs/r", now=datetime(2026, 5, 31, 12, tzinfo=UTC), rows=(row(seconds),), purge_trouble=None
    )
    shown = render_desk.requests_text(result)
    assert isinstance(shown, Group)
    table = shown.renderables[0]
    (cell,) = list(table.columns[6].cells)  # type: ignore[union-attr]
    assert isinstance(cell, Text)
    assert (cell.plain, str(cell.style)) == (text, style)
