"""The commands for tokens: secrets are shown once, and what is refused changes nothing."""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sisa_ray.core.bearer import ROLES
from sisa_ray.core.tokens import Verdict
from sisa_ray.service.cli import app
from sisa_ray.service.token_commands import RoleName
from sisa_ray.storage import tokens as storage


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(storage.VARIABLE, str(tmp_path / "tokens.json"))
    return tmp_path / "tokens.json"


def invoke(*args: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["token", *args], prog_name="sisa-ray")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stdout, result.stderr


def document(*args: str, code: int = 0) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(invoke(*args, "--json", code=code)[0])
    return loaded


def make(*args: str) -> dict[str, Any]:
    return document("create", "--name", "web-shop", "--role", "predict", *args)


def verdict(made: dict[str, Any], *, after: timedelta = timedelta(0)) -> Verdict:
    return storage.load().judge(made["bearer"], datetime.now(UTC) + after)[0]


def test_the_roles_are_those_of_tokens() -> None:
    assert [r.value for r in RoleName] == list(ROLES)


def test_a_token_is_made_with_its_roles_and_its_end() -> None:
    made = make("--role", "read", "--expires-in", "90d")
    assert made["token"]["roles"] == ["predict", "read"]
    times = [datetime.fromisoformat(made["token"][t]) for t in ("created_at", "expires_at")]
    assert times[1] - times[0] == timedelta(days=90)
    assert verdict(made) is Verdict.VALID
    assert verdict(made, after=timedelta(days=91)) is Verdict.EXPIRED
    assert make()["token"]["expires_at"] is None


def test_people_get_the_token_on_a_line_of_its_own() -> None:
    out, err = invoke("create", "--name", "a", "--role", "operate")
    bearer = out.splitlines()[-1]
    assert verdict({"bearer": bearer}) is Verdict.VALID
    assert "valid until revoked" in out
    assert err == ""


def test_secrets_are_shown_once_and_never_logged(caplog: pytest.LogCaptureFixture, file: Path) -> None:
    caplog.set_level(logging.DEBUG)
    made = make()
    rotated = document("rotate", made["token"]["id"], "--keep-old-for", "10m")
    shown = "".join(
        [*invoke("list"), *invoke("list", "--json"), *invoke("revoke", made["token"]["id"]), caplog.text]
    )
    digests = re.findall(r'"secret_sha256": "(.*)"', file.read_text())
    for secret in (made["bearer"][14:], rotated["bearer"][14:], *digests):
        assert secret not in shown
    assert rotated["bearer"][14:] not in file.read_text()


def test_the_list_tells_ids_names_roles_and_ends() -> None:
    assert invoke("list")[0].startswith("no tokens in ")
    made = make("--expires-in", "2h")["token"]
    new = document("rotate", made["id"])["token"]
    out, _ = invoke("list")
    assert re.search(rf"{made['id']}  web-shop  predict  .*expired, replaced by {new['id']}", out)
    assert re.search(rf"{new['id']}  web-shop  predict  ", out)
    rows = document("list")["tokens"]
    assert [(r["id"], r["has_expired"]) for r in rows] == [(made["id"], True), (new["id"], False)]


def test_both_are_valid_for_the_overlap_of_a_rotation() -> None:
    made = make("--expires-in", "1d")
    rotated = document("rotate", made["token"]["id"], "--keep-old-for", "10m")
    assert rotated["token"]["roles"] == ["predict"]
    assert rotated["replaces"]["id"] == made["token"]["id"]
    assert verdict(made) is verdict(rotated) is Verdict.VALID
    assert verdict(made, after=timedelta(minutes=11)) is Verdict.EXPIRED
    assert verdict(rotated, after=timedelta(minutes=11)) is Verdict.VALID


