"""The commands for requests, evidence and coordinators: their documents and exit codes, and whom they name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sisa_ray.execution import evidence
from sisa_ray.execution.results import ReplayVerification
from tests.service.small_runs import NAME, PEOPLE, World, document, files, invoke, refused

pytestmark = pytest.mark.usefixtures("alone")


def in_a_process(*calls: list[str]) -> subprocess.CompletedProcess[str]:
    """Commands in an interpreter that has neither Ray nor torch nor pyarrow."""
    program = (
        "import sys\n"
        "for name in ('ray', 'torch', 'pyarrow', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "from sisa_ray.service.cli import app\n"
        f"for call in {calls!r}:\n"
        "    sys.stdout = sys.__stdout__\n"
        "    app(call, standalone_mode=False)\n"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_a_file_is_checked_and_shown_where_ray_and_torch_are_not_installed(world: World) -> None:
    verify = ["certificate", "verify", "--public-key", world.key]
    done = in_a_process(
        [*verify, world.certificate],
        [*verify, world.certificate, "--log", world.segment, "--json"],
        [*verify, world.receipt, "--certificate", world.certificate],
        ["certificate", "show", world.certificate],
        ["certificate", "show", world.receipt],
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "checked: form, signature, paths: valid" in done.stdout
    assert '"valid": true' in done.stdout
    assert "checked: form, signature, paths, certificate: valid" in done.stdout
    assert "does_not_prove" in done.stdout
    assert "subjects_root" in done.stdout


def calls(world: World) -> list[list[str]]:
    """A call of every command that reads, or that fails where there is no cluster."""
    verify = ["certificate", "verify", "--public-key", world.key]
    return [
        ["requests", world.address],
        ["requests", world.address, "--open"],
        ["log", world.address],
        ["log", world.address, "--from", "3", "--to", "5"],
        ["suppression", "replay", world.address],
        ["certificate", "list", world.address],
        ["certificate", "show", world.certificate],
        ["certificate", "show", world.receipt],
        [*verify, world.certificate],
        [*verify, world.certificate, "--log", world.segment],
        [*verify, world.receipt, "--certificate", world.certificate],
        ["coordinator", "stop", world.address],
        ["coordinator", "status", world.address],
        ["status", world.address],
    ]


def test_json_is_one_document_and_text_ends_in_a_line(world: World, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    written = [
        ["log", world.address, "--export", out],
        ["certificate", "fetch", world.address, "--out", out],
        ["certificate", "receipt", world.address, world.forgotten, "--out", out],
    ]
    for call in [*calls(world), *written]:
        if call[:2] == ["suppression", "replay"]:
            continue  # it carries out the request that is to stay open
        assert document(*call), call
        text, err = invoke(*call)
        assert text.strip(), call
        assert text.endswith("\n")
        assert err == ""


def test_a_coordinator_needs_a_cluster(world: World) -> None:
    message = refused(world.address, "coordinator", "start", world.address, code=6)
    assert "no Ray cluster is running that would outlive this command" in message
    assert "start one (`ray start --head`), or set RAY_ADDRESS" in message
    assert document("coordinator", "status", world.address) == {"running": False, "sign": None}
    assert document("coordinator", "stop", world.address) == {"stopped": False}
    assert "no coordinator of this run is within reach" in invoke("coordinator", "stop", world.address)[0]


class TestExitCodes:
    def test_3_where_it_is_superseded(self, world: World) -> None:
        call = ["certificate", "verify", world.superseded, "--public-key", world.key]
        shown = document(*call, "--replay", world.address, code=3)
        assert shown["valid"]
        assert shown["replay"]["outcome"] == "superseded"
        text, _ = invoke(*call, "--replay", world.address, code=3)
        later = json.loads(Path(world.certificate).read_bytes())["batch"][:8]
        assert f"shard 1: superseded by batch {later}; it cannot be replayed any more" in text

    @pytest.mark.parametrize(
        ("outcome", "code", "valid"), [("different", 1, False), ("not comparable", 3, True)]
    )
    def test_others_of_a_replay(
        self, world: World, monkeypatch: pytest.MonkeyPatch, outcome: Any, code: int, valid: bool
    ) -> None:
        found = ReplayVerification(
            address=world.address,
            batch="b",
            shards=(),
            outcome=outcome,
            first_difference="shard 1 stage 2: here",
            source="slices",
        )
        monkeypatch.setattr(evidence, "replay_certificate", lambda *args, **kwargs: found)
        call = ["certificate", "verify", world.certificate, "--public-key", world.key, "--replay", "x"]
        assert document(*call, code=code)["valid"] is valid
        text, _ = invoke(*call, code=code)
        assert f"replay: {outcome}\nfirst difference: shard 1 stage 2: here\n" in text

    def test_1_where_it_does_not_hold(self, world: World, tmp_path: Path) -> None:
        whole = json.loads(Path(world.certificate).read_bytes())
        whole["work"]["record_visits"] += 1
        file = tmp_path / "file"
        file.write_bytes(
            json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        )
        call = ["certificate", "verify", str(file), "--public-key", world.key]
        assert "the signature does not fit" in refused(world.address, *call, code=1)

    def test_1_for_a_receipt_of_another_certificate(self, world: World) -> None:
        call = ["certificate", "verify", world.receipt, "--public-key", world.key]
        message = refused(world.address, *call, "--certificate", world.superseded, code=1)
        assert message == f"{world.receipt}: certificate_digest: is not that of the certificate given"

    def test_1_for_another_part_of_the_log(self, world: World, tmp_path: Path) -> None:
        segment = tmp_path / "segment"
        invoke("log", world.address, "--export", str(segment), "--from", "2", "--to", "4")
        call = ["certificate", "verify", world.certificate, "--public-key", world.key, "--log", str(segment)]
        message = refused(world.address, *call, code=1)
        assert "which closed the batch, is not in the part of the log given (entries 2 to 4)" in message


@pytest.mark.parametrize("kind", ["certificate", "receipt"])
def test_a_flipped_byte_is_found_and_its_place_told(world: World, tmp_path: Path, kind: str) -> None:
    data = Path(getattr(world, kind)).read_bytes()
    file = tmp_path / "flipped"
    told = re.compile(
        r": .*(byte \d+|member [a-z]+|signature|shard \d+, |newer|another key|neither certificate)"
    )
    for position in range(0, len(data), max(1, len(data) // 60)):
        file.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        out, err = invoke("certificate", "verify", str(file), "--public-key", world.key, code=1)
        assert out == ""
        assert err.startswith(f"error: {file}: ")
        assert told.search(err), (position, err)


class TestNobodyIsNamed:
    """Every call of :func:`invoke` sees to that; these are the ways in which they might be."""

    @pytest.mark.parametrize("extra", [[], ["--json"], ["--quiet"]])
    def test_by_commands_that_work(self, world: World, extra: list[str]) -> None:
        for call in calls(world):
            if call[:2] != ["suppression", "replay"]:
                invoke(*call, *extra)

    @pytest.mark.parametrize(
        ("args", "code"),
        [
            (["request", "RUN", "WHO", "--basis", "hearsay"], 2),
            (["request", "RUN", "WHO", "--received-at", "2999-01-01T00:00Z"], 2),
            (["request", "RUN", "WHO", "--received-at", "today"], 2),
            (["request", "RUN", "WHO", "--key", " "], 2),
            (["request", "RUN", "WHO", "--each", "--key", "k"], 2),
            (["request", "RUN", "WHO", ""], 2),
            (["request", "RUN", "WHO", "WHO" + "x" * 2000], 2),
            (["request", "RUN", "-WHO"], 2),
            (["request", "RUN", "--WHO=1"], 2),
            (["request", "/nowhere", "WHO"], 2),
            (["request", "RUN", "WHO", "--subjects-file", "f"], 2),
            (["suppression", "lift", "RUN", "WHO"], 2),
            (["suppression", "lift", "RUN", "WHO", "--reason", "none"], 2),
            (["suppression", "lift", "RUN", "-WHO", "--reason", "consent-renewed"], 2),
            (["certificate", "receipt", "RUN", "WHO"], 2),
            (["certificate", "receipt", "RUN", "WHO", "--out", "OUT"], 2),
            (["certificate", "receipt", "RUN", "WHO", "WHO", "--out", "OUT"], 2),
            (["certificate", "receipt", "RUN", "-WHO", "--out", "OUT"], 2),
        ],
    )
    def test_by_errors(self, world: World, tmp_path: Path, args: list[str], code: int) -> None:
        before = files(world.address)
        words = {"RUN": world.address, "OUT": str(tmp_path / "out")}
        call = [words.get(arg, arg.replace("WHO", NAME)) for arg in args]
        _, err = invoke(*call, code=code)
        assert err
        invoke(*call, "--json", code=code)
        assert files(world.address) == before

    def test_by_unexpected_errors(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: object) -> None:
            raise KeyError("somewhere")

        monkeypatch.setattr("sisa_ray.execution.desk.refuse_faulty", fail)
        _, err = invoke("request", world.address, PEOPLE[0], code=70)
        assert "please report the traceback above" in err
