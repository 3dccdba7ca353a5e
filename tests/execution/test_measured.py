from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sisa_ray.core.errors import ConfigError, RunNotFound
from sisa_ray.execution import commands
from sisa_ray.execution.measured import measure
from sisa_ray.execution.opening import existing_run
from sisa_ray.service.cli import app
from tests.execution.tables import make_config, make_table
from tests.support.inline import InlineWorkers


def test_a_trained_run_tells_its_sizes_and_times(tmp_path: Path) -> None:
    config = make_config(tmp_path, make_table(40))
    commands.ingest(config, new_workers=InlineWorkers)
    with pytest.raises(ConfigError, match="has trained nothing to be measured"):
        measure(config)
    commands.train(config, new_workers=InlineWorkers)
    measured = measure(config)
    stages = existing_run(config).state.stages.values()
    assert measured.num_records == 40
    assert measured.epochs == str(config.sisa.epochs)
    assert measured.checkpoint_bytes == max(ref.size_bytes for ref in stages)
    visits = sum(ref.record_visits for ref in stages)
    assert measured.seconds_per_visit * visits == pytest.approx(sum(ref.seconds for ref in stages))
    assert measured.num_stages == len([ref for ref in stages if ref.record_visits])

    args = ["plan", "--run", config.address, "--requests-per-day", "0.01", "--epochs", "3", "--json"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    scenario = json.loads(result.stdout)["scenario"]
    assert scenario["num_records"] == 40
    assert scenario["epochs"] == "3"  # what is given comes before what was measured
    assert scenario["seconds_per_visit"] == pytest.approx(measured.seconds_per_visit)


def test_there_must_be_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunNotFound):
        measure(str(tmp_path / "none"))
