"""What ``docs/operations.md`` tells to do is done here, on a real S3 server; and a job of Slurm's, on one node."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.cluster.console import tried
from tests.cluster.files import CLUSTER, ROOT
from tests.support.weed import WeedServer

DOCUMENT = ROOT / "docs" / "operations.md"
BIN = Path(sys.executable).parent

SRUN = """\
#!{python}
# As much of srun as one node needs: runs a command, and hands signals on to all of its processes.
import os, signal, subprocess, sys
command = [a for i, a in enumerate(sys.argv[1:]) if not all(b.startswith("--") for b in sys.argv[1 : i + 2])]
step = subprocess.Popen(command, start_new_session=True)
signal.signal(signal.SIGTERM, lambda *_: os.killpg(step.pid, signal.SIGTERM))
sys.exit(step.wait())
"""


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Nobody's Ray, keyring or home but this test's."""
    names = [n for n in os.environ if n.startswith(("AWS_", "RAY_ADDRESS", "SISA_RAY_"))]
    variables = {k: v for k, v in os.environ.items() if k not in names}
    # A short path: Unix sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temporary:
        yield {
            **variables,
            "PATH": f"{BIN}:{variables['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(tmp_path),
            "SISA_RAY_KEYRING": str(tmp_path / "keys"),
            "RAY_TMPDIR": temporary,
            "RAY_ADDRESS": "local",
            "COLUMNS": "160",
        }


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.timeout(1800)
def test_the_commands_of_the_document_do_what_it_says(
    environment: dict[str, str], s3_server: WeedServer, tmp_path: Path
) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    buckets = {name: f"{name}-{uuid.uuid4().hex[:8]}" for name in ("sisa-old", "sisa-new")}
    for bucket in buckets.values():
        s3_server.client().create_bucket(Bucket=bucket)
    text = re.sub("|".join(buckets), lambda match: buckets[match[0]], text)
    environment |= {**s3_server.environment, "S3_ENDPOINT_URL": s3_server.endpoint_url}
    subprocess.run(
        ["sisa-ray", "demo", "--quiet"], cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL
    )
    commands = list(tried(text))
    assert len(commands) > 25
    for command in commands:
        command.check(tmp_path, environment)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_of_slurm_trains_and_leaves_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    config = digits(tmp_path)
    code, log = slurm(environment, tmp_path, config)
    assert code == 0, log
    assert "generation 1 is published" in log
    assert not Path("/tmp/ray-4711").exists()
    assert list(tmp_path.glob(".sisa-ray-job-*")) == []
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: 1\n")
    code, log = slurm(environment, tmp_path, broken)
    assert code == 2, log


def digits(directory: Path) -> Path:
    """The configuration of the demo's run, which is not there yet."""
    from sisa_ray.service.demo_files import DemoFiles, write_digits

    files = DemoFiles(directory=directory)
    files.data.mkdir()
    write_digits(files)
    return files.config


def slurm(environment: Mapping[str, str], directory: Path, config: Path) -> tuple[int, str]:
    """Exit code and log of the job, on one node without Slurm."""
    srun = directory / "bin" / "srun"
    srun.parent.mkdir(exist_ok=True)
    srun.write_text(SRUN.format(python=sys.executable))
    srun.chmod(0o755)
    done = subprocess.run(
        [CLUSTER / "slurm.train.sh", config],
        env={
            **environment,
            "PATH": f"{srun.parent}:{environment['PATH']}",
            "SISA_RAY_BIN": str(BIN),
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURMD_NODENAME": socket.gethostname(),
        },
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout
