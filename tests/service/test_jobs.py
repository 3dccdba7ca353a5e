from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from sisa_ray.core.config import SisaConfig
from sisa_ray.service import jobs
from tests.execution.tables import make_config

JOBS = Path(__file__).parents[2] / "jobs"
SCRIPTS = sorted(path.stem for path in JOBS.glob("*.py"))
OF_A_RUN = [name for name in SCRIPTS if name != "serve"]


def submit(script: str, *args: str) -> Result:
    """Run the entry point of a job as Ray would, from the working directory."""
    main = runpy.run_path(str(JOBS / f"{script}.py"))["main"]
    return CliRunner().invoke(jobs.application(main), list(args), prog_name=f"{script}.py")


def test_there_is_an_entry_point_for_each_long_operation() -> None:
    assert SCRIPTS == ["coordinator", "ingest", "serve", "train", "unlearn", "verify"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_nobody_is_named_on_the_command_line_of_a_job(script: str) -> None:
    assert "SUBJECT" not in submit(script, "--help").output
    for args in (["annabel"], ["--annabel=1"], ["--", "annabel"]):
        result = submit(script, "--config", "run.yaml", *args)
        assert result.exit_code == 2, result.output
        assert "annabel" not in result.output
        assert "named in a file or by a request" in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_configuration_that_is_not_there(script: str, tmp_path: Path) -> None:
    result = submit(script, "--config", str(tmp_path / "run.yaml"))
    assert result.exit_code == 2
    assert f"{tmp_path / 'run.yaml'}: cannot be read: No such file" in result.output


def test_the_example_is_the_documented_run() -> None:
    config = SisaConfig.from_yaml(JOBS / "mnist.yaml")
    assert (config.sisa.num_shards, config.sisa.num_slices) == (20, 10)


def test_people_are_not_shipped(ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = make_config(tmp_path)
    Path("run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", by_alias=True)))
    Path("leavers.txt").write_text("annabel\n")
    result = submit("unlearn", "--config", "run.yaml", "--subjects-file", "leavers.txt")
    assert result.exit_code == 2
    assert "leavers.txt: lies in the working directory" in result.output
    assert not Path(config.storage_path).exists()


def test_a_working_directory_without_the_recipe(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = make_config(tmp_path, recipe={"class": "nets.py:Net", "args": {}})
    Path("run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", by_alias=True)))
    for script in ("ingest", "train"):
        result = submit(script, "--config", "run.yaml")
        assert result.exit_code == 2
        assert "there is no file" in result.output
        assert "a Ray job has what --working-dir ships and nothing else" in result.output
    assert not Path(config.storage_path).exists()


def test_submitted_twice_the_work_is_done_once(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = make_config(tmp_path)
    Path("run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", by_alias=True)))
    for said in ("ingested 120 records", "ingested before"):
        result = submit("ingest", "--config", "run.yaml")
        assert result.exit_code == 0, result.output
        assert said in result.output
    result = submit("unlearn", "--config", "run.yaml", "--json")
    assert yaml.safe_load(result.stdout)["rows"] == []
