from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.errors import ConfigError
from sisa_ray.service.cli import app
from sisa_ray.service.console import Output
from sisa_ray.service.demo import run_demo
from sisa_ray.service.demo_files import DemoFiles, make_room, write_digits
from tests.service.standins import StandIns, verify_result


def tell(directory: Path) -> str:
    console = Console(file=io.StringIO(), width=96, color_system=None)
    run_demo(str(directory), Output(as_json=False, quiet=True), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_story_is_told_in_steps_and_ends_with_the_picture(stand_ins: StandIns, tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    story = tell(directory)
    assert [call[0] for call in stand_ins.calls] == ["train", "status", "unlearn", "verify", "status"]
    assert all(call[1] == directory / "digits.yaml" for call in stand_ins.calls)
    for title in ("1. The data", "2. Training", "3. Forgetting", "4. The proof", "5. Go on from here"):
        assert title in story
    assert "95.1%" in story
    assert "91.0%, (empty), 93.0%" in story
    assert "320 record-visits" in story
    assert "bit-identical: yes" in story
    assert story.splitlines()[-1].endswith(str(directory / "digits.png"))
    assert (directory / "digits.png").read_bytes().startswith(b"\x89PNG")


def test_the_commands_to_go_on_with_can_be_copied(
    stand_ins: StandIns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # no sisa-ray there
    monkeypatch.setattr(sys, "argv", [str(tmp_path / ".venv/bin/sisa-ray"), "demo"])
    story = tell(Path("the demo"))
    assert "   .venv/bin/sisa-ray status 'the demo/digits.yaml'\n" in story


def test_those_who_leave_are_among_those_learned_from(stand_ins: StandIns, tmp_path: Path) -> None:
    story = tell(tmp_path / "demo")
    ids = set(pq.read_table(tmp_path / "demo/data/digits-train.parquet")["id"].to_pylist())
    leavers = next(call[2] for call in stand_ins.calls if call[0] == "unlearn")
    assert len(leavers) == 3
    assert ids.issuperset(leavers)
    following = next(line for line in story.splitlines() if " unlearn " in line).split()[-1]
    assert following in ids
    assert following not in leavers
    assert not any(person in story for person in leavers)


def test_the_digits_and_the_configuration(tmp_path: Path) -> None:
    files = DemoFiles(directory=tmp_path / 'a "demo": #1')
    make_room(files)
    assert write_digits(files) == (1437, 360)
    config = SisaConfig.from_yaml(files.config)
    assert config.address == str(files.run)
    train, test = pq.read_table(config.data.train), pq.read_table(str(config.data.test))
    assert train.schema.field("pixels").type == pa.binary(64)
    assert not set(train["id"].to_pylist()) & set(test["id"].to_pylist())
    assert max(max(row) for row in train["pixels"].to_pylist()) == 16


def test_a_directory_that_is_not_the_demos_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="neither empty nor a former demo"):
        make_room(DemoFiles(directory=tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ConfigError, match="is a file"):
        make_room(DemoFiles(directory=tmp_path / "thesis.txt"))


def test_a_former_demo_is_replaced_and_nothing_beside_it(tmp_path: Path) -> None:
    files = DemoFiles(directory=tmp_path / "demo")
    make_room(files)
    files.picture.write_bytes(b"old")
    (files.run / "log").mkdir(parents=True)
    (files.run / "log" / "0.json").write_text("{}", encoding="utf-8")
    (files.run.parent / "another-run").mkdir()
    (files.directory / "notes.txt").write_text("mine", encoding="utf-8")
    make_room(files)
    assert not files.run.exists()
    assert not files.picture.exists()
    assert (files.run.parent / "another-run").exists()
    assert (files.directory / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be written: Not a directory"):
        make_room(DemoFiles(directory=tmp_path / "file" / "demo"))


def test_json_and_exit_codes(stand_ins: StandIns, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--dir", str(tmp_path / "a"), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["verify"]["bit_identical"] is True
    assert "bit-identical: yes" in result.stderr
    stand_ins.verified = verify_result(outcome="different", first_difference="shard 0 stage 1: fc.weight")
    result = CliRunner().invoke(app, ["demo", "--dir", str(tmp_path / "b")])
    assert result.exit_code == 1
    assert "bit-identical: NO" in result.stdout
    assert "shard 0 stage 1: fc.weight" in result.stdout


def test_the_demo_for_real(tmp_path: Path) -> None:
    program = "from sisa_ray.service.cli import main; main()"

    def sisa_ray(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, *args], capture_output=True, text=True, check=True, cwd=tmp_path
        )

    done = sisa_ray("demo")
    lines = done.stdout.splitlines()
    accuracy = next(line for line in lines if "Accuracy on the test digits" in line)
    assert float(accuracy.split("%")[0].split()[-1]) > 94
    assert "   bit-identical: yes" in lines
    picture = tmp_path / lines[-1].split(": ")[-1]
    assert picture.read_bytes().startswith(b"\x89PNG")
    for noise in ("ray", "Warning", "warning", "\x1b"):  # neither Ray nor anything else is heard
        assert noise not in done.stderr
    assert "training from scratch: 20 stages" in done.stderr

    status = json.loads(sisa_ray("status", "sisa-demo/digits.yaml", "--json").stdout)
    assert (status["complete"], status["num_suppressed"], status["open_requests"]) == (True, 3, 0)
    assert status["num_records"] == 1437 - 3
