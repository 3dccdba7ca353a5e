from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from sisa_ray import __version__
from sisa_ray.core import errors
from sisa_ray.service.cli import app
from tests.service.standins import StandIns, verify_result

COMMANDS = [
    *("ingest", "train", "unlearn", "verify", "predict", "status", "baseline", "convert", "generate", "demo"),
    *("request", "requests", "extend", "reject", "suppression replay", "strata", "suppression lift", "log"),
    *("certificate list", "certificate fetch", "certificate receipt", "certificate show"),
    *("certificate verify", "coordinator start", "coordinator stop", "coordinator status", "plan", "serve"),
    *("token create", "token list", "token rotate", "token revoke"),
]
CALLS = {
    "ingest": ["ingest", "mnist.yaml"],
    "train": ["train", "mnist.yaml"],
    "unlearn": ["unlearn", "mnist.yaml", "alice"],
    "verify": ["verify", "mnist.yaml"],
    "predict": ["predict", "mnist.yaml", "test.parquet", "--out", "out.parquet"],
    "status": ["status", "mnist.yaml"],
    "baseline": ["baseline", "mnist.yaml"],
}


def invoke(*args: str, code: int = 0) -> tuple[str, str]:
    """Run a command; standard output and standard error, and the exit code checked."""
    result = CliRunner().invoke(app, list(args), prog_name="sisa-ray")
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def document(*args: str, code: int = 0) -> dict[str, Any]:
    """Run a command with --json: the one document on standard output."""
    out, _ = invoke(*args, "--json", code=code)
    loaded: dict[str, Any] = json.loads(out)
    return loaded


def test_every_command_is_in_the_list() -> None:
    """Those of groups, too: what follows holds for all of them."""
    there = []
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        there += [f"{name} {sub}" for sub in command.commands] if hasattr(command, "commands") else [name]
    assert sorted(there) == sorted(COMMANDS)


