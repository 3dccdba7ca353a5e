"""Short ways to make configurations, specs and log records for the tests of the pure layer."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.identity import CodeIdentity, Spec
from sisa_ray.core.records import RequestAccepted, SliceRef, StageRef

PLATFORM = {"torch": "2", "device": "cpu"}
RECEIVED = datetime(2026, 3, 1, 12, tzinfo=UTC)


def config_data(**changes: object) -> dict[str, Any]:
    """A small valid configuration as plain data. ``sisa__epochs=2`` sets ``epochs`` in ``sisa``."""
    data: dict[str, Any] = {
        "name": "digits",
        "storage_path": "/runs",
        "data": {
            "train": "/tables/train.parquet",
            "record_id": "id",
            "columns": {"features": "pixels", "label": "label"},
        },
        "recipe": {"class": "sisa_ray.recipes.MLPClassifier", "args": {"hidden": [128], "lr": 0.001}},
        "sisa": {"num_shards": 3, "num_slices": 4, "epochs": 6},
    }
    for path, value in changes.items():
        set_at(data, path.split("__"), value)
    return data


def set_at(data: dict[str, Any], path: Iterable[str], value: object) -> None:
    """Set a value deep in nested mappings, making those that are missing."""
    *parents, last = path
    for key in parents:
        data = data.setdefault(key, {})
    data[last] = copy.deepcopy(value)


def make_config(**changes: object) -> SisaConfig:
    """A valid configuration, changed as in :func:`config_data`."""
    return SisaConfig.from_mapping(config_data(**changes))


def make_spec(
    *,
    modules: dict[str, str] | None = None,
    distributions: dict[str, str] | None = None,
    numerics: int = 1,
    batch_size: int = 4,
    code_dirs: tuple[str, ...] = (),
    **changes: object,
) -> Spec:
    """A spec on a small configuration, changed as in :func:`config_data`."""
    return Spec(
        config=make_config(**changes),
        code=CodeIdentity(
            modules={"nets": "ab" * 32} if modules is None else modules,
            distributions={"einops": "0.8"} if distributions is None else distributions,
            numerics=numerics,
        ),
        secret_id="secret",
        code_dirs=code_dirs,
        batch_size=batch_size,
        task="classification",
        num_classes=10,
    )


def digest_of(*parts: object) -> str:
    """A stand-in for content and file digests."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def content_digest(records: Iterable[str]) -> str:
    """A stand-in for a slice's content digest: of the set of its records."""
    return digest_of("content", sorted(records))


def make_slice(shard: int, slice_: int, records: Iterable[str], *, attempt: str = "a0") -> SliceRef:
    """A reference to a slice that holds ``records``."""
    held = sorted(records)
    return SliceRef(
        shard=shard,
        slice=slice_,
        path=f"data/{shard}/{slice_}/{attempt}" if held else None,
        num_records=len(held),
        num_subjects=len(held),
        content_digest=content_digest(held),
        file_digest=digest_of("file", held) if held else None,
        size_bytes=100 * len(held),
    )


def make_stage(
    shard: int,
    stage: int,
    *,
    key: str,
    file_digest: str = "f0",
    kept: bool = True,
    attempt: str = "a0",
    size_bytes: int = 100,
    num_steps: int = 3,
    record_visits: int = 12,
) -> StageRef:
    """A reference to a built stage."""
    return StageRef(
        shard=shard,
        stage=stage,
        key=key,
        path=f"checkpoints/{shard}/{stage}/{attempt}" if kept else None,
        file_digest=file_digest,
        size_bytes=size_bytes,
        num_steps=num_steps,
        record_visits=record_visits,
        seconds=0.5,
        platform=PLATFORM,
    )


def accepted(
    request: str,
    *tags: str,
    payload: str | None = None,
    received_at: datetime = RECEIVED,
    days: float = 31,
    **changes: Any,
) -> RequestAccepted:
    """An accepted request, due so many days after it was received."""
    return RequestAccepted(
        request=request,
        tags=tags,
        payload=f"requests/{request}" if payload is None else payload,
        received_at=received_at,
        due_at=received_at + timedelta(days=days),
        **{"basis": "gdpr", "priority": "normal", "key": None, **changes},
    )
