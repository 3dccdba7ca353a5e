"""Bad input to the commands for requests, evidence and coordinators: told, with no traceback and no change."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from sisa_ray.execution import commands
from sisa_ray.storage import layout, signing
from tests.service.small_runs import PEOPLE, World, document, invoke, refused

pytestmark = pytest.mark.usefixtures("alone")


def times() -> dict[str, str]:
    return {
        "no zone": "2026-01-02T03:04",
        "day": "2026-01-02",
        "future": (datetime.now(UTC) + timedelta(hours=1)).isoformat(),
        "none": "yesterday",
        "impossible": "2026-02-30T00:00Z",
        "empty": "",
    }


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no zone", "has no time zone; write 2026-01-02T03:04:00Z for UTC"),
        ("day", "has no time zone; write 2026-01-02T00:00:00Z for UTC"),
        ("future", "is in the future (it is "),
        ("none", "is no time; write it like 2026-11-02T09:30:00+00:00"),
        ("impossible", "is no time; write it like 2026-11-02T09:30:00+00:00"),
        ("empty", "is no time; write it like 2026-11-02T09:30:00+00:00"),
    ],
)
def test_times_that_cannot_be(world: World, kind: str, message: str) -> None:
    time = times()[kind]
    told = refused(world.address, "request", world.address, PEOPLE[0], "--received-at", time)
    assert re.match(rf"(--received-at|received_at:) {re.escape(time[:16])}", told), told
    assert message in told


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["request", "RUN", PEOPLE[0], PEOPLE[1], "--key", "k", "--each"],
            "--key: names one request, and --each makes many; give one of the two",
        ),
        (
            ["request", "RUN", PEOPLE[0], "--key", ""],
            "idempotency_key: must be a text of 1 to 1,024 bytes; give each request one of its own",
        ),
        (["request", "RUN"], "subjects: nobody is named; give SUBJECT… or --subjects-file FILE"),
        pytest.param(
            ["extend", "RUN", "zzzz", "--reason", "complexity"],
            "request zzzz: is not open, or not of this run; `sisa-ray requests RUN` lists them",
        ),
        pytest.param(
            ["extend", "RUN", "", "--reason", "complexity"],
            "request : is not open, or not of this run",
        ),
        pytest.param(
            ["reject", "RUN", "zzzz", "--reason", "withdrawn"],
            "request zzzz: is not open, or not of this run",
        ),
        (
            ["certificate", "fetch", "RUN", "--out", "OUT", "--batch", "zzzz"],
            "batch zzzz: is no certified batch of this run; `sisa-ray certificate list RUN` lists them",
        ),
        (["certificate", "fetch", "RUN", "--out", "NOWHERE"], "cannot be written: No such file or directory"),
        (["log", "RUN", "--export", "OUT", "--from", "999"], "--from 999: the log has the entries 0 to "),
        (["log", "RUN", "--export", "NOWHERE"], "cannot be written: No such file or directory"),
        (
            ["certificate", "receipt", "RUN", PEOPLE[0], "--out", "OUT"],
            "subjects: row 0: no certified batch of this run names them",
        ),
        pytest.param(
            ["suppression", "lift", "RUN", PEOPLE[0], "--reason", "consent-renewed"],
            "subjects: row 0: is not suppressed in this run; nothing was lifted",
        ),
        pytest.param(
            ["suppression", "lift", "RUN", "ASKED", "--reason", "consent-renewed"],
            "subjects: row 0: is named by an open request; nothing was lifted",
        ),
        (["certificate", "verify", "NOWHERE", "--public-key", "KEY"], "cannot be read: No such file"),
        (
            ["certificate", "verify", "CERTIFICATE", "--public-key", "KEY", "--certificate", "CERTIFICATE"],
            "--certificate: is for receipts; the file given is a certificate itself",
        ),
        (
            ["certificate", "verify", "RECEIPT", "--public-key", "KEY", "--log", "SEGMENT"],
            "--log and --replay: are for certificates; check the receipt's own certificate",
        ),
        (
            ["certificate", "verify", "RECEIPT", "--public-key", "KEY", "--certificate", "RECEIPT"],
            "is a receipt; give the certificate",
        ),
        (
            ["certificate", "verify", "CERTIFICATE", "--public-key", "KEY", "--replay", "/nowhere"],
            "/nowhere: there is no run here; an address is <storage_path>/<name>",
        ),
    ],
)
def test_bad_input(world: World, tmp_path: Path, args: list[str], message: str) -> None:
    words = {
        "RUN": world.address,
        "OUT": str(tmp_path / "out"),
        "NOWHERE": str(tmp_path / "nowhere" / "out"),
        "KEY": world.key,
        "CERTIFICATE": world.certificate,
        "RECEIPT": world.receipt,
        "SEGMENT": world.segment,
        "ASKED": world.asked,
    }
    assert message in refused(world.address, *(words.get(arg, arg) for arg in args))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "args",
    [
        ["request", "RUN", PEOPLE[0]],
        ["requests", "RUN"],
        ["extend", "RUN", "a", "--reason", "complexity"],
        ["reject", "RUN", "a", "--reason", "withdrawn"],
        ["suppression", "replay", "RUN"],
        ["suppression", "lift", "RUN", PEOPLE[0], "--reason", "consent-renewed"],
        ["log", "RUN"],
        ["certificate", "list", "RUN"],
        ["certificate", "fetch", "RUN", "--out", "OUT"],
        ["certificate", "receipt", "RUN", PEOPLE[0], "--out", "OUT"],
        ["coordinator", "start", "RUN"],
        ["coordinator", "stop", "RUN"],
        ["coordinator", "status", "RUN"],
    ],
)
def test_an_unknown_run(tmp_path: Path, args: list[str]) -> None:
    run = str(tmp_path / "storage" / "other")
    words = {"RUN": run, "OUT": str(tmp_path / "out")}
    message = refused(str(tmp_path), *(words.get(arg, arg) for arg in args))
    assert message.startswith(f"{run}: there is no run here; an address is <storage_path>/<name>")
    assert list(tmp_path.iterdir()) == []


class TestPublicKey:
    def refused(self, world: World, key: Path) -> str:
        call = ["certificate", "verify", world.certificate, "--public-key", str(key)]
        return refused(world.address, *call)

    def test_is_no_key(self, world: World, tmp_path: Path) -> None:
        key = tmp_path / "key"
        message = "is no public key in PEM form; give the signer's signing.pub"
        for content in (b"", b"some text\n", b"\xff\x00", Path(world.certificate).read_bytes()):
            key.write_bytes(content)
            assert self.refused(world, key) == f"{key}: {message}"

    def test_is_not_there(self, world: World, tmp_path: Path) -> None:
        message = self.refused(world, tmp_path / "key")
        assert message.endswith("key: cannot be read: No such file or directory; give the path of a key file")

    def test_is_of_another_kind(self, world: World, tmp_path: Path) -> None:
        private = generate_private_key(public_exponent=65537, key_size=2048)
        key = tmp_path / "key"
        key.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        assert "is a key of another kind; certificates are signed with Ed25519" in self.refused(world, key)
        key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        key.chmod(0o600)
        assert "is a key of another kind; certificates are signed with Ed25519" in self.refused(world, key)

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
    def test_is_a_private_key_that_others_may_read(self, world: World, tmp_path: Path, mode: int) -> None:
        key = tmp_path / "signing.pem"
        shutil.copyfile(signing.key_file(), key)
        key.chmod(mode)
        message = self.refused(world, key)
        assert message == (
            f"{key}: its permissions are {mode:o}, but only its owner may read the signing key; run: chmod 600 {key}"
        )
        key.chmod(0o600)
        invoke("certificate", "verify", world.certificate, "--public-key", str(key))

    def test_is_somebody_elses(self, world: World, tmp_path: Path) -> None:
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", tmp_path / "key"], check=True)
        call = ["certificate", "verify", world.certificate, "--public-key", str(tmp_path / "key")]
        message = refused(world.address, *call, code=1)
        assert "it was signed with another key (key id " in message
        assert "check it with the public key of whoever issued it" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[1]", "is not a certificate or a receipt"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"version":NaN}', "is not JSON"),
    ],
)
def test_what_is_no_certificate_is_not_shown(
    world: World, tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    told = refused(str(tmp_path), "certificate", "show", str(file), code=1)
    assert told == f"{file}: {message}"
    refused(str(tmp_path), "certificate", "verify", str(file), "--public-key", world.key, code=1)


def entry(run: Path, seq: int) -> Path:
    return run / layout.entry_path(seq)


def edit(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def newer_log(run: Path) -> None:
    edit(max((run / layout.LOG).iterdir()), b'"version":2', b'"version":3')


DAMAGES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "an entry edited by hand": (
        lambda run: edit(entry(run, 3), b'"seq":3', b'"seq": 3'),
        [layout.entry_path(3), "is not in canonical form: it was changed", "restore the log from a backup"],
    ),
    "an entry edited with care": (
        lambda run: edit(entry(run, 3), b'"at":"20', b'"at":"19'),
        [layout.entry_path(4), "does not follow the entry before it", "restore the log from a backup"],
    ),
    "an entry cut short": (
        lambda run: os.truncate(entry(run, 3), 50),
        [layout.entry_path(3), "is no log entry", "restore the log from a backup"],
    ),
    "a missing entry": (
        lambda run: entry(run, 3).unlink(),
        [layout.entry_path(3), "is missing, though ", "restore the log from a backup"],
    ),
    "no first entry": (
        lambda run: entry(run, 0).unlink(),
        [layout.entry_path(0), "is missing, though ", "restore the log from a backup"],
    ),
    "a newer log": (
        newer_log,
        [
            "was written by another version of sisa_ray (log version 3, this one reads 2)",
            "use that version",
        ],
    ),
    "a newer spec": (
        lambda run: edit(run / layout.SPEC, b'"version":1', b'"version":2'),
        ["spec.json: version is 2, this sisa_ray reads 1", "use the version of sisa_ray that wrote it"],
    ),
    "a newer spec with more in it": (
        lambda run: edit(run / layout.SPEC, b'"version":1', b'"further":1,"version":2'),
        ["spec.json: cannot be understood", "it was written by another version of sisa_ray; use that one"],
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_that_cannot_be_read(world: World, tmp_path: Path, damage: str) -> None:
    """Every command says the same, and changes nothing."""
    run = tmp_path / "run"
    shutil.copytree(world.address, run)
    do, parts = DAMAGES[damage]
    do(run)
    address, out = str(run), str(tmp_path / "out")
    for call in (
        ["request", address, PEOPLE[0]],
        ["requests", address],
        ["extend", address, world.waiting, "--reason", "complexity"],
        ["reject", address, world.waiting, "--reason", "withdrawn"],
        ["suppression", "replay", address],
        ["suppression", "lift", address, world.forgotten, "--reason", "consent-renewed"],
        ["log", address],
        ["log", address, "--export", out],
        ["certificate", "list", address],
        ["certificate", "fetch", address, "--out", out],
        ["certificate", "receipt", address, world.forgotten, "--out", out],
        ["certificate", "verify", world.certificate, "--public-key", world.key, "--replay", address],
        ["coordinator", "start", address],
        ["coordinator", "stop", address],
        ["coordinator", "status", address],
    ):
        message = refused(str(tmp_path), *call, code=4)
        assert not [part for part in parts if part not in message], (call, message)


def test_a_certificate_of_a_newer_version(world: World, tmp_path: Path) -> None:
    file = tmp_path / "file"
    shutil.copyfile(world.certificate, file)
    edit(file, b'"version":1', b'"version":2')
    message = refused(str(tmp_path), "certificate", "verify", str(file), "--public-key", world.key, code=1)
    assert message == f"{file}: was written by a newer sisa_ray (version 2; this one reads 1); use that one"


def test_the_run_was_never_written_to(world: World) -> None:
    """By none of the tests above: its request is still open, and it can be gone on with."""
    rows = document("requests", world.address)["rows"]
    assert [row["request"] for row in rows if row["closed_at"] is None] == [world.waiting]
    commands.train(world.config)
    assert len(document("certificate", "list", world.address)["rows"]) == 3
