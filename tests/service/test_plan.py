from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sisa_ray.service.cli import app
from sisa_ray.service.plan_picture import draw_plan
from sisa_ray.service.render_plan import configuration_of
from tests.planning.test_scenario import scenario

SMALL = {
    "--records": "6e4",
    "--epochs": "15",
    "--checkpoint-bytes": "2MB",
    "--seconds-per-visit": "2e-5",
    "--requests-per-day": "2",
}


def plan(*more: str, code: int = 0, **changes: str | None) -> tuple[str, str]:
    """Run ``plan``; an option is changed by its name with underscores, or left out with None."""
    given = {**SMALL, **{f"--{k.replace('_', '-')}": v for k, v in changes.items()}}
    args = [part for option, value in given.items() if value is not None for part in (option, value)]
    result = CliRunner().invoke(app, ["plan", *args, *more], prog_name="sisa-ray")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stdout, result.stderr


def test_text_has_the_configuration_the_check_and_the_assumptions() -> None:
    out, _ = plan()
    assert "sisa: {num_shards: 1, num_slices: 1, epochs: 15, schedule: equal}" in out
    assert "unlearning: {batching: at_once, basis: gdpr}" in out
    assert "simulated: 4,800 requests" in out
    assert "→" in out
    assert "assumed" in out


def test_json_has_everything() -> None:
    document: dict[str, Any] = json.loads(plan("--json")[0])
    assert document["scenario"]["num_records"] == 60_000
    assert document["recommended"]["num_shards"] == 1
    assert document["recommended"] in document["alternatives"]
    assert document["simulated"]["num_missed"] == 0
    assert document["assumptions"]


def test_options_reach_the_scenario() -> None:
    out, _ = plan(
        *("--model-bytes", "1MB", "--accuracy", "1:0.95,20:0.94", "--schedule-loss", "harmonic=0.001"),
        *("--shards", "5,20", "--slices", "1,10", "--gpus", "3", "--basis", "custom", "--custom-days", "20"),
        *("--within-days", "3", "--gpu-hour-price", "1", "--storage-price", "0", "--storage-budget", "1GB"),
        *("--arrivals", "pareto", "--records-per-request", "2", "--json"),
        checkpoint_bytes=None,
    )
    given = json.loads(out)["scenario"]
    assert given["checkpoint_bytes"] == 3_000_000
    assert given["accuracy"] == {"1": 0.95, "20": 0.94}
    assert given["schedule_loss"]["harmonic"] == 0.001
    assert (given["shards"], given["slices"], given["num_gpus"]) == ([5, 20], [1, 10], 3)
    assert (given["basis"], given["custom_days"], given["erase_within_days"]) == ("custom", 20, 3)
    assert (given["gpu_hour_price"], given["storage_price"], given["storage_budget"]) == (1, 0, 10**9)
    assert (given["arrivals"], given["records_per_request"]) == ("pareto", 2)


def test_the_configuration_is_one_of_a_run() -> None:
    import yaml

    from sisa_ray.core.config import SisaConfig
    from sisa_ray.planning.search import make_plan
    from tests.test_project import SMALLEST

    for changes in ({}, {"shards": [20], "slices": [50], "requests_per_day": 40, "storage_budget": "200MB"}):
        given = scenario(**changes)
        best = make_plan(given).recommended
        lines = yaml.safe_load("\n".join(configuration_of(given, best)))
        config = SisaConfig.from_mapping({**SMALLEST, **lines})
        assert (config.sisa.num_shards, config.sisa.num_slices) == (best.num_shards, best.num_slices)
        assert config.unlearning.batching == best.batching


def test_a_history_gives_the_rate(tmp_path: Path) -> None:
    history = tmp_path / "requests.csv"
    history.write_text("received_at\n2026-01-01\n2026-01-02T00:00\n2026-01-03\n")
    out, _ = plan("--history", str(history), "--json", requests_per_day=None)
    assert json.loads(out)["scenario"]["requests_per_day"] == pytest.approx(1.0)


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    path = tmp_path / "plan.png"
    out, _ = plan("--plot", str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert f"picture: {path}" in out


def test_the_picture_can_be_drawn_again(tmp_path: Path) -> None:
    from sisa_ray.planning.search import make_plan

    made = make_plan(scenario())
    draw_plan(made, tmp_path / "a.png")
    draw_plan(made, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("more", "changes", "message"),
    [
        ([], {"records": None, "epochs": None}, "--records, --epochs: required; give them, or a run"),
        ([], {"records": "many"}, "--records: must be a finite number such as 1000 or 2e-5, not 'many'"),
        ([], {"seconds_per_visit": "nan"}, "--seconds-per-visit: must be a finite number"),
        ([], {"requests_per_day": "0"}, "requests_per_day: must be a positive, finite number, not 0"),
        ([], {"requests_per_day": "9e9"}, "requests_per_day: must leave somebody after a year"),
        ([], {"epochs": "many"}, "epochs: must be a finite number or a fraction such as 7/2, not 'many'"),
        ([], {"checkpoint_bytes": "big"}, "checkpoint_bytes: must be a size in bytes"),
        (["--accuracy", "1:0.9"], {}, "accuracy: must have at least two points"),
        (
            ["--accuracy", "1:0.9,1:0.8"],
            {},
            "--accuracy: must be pairs such as 1:0.97,20:0.95, none twice, not '1:0.8'",
        ),
        (["--accuracy", "1:0.9,x"], {}, "--accuracy: must be pairs"),
        (["--accuracy", "1:0.9,20:nan"], {}, "accuracy: must have accuracies from 0 to 1, not nan"),
        (["--schedule-loss", "cosine=1"], {}, "schedule_loss: has no schedule 'cosine'"),
        (["--shards", "5,x"], {}, "--shards: must be whole numbers such as 5,10,20, not '5,x'"),
        (["--shards", "9999999"], {}, "shards: must be whole numbers from 1 to 100000"),
        (["--storage-budget", "1kB"], {}, "storage_budget: must hold at least the model of one shard"),
        (["--model-bytes", "1MB"], {}, "--model-bytes and --checkpoint-bytes: give one of them"),
        (["--model-bytes", "x"], {"checkpoint_bytes": None}, "--model-bytes: must be a size in bytes"),
        (["--plot", "plan.jpg"], {}, "--plot: must end in .png, not 'plan.jpg'"),
        (
            ["--plot", "/nowhere/at/all.png"],
            {},
            "--plot: the directory of '/nowhere/at/all.png' does not exist",
        ),
        (["--history", "/nowhere.csv"], {"requests_per_day": None}, "/nowhere.csv: cannot be read"),
        (["--history", "/nowhere.csv"], {}, "--requests-per-day and --history: both give the rate"),
        (["--basis", "hipaa"], {}, "basis: must be gdpr, ccpa or custom, not 'hipaa'"),
        (["--gpus", "0"], {}, "num_gpus: must be a whole number from 1"),
        ([], {"seconds_per_visit": "100"}, "num_gpus: must rebuild everything twice"),
    ],
)
def test_bad_input_ends_in_one_clear_error(more: list[str], changes: dict[str, Any], message: str) -> None:
    out, err = plan(*more, code=2, **changes)
    assert message in err.replace("\n", " ")
    assert not out


def test_an_error_is_json_too() -> None:
    out, _ = plan("--json", code=2, requests_per_day="0")
    assert json.loads(out)["error"]["type"] == "ConfigError"