def test_help_answers_without_the_heavy_imports() -> None:
    program = (
        "import sys\n"
        "from sisa_ray.service.cli import app\n"
        f"for command in {[*(c.split() for c in COMMANDS), []]!r}:\n"
        "    app([*command, '--help'], standalone_mode=False)\n"
        "heavy = ('torch', 'ray', 'pyarrow', 'matplotlib', 'sklearn')\n"
        "print([m for m in heavy if m in sys.modules])\n"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.rstrip().endswith("[]")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    out, _ = invoke(*command.split(), "--help")
    assert f"sisa-ray {command} " in out[out.index("Example") :]


def test_help_tells_the_exit_codes() -> None:
    out, _ = invoke("--help")
    told = out[out.index("Exit codes:") :]
    for code in (0, 1, 2, 3, 4, 5, 6, 70, 130):
        assert f"\n {code} " in told


def test_version() -> None:
    assert invoke("--version") == (f"sisa-ray {__version__}\n", "")


@pytest.mark.parametrize("command", CALLS)
def test_json_is_one_document_and_all_of_standard_output(stand_ins: StandIns, command: str) -> None:
    stand_ins.during = lambda: print("a recipe prints this")  # noqa: T201
    out, err = invoke(*CALLS[command], "--json")
    assert json.loads(out)["address"] == "/runs/mnist"
    assert "a recipe prints this" in err


@pytest.mark.parametrize("command", CALLS)
def test_text_says_something_and_ends_in_a_line(stand_ins: StandIns, command: str) -> None:
    out, _ = invoke(*CALLS[command])
    assert out.strip()
    assert out.endswith("\n")


def test_arguments_reach_the_operations(stand_ins: StandIns) -> None:
    invoke("ingest", "a.yaml")
    invoke("train", "b.yaml")
    invoke("verify", "s3://b/r", "--shards", "0,3-5,4")
    invoke("verify", "r.yaml", "--sample", "2")
    invoke("predict", "r.yaml", "t.parquet", "--out", "o.parquet", "--rule", "size_weighted")
    invoke("predict", "r.yaml", "t.parquet", "--out", "o.parquet")
    invoke("status", "/runs/r")
    invoke("baseline", "r.yaml")
    invoke("baseline", "r.yaml", "--kind", "one_shard")
    assert stand_ins.calls == [
        ("ingest", "a.yaml"),
        ("train", "b.yaml"),
        ("verify", "s3://b/r", [0, 3, 4, 5], None),
        ("verify", "r.yaml", None, 2),
        ("predict", "r.yaml", "t.parquet", "o.parquet", "size_weighted"),
        ("predict", "r.yaml", "t.parquet", "o.parquet", None),
        ("status", "/runs/r"),
        ("baseline", "r.yaml", "full"),
        ("baseline", "r.yaml", "one_shard"),
    ]


@pytest.mark.parametrize(
    ("args", "subjects"),
    [
        (["alice", "17", "alice"], ["alice", "17", "alice"]),
        (["--", "-17", "--json"], ["-17", "--json"]),
        (["--quiet", "--", "alice"], ["alice"]),
        (["-q", "x y", "é"], ["x y", "é"]),
    ],
)
def test_subjects_are_taken_as_they_are_and_in_order(
    stand_ins: StandIns, args: list[str], subjects: list[str]
) -> None:
    invoke("unlearn", "mnist.yaml", *args)
    assert stand_ins.calls == [("unlearn", "mnist.yaml", subjects)]


def test_subjects_from_a_file_and_from_standard_input(stand_ins: StandIns, tmp_path: Path) -> None:
    file = tmp_path / "leavers.txt"
    file.write_text("alice\n\n17\n", encoding="utf-8")
    invoke("unlearn", "mnist.yaml", "--subjects-file", str(file))
    CliRunner().invoke(app, ["unlearn", "mnist.yaml", "--subjects-file", "-"], input="bob\n")
    assert [call[2] for call in stand_ins.calls] == [["alice", "17"], ["bob"]]


def test_unlearn_json_has_what_scripts_need(stand_ins: StandIns) -> None:
    stand_ins.outcomes = ("forgotten", "unknown")
    result = document("unlearn", "mnist.yaml", "alice", "bob")
    wanted = ("record_visits", "full_retrain_record_visits", "stages_rebuilt", "num_unknown")
    assert [result[name] for name in wanted] == [320, 1600, 2, 1]
    assert [row["from"] for row in result["rows"]] == ["argument 1", "argument 2"]


@pytest.mark.parametrize("extra", [[], ["--json"], ["--quiet"]])
def test_people_are_named_by_tag_and_place_only(
    stand_ins: StandIns, extra: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "leavers.txt"
    file.write_text("alice\nbob \n", encoding="utf-8")
    stand_ins.outcomes = ("unknown", "forgotten")
    texts = [*invoke("unlearn", "r.yaml", "--subjects-file", str(file), *extra)]
    assert "alice" not in "".join(texts)
    assert "bob" not in "".join(texts)
    assert "line 1" in texts[0]
    assert "00" + "23456789ab" in texts[0]


def test_ids_are_shown_on_request(stand_ins: StandIns) -> None:
    out, _ = invoke("unlearn", "r.yaml", "alice", "--show-ids")
    assert "alice" in out
    assert document("unlearn", "r.yaml", "alice", "--show-ids")["rows"][0]["subject"] == "alice"


@pytest.mark.parametrize("subject", ["-alice", "--alice", "-17", "--alice=17", "-q17"])
def test_a_subject_taken_for_an_option_is_not_repeated(stand_ins: StandIns, subject: str) -> None:
    out, err = invoke("unlearn", "r.yaml", subject, code=2)
    assert out == ""
    assert "alice" not in err
    assert "17" not in err
    assert "put -- before the subjects" in " ".join(err.replace("│", " ").split())
    assert stand_ins.calls == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["unlearn", "r.yaml"], "nobody is named"),
        (["unlearn", "r.yaml", "a", "--subjects-file", "f"], "not both"),
        (["unlearn", "r.yaml", "a", "--column", "c"], "give that with --subjects-file"),
        (
            ["verify", "r.yaml", "--shards", "5-3"],
            "must be numbers and rising ranges such as 0,3-5, not '5-3'",
        ),
        (["verify", "r.yaml", "--shards", ""], "must be numbers and rising ranges"),
        (["verify", "r.yaml", "--shards", "0", "--sample", "1"], "give one of them, not both"),
    ],
)
def test_bad_usage_is_told_in_one_line_and_nothing_is_done(
    stand_ins: StandIns, args: list[str], message: str
) -> None:
    out, err = invoke(*args, code=2)
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    assert document(*args, code=2)["error"]["exit_code"] == 2
    assert stand_ins.calls == []


