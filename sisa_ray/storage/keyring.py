"""Interim keyring."""

from __future__ import annotations

import json
import os
import secrets
import uuid
from pathlib import Path

from sisa_ray.core.keys import Secret


def _dir() -> Path:
    p = Path(os.environ.get("SISA_RAY_KEYRING", str(Path.home() / ".config/sisa_ray/keys")))
    p.mkdir(parents=True, exist_ok=True)
    return p


def create(*, storage_path: str) -> Secret:
    i = uuid.uuid4().hex
    s = secrets.token_bytes(32)
    (_dir() / f"{i}.json").write_text(json.dumps({"version": 1, "secret_id": i, "secret": s.hex()}))
    return Secret(i, s)


def load(secret_id: str) -> Secret:
    d = json.loads((_dir() / f"{secret_id}.json").read_text())
    return Secret(secret_id, bytes.fromhex(d["secret"]))


def discard(secret_id: str) -> None:
    (_dir() / f"{secret_id}.json").unlink()
