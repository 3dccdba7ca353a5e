"""What docs/planning.md shows is what its commands print."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sisa_ray.service.cli import app

ROOT = Path(__file__).parents[2]
EXAMPLES = re.findall(
    r"```console\n\$ sisa-ray ((?:plan|strata) .*?)\n```\n\n```text\n(.*?)```",
    (ROOT / "docs/planning.md").read_text(encoding="utf-8"),
    re.DOTALL,
)


def test_there_are_three_plans_and_strata() -> None:
    assert [command.split()[0] for command, _ in EXAMPLES] == ["plan", "plan", "plan", "strata"]


@pytest.mark.parametrize(("command", "shown"), EXAMPLES)
def test_output_is_what_the_document_shows(
    command: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the letter, as far as it is shown; plans are seeded."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, shlex.split(command), prog_name="sisa-ray")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(shown)
    if command.startswith("strata"):
        return
    simulated = re.search(r"simulated: .*\(expected ([+-][\d.]+)%\)", shown)
    assert simulated
    assert abs(float(simulated[1])) < 5
    assert "; 0 too late" in shown