@pytest.mark.parametrize(
    ("outcome", "code", "answer"),
    [("bit-identical", 0, True), ("different", 1, False), ("not comparable", 3, None)],
)
def test_verify_answers_with_its_exit_code(
    stand_ins: StandIns, outcome: Any, code: int, answer: object
) -> None:
    stand_ins.verified = verify_result(outcome=outcome)
    assert document("verify", "r.yaml", code=code)["bit_identical"] is answer
    invoke("verify", "r.yaml", code=code)


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (errors.ConfigError("field: wrong"), 2),
        (errors.RunNotFound("/runs/x: there is no run here"), 2),
        (errors.StorageDenied("s3://b: no"), 4),
        (errors.CommitFailed("log entry 7: taken"), 5),
        (errors.ExecutionError("shard 3: it died"), 6),
    ],
)
@pytest.mark.parametrize("command", CALLS)
def test_expected_errors_are_told_without_a_traceback(
    stand_ins: StandIns, command: str, failure: errors.SisaError, code: int
) -> None:
    stand_ins.failure = failure
    out, err = invoke(*CALLS[command], code=code)
    assert out == ""
    assert err.endswith(f"error: {failure}\n")
    assert "Traceback" not in err
    assert document(*CALLS[command], code=code) == {
        "error": {"type": type(failure).__name__, "message": str(failure), "exit_code": code}
    }


def test_colours_in_a_message_are_taken_out(stand_ins: StandIns) -> None:
    stand_ins.failure = errors.ExecutionError("\x1b[36mray::ShardActor\x1b[39m failed")
    out, err = invoke("train", "r.yaml", "--json", code=6)
    assert json.loads(out)["error"]["message"] == "ray::ShardActor failed"
    assert err.endswith("error: ray::ShardActor failed\n")


def test_unexpected_errors_keep_their_traceback_and_do_not_look_like_different_bits(
    stand_ins: StandIns,
) -> None:
    stand_ins.failure = KeyError("alice")
    out, err = invoke("verify", "r.yaml", "--json", code=70)
    assert "Traceback" in err
    assert "in _work" in err
    assert json.loads(out)["error"]["type"] == "KeyError"
    assert "alice" not in out


def test_interruption(stand_ins: StandIns) -> None:
    stand_ins.failure = KeyboardInterrupt()
    _, err = invoke("train", "r.yaml", code=130)
    assert "error: interrupted" in err
    assert "Traceback" not in err


def test_termination(stand_ins: StandIns) -> None:
    stand_ins.failure = SystemExit(15)  # what Ray's handler of SIGTERM raises
    _, err = invoke("train", "r.yaml", code=143)
    assert "error: terminated" in err


def test_quiet_hides_progress_but_no_warning(stand_ins: StandIns) -> None:
    _, loud = invoke("train", "r.yaml")
    assert "training: 1 stage, 10 steps" in loud
    _, err = invoke("train", "r.yaml", "--quiet")
    assert err == "warning: the disk is nearly full\n"


def test_numbers_that_are_none_are_null_in_json(stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.service import standins

    nan = standins.train_result(ensemble=float("nan"))
    monkeypatch.setattr(standins, "train_result", lambda: nan)
    assert document("train", "r.yaml")["ensemble"] is None


def in_a_process(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command line with stand-ins, in a process of its own."""
    program = (
        "import sys\n"
        "from sisa_ray import execution\n"
        "from sisa_ray.service.cli import main\n"
        "from tests.service.standins import StandIns\n"
        "execution.commands = sys.modules['sisa_ray.execution.commands'] = StandIns()\n"
        f"sys.argv = {['sisa-ray', *args]!r}\n"
        "main()\n"
    )
    options = {"stdout": subprocess.PIPE, **options}
    return subprocess.run(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, check=False, **options
    )


def test_a_reader_that_leaves_early_is_no_failure_with_a_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    result = in_a_process("status", "r.yaml", stdout=write)
    os.close(write)
    assert result.stderr == ""
    assert result.returncode == 141


def test_a_terminal_without_unicode_is_no_failure() -> None:
    result = in_a_process("train", "r.yaml", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0, result.stderr
    assert "2 shards ? 2 slices" in result.stdout
