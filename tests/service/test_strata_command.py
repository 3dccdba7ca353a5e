from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from sisa_ray.core.config import SisaSection
from sisa_ray.service.cli import app

PRIORS = ("--stratum", "us=225000:0.01", "--stratum", "eu=25000:0.1")
RUN = ("--shards", "20", "--slices", "50")


def strata(*args: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["strata", *args], prog_name="sisa-ray")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stdout, result.stderr


def test_what_is_printed_is_configuration() -> None:
    out, _ = strata(*PRIORS, *RUN, "--schedule", "harmonic", "--batch", "8")
    lines = out.splitlines()
    begin = lines.index("recommended") + 1
    given = yaml.safe_load("\n".join(lines[begin : lines.index("", begin)]))
    section = SisaSection(num_shards=20, num_slices=50, epochs=Fraction(10), **given["sisa"])
    assert [(s.name, s.shards, s.slices) for s in section.strata] == [
        ("us", None, (1, 45)),
        ("eu", None, (46, 50)),
    ]
    assert "1.74×" in out
    assert "the other way round: 0.92×" in out


def test_json_has_everything() -> None:
    document: dict[str, Any] = json.loads(strata(*PRIORS, *RUN, "--json")[0])
    assert [s["name"] for s in document["strata"]] == ["us", "eu"]
    assert document["recommended"]["way"] == "late_slices"
    assert document["recommended"] in document["alternatives"]
    assert len(document["if_wrong"]) == 5
    assert document["configuration"] == ['{name: "us", slices: [1, 45]}', '{name: "eu", slices: [46, 50]}']


def test_a_history_has_the_probabilities(tmp_path: Path) -> None:
    history = tmp_path / "requests.csv"
    rows = [f"2026-01-{d:02d},{'eu' if d % 3 else 'us'}" for d in range(1, 31)]
    history.write_text("\n".join(["received_at,stratum", *rows]))
    args = ("--stratum", "us=225000", "--stratum", "eu=25000", *RUN, "--history", str(history), "--json")
    document = json.loads(strata(*args)[0])
    assert [s["probability"] for s in document["strata"]] == [10 / 225_000, 20 / 25_000]
    _, error = strata("--stratum", "us=225000", *RUN, "--history", str(history), code=2)
    assert "has requests of the stratum 'eu', which no --stratum names" in error


def test_nothing_is_declared_where_nothing_is_known() -> None:
    out, _ = strata("--stratum", "us=9000:0.1", "--stratum", "eu=1000:0.1", *RUN)
    assert "no strata: none of the layouts saves anything" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("--stratum", "us=9000"),
            "--stratum: must be NAME=RECORDS:PROBABILITY, such as eu=25000:0.1, not 'us=9000'",
        ),
        (("--stratum", "9000:0.1"), "--stratum: must be NAME=RECORDS:PROBABILITY"),
        (("--stratum", "us=9000:1.5"), "stratum 'us': probability must be from 0 to 1, not 1.5"),
        (("--stratum", "us=9000:x"), "--stratum us: must be a finite number such as 1000 or 2e-5, not 'x'"),
        (("--stratum", "us=0:0.1"), "--stratum us: must have a positive number of records, not '0'"),
        (("--stratum", "us=9000:0"), "probability: is 0 in every stratum"),
        ((*PRIORS, "--batch", "0"), "--batch: must be a whole number from 1"),
        ((*PRIORS, "--schedule", "harmonik"), "--schedule: must be equal, equal_cost"),
        ((*PRIORS, "--max-requests-per-shard", "1"), "max_requests_per_shard: must be at least"),
        ((*PRIORS, "--history", "nowhere.csv"), "--stratum: must be NAME=RECORDS, such as eu=25000"),
    ],
)
def test_bad_input_in_one_line(args: tuple[str, ...], message: str) -> None:
    out, error = strata(*args, *RUN, code=2)
    assert out == ""
    assert message in error