def test_without_an_overlap_the_old_one_ends_at_once() -> None:
    made = make()
    out, _ = invoke("rotate", made["token"]["id"])
    assert f"it replaces {made['token']['id']}, which ends at " in out
    assert verdict(made) is Verdict.EXPIRED
    assert verdict({"bearer": out.splitlines()[-1]}) is Verdict.VALID


def test_what_is_revoked_opens_nothing_and_what_stays_valid_is_told() -> None:
    made = make()
    rotated = document("rotate", made["token"]["id"], "--keep-old-for", "1h")
    out, err = invoke("revoke", rotated["token"]["id"])
    assert out == f"token {rotated['token']['id']} is revoked\n"
    assert f"still valid: {made['token']['id']}" in err
    assert (verdict(rotated), verdict(made)) == (Verdict.UNKNOWN, Verdict.VALID)
    assert document("revoke", made["token"]["id"])["still_valid"] == []
    assert verdict(made) is Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["create", "--name", "a b", "--role", "read"], "name: must be 1 to 64 letters, digits and . _ -"),
        (["create", "--name", "", "--role", "read"], "name: must be 1 to 64 letters, digits and . _ -"),
        (["create", "--name", "a", "--role", "read", "--expires-in", "90"], "--expires-in: must be a number"),
        (["create", "--name", "a", "--role", "read", "--expires-in", "0d"], "--expires-in: must be a number"),
        (["create", "--name", "a", "--role", "read", "--expires-in", "99999w"], "at most ten years"),
        (["create", "--name", "a", "--role", "read", "--expires-in", "1.5h"], "not '1.5h'"),
        (["create", "--name", "a", "--role", "read", "--expires-in", "-1d"], "not '-1d'"),
        (["rotate", "ID", "--keep-old-for", "soon"], "--keep-old-for: must be a number with s, m, h, d or w"),
        (["rotate", "ffffffff"], "id: 'ffffffff' is no token's id"),
        (["revoke", "ffffffff"], "`sisa-ray token list` lists them"),
        (["revoke", ""], "id: '' is no token's id"),
    ],
)
def test_bad_input_changes_nothing(file: Path, args: list[str], message: str) -> None:
    made = make()
    before = file.stat().st_mtime_ns, file.read_bytes()
    words = [made["token"]["id"] if arg == "ID" else arg for arg in args]
    out, err = invoke(*words, code=2)
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert message in document(*words, code=2)["error"]["message"]
    assert (file.stat().st_mtime_ns, file.read_bytes()) == before


def test_an_unknown_role_is_told_with_those_there_are(file: Path) -> None:
    _, err = invoke("create", "--name", "a", "--role", "admin", code=2)
    assert all(role in err for role in ROLES)
    invoke("create", "--name", "a", code=2)
    assert not file.exists()


def test_a_whole_token_given_for_an_id_is_not_repeated() -> None:
    bearer = make()["bearer"]
    for command in ("rotate", "revoke"):
        _, err = invoke(command, bearer, code=2)
        assert "a whole token is no token's id" in err
        assert bearer[14:] not in err


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (None, 0o644, "chmod 600"),
        ('{"version": 2}', 0o600, "newer sisa_ray (version 2; this one reads 1)"),
        ('{"version": 1, "tokens": 7}', 0o600, "tokens: must be a list of tokens"),
        ("nonsense", 0o600, "is not JSON"),
    ],
)
def test_a_file_that_cannot_be_used_is_left_as_it_is(
    file: Path, content: str | None, mode: int, message: str
) -> None:
    token_id = make()["token"]["id"]
    if content is not None:
        file.write_text(content)
    file.chmod(mode)
    before = file.stat(), file.read_bytes()
    for args in (
        ["create", "--name", "a", "--role", "read"],
        ["list"],
        ["rotate", token_id],
        ["revoke", token_id],
    ):
        _, err = invoke(*args, code=2)
        assert err.startswith(f"error: {file}: ")
        assert message in err
    assert (file.stat().st_mtime_ns, file.read_bytes()) == (before[0].st_mtime_ns, before[1])
