"""Small real runs for tests of the command line, and their people, whose names appear nowhere else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.partition import Layout, place
from sisa_ray.execution import commands, desk, evidence
from sisa_ray.service.cli import app
from sisa_ray.storage import signing
from tests.execution.tables import make_config, make_table
from tests.support.inline import InlineWorkers

NAME = "annabel"
"""Every person's name has this in it, and nothing else has."""
NUM_PEOPLE = 40
PEOPLE = [f"{NAME}-{i}" for i in range(NUM_PEOPLE)]


def invoke(*args: str, code: int = 0, **options: Any) -> tuple[str, str]:
    """Run a command; standard output and standard error. The exit code is checked, and that nobody is named."""
    result = CliRunner().invoke(app, list(args), prog_name="sisa-ray", **options)
    assert result.exit_code == code, result.output
    assert NAME not in result.output
    if code != 70:
        assert "Traceback" not in result.output
    return result.stdout, result.stderr


def document(*args: str, code: int = 0) -> dict[str, Any]:
    """Run a command with --json: the one document on standard output."""
    loaded: dict[str, Any] = json.loads(invoke(*args, "--json", code=code)[0])
    return loaded


def configure(directory: Path, **changes: Any) -> SisaConfig:
    """A run that can be made, of people with such names: 2 shards × 2 slices."""
    table = make_table(NUM_PEOPLE).set_column(1, "person", pa.array(PEOPLE))
    return make_config(directory, table, sisa={"num_shards": 2, "num_slices": 2, "epochs": 1}, **changes)


def living_in(config: SisaConfig, shard: int) -> list[str]:
    """People of one shard."""
    sisa = config.sisa
    shards, _ = place(PEOPLE, Layout(num_shards=sisa.num_shards, num_slices=sisa.num_slices, seed=sisa.seed))
    return [p for p, k in zip(PEOPLE, shards.tolist(), strict=True) if k == shard]


def public_key() -> str:
    """The signer's public key."""
    return str(signing.key_file().with_suffix(".pub"))


def files(directory: str | Path) -> dict[str, bytes]:
    """Every file below a directory."""
    root = Path(directory)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def _no_cluster(*args: object, **kwargs: object) -> NoReturn:
    raise ConnectionError("Could not find any running Ray instance.")


def without_ray(patch: pytest.MonkeyPatch) -> None:
    """Commands train in this process, and no cluster is within reach."""
    for command in (
        *(commands.ingest, commands.train, commands.append, commands.unlearn, commands.verify),
        *(desk.extend, desk.reject, desk.lift, desk.replay, evidence.replay_certificate),
    ):
        patch.setitem(command.__kwdefaults__ or {}, "new_workers", InlineWorkers)
    patch.setattr("ray.is_initialized", lambda: False)
    patch.setattr("ray.init", _no_cluster)


@dataclass(frozen=True, kw_only=True)
class World:
    """A run with two certified batches of one shard and an open request, and what was taken out of it."""

    config: SisaConfig
    address: str
    certificate: str
    receipt: str
    superseded: str
    """The certificate of the first batch: the second changed the same shard."""
    segment: str
    key: str
    waiting: str
    """The open request."""
    forgotten: str
    asked: str


def make_world(directory: Path) -> World:
    """Train, forget two people one after the other, and have a third one's request accepted."""
    config = configure(directory)
    first, second, third = living_in(config, 1)[:3]
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        commands.train(config)
        out = {
            name: str(directory / f"{name}.json") for name in ("superseded", "certificate", "receipt", "log")
        }
        commands.unlearn(config, [first])
        invoke("certificate", "fetch", config.address, "--out", out["superseded"])
        commands.unlearn(config, [second])
        invoke("certificate", "fetch", config.address, "--out", out["certificate"])
        invoke("certificate", "receipt", config.address, second, "--out", out["receipt"])
        invoke("log", config.address, "--export", out["log"])
        (accepted,) = document("request", config.address, third)["requests"]
    return World(
        config=config,
        address=config.address,
        certificate=out["certificate"],
        receipt=out["receipt"],
        superseded=out["superseded"],
        segment=out["log"],
        key=public_key(),
        waiting=accepted["request"],
        forgotten=second,
        asked=third,
    )


def refused(directory: str, *args: str, code: int = 2) -> str:
    """The message of a command that fails and changes nothing: neither its run, nor the keyring."""
    keyring = signing.key_file().parent
    before = (files(directory), files(keyring))
    out, err = invoke(*args, code=code)
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith("\n")
    error = document(*args, code=code)["error"]
    assert (files(directory), files(keyring)) == before
    assert error["exit_code"] == code
    message: str = error["message"]
    assert len(err) == len(f"error: {message}\n")  # it may tell the time
    return message
