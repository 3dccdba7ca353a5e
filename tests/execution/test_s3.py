"""Runs whose storage and source are a real S3: the same bits as in a directory, and storage that goes away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.errors import (
    BucketMissing,
    CommitStateUnknown,
    StorageDenied,
    StorageError,
    StorageUnavailable,
)
from sisa_ray.execution import commands
from sisa_ray.execution.events import Event, StageFinished
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.verify import verify
from sisa_ray.storage.layout import PERMANENT
from sisa_ray.storage.objects import PATIENCE_VARIABLE, open_store
from tests.execution.tables import make_config, make_table
from tests.support.inline import InlineWorkers
from tests.support.weed import (
    ACCESS_KEY,
    READ_ONLY_ACCESS_KEY,
    READ_ONLY_SECRET_KEY,
    WeedServer,
    s3_environment,
    use,
)

pytestmark = pytest.mark.s3

PEOPLE = ["p1", "p2", "p40"]


@pytest.fixture
def own_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WeedServer]:
    """A server that the test may stop."""
    server = WeedServer()
    try:
        server.start()
        use(server.environment, monkeypatch)
        yield server
    finally:
        server.close()


def on_s3(directory: Path, bucket: str) -> SisaConfig:
    """The small run with its storage and its tables in a bucket."""
    config = make_config(directory, make_table(90))
    for name in ("train", "test"):
        data = (directory / f"{name}.parquet").read_bytes()
        open_store(f"s3://{bucket}/tables").put(f"{name}.parquet", data)
    tables = {name: f"s3://{bucket}/tables/{name}.parquet" for name in ("train", "test")}
    return config.model_copy(
        update={"storage_path": f"s3://{bucket}/runs", "data": config.data.model_copy(update=tables)}
    )


def train(config: SisaConfig, **options: Any) -> None:
    commands.train(config, new_workers=InlineWorkers, **options)


def forget(config: SisaConfig) -> None:
    commands.unlearn(config, PEOPLE, new_workers=InlineWorkers)


def work(config: SisaConfig, **options: Any) -> None:
    """Train and forget, from wherever the run is."""
    train(config, **options)
    forget(config)


def bits(config: SisaConfig) -> dict[tuple[int, int], tuple[str, int]]:
    state = existing_run(config).state
    return {p: (ref.file_digest, state.slices[p].num_records) for p, ref in state.stages.items()}


def objects(bucket: str) -> dict[str, bytes]:
    store = open_store(f"s3://{bucket}")
    return {info.path: store.get(info.path) for info in store.list(all_versions=True)}


@pytest.fixture
def expected(tmp_path: Path) -> dict[tuple[int, int], tuple[str, int]]:
    """The bits of the same run in a directory."""
    config = make_config(tmp_path / "local", make_table(90))
    work(config)
    return bits(config)


@pytest.mark.parametrize("versioned", [False, True])
def test_the_bits_are_those_of_a_directory_and_nothing_else_is_left(
    tmp_path: Path, s3_server: WeedServer, s3_bucket: str, expected: object, versioned: bool
) -> None:
    bucket = s3_server.make_bucket(versioned=versioned)
    config = on_s3(tmp_path / "s3", bucket)
    work(config)
    assert bits(config) == expected
    result = verify(config, new_workers=InlineWorkers)
    assert (result.outcome, result.source) == ("bit-identical", "source tables")
    state = existing_run(config).state
    named = {s.path for s in state.slices.values()} | {s.path for s in state.stages.values()}
    listed = [info.path for info in open_store(config.address).list(all_versions=True)]
    payload = [path for path in listed if not path.startswith(PERMANENT)]
    assert sorted(payload) == sorted(path for path in named if path)


def test_storage_that_stops_in_the_middle_of_training_is_waited_for(
    tmp_path: Path, own_server: WeedServer, expected: object
) -> None:
    config = on_s3(tmp_path / "s3", own_server.make_bucket())
    starting = threading.Timer(1.0, own_server.start)
    finished = []

    def on_event(event: Event) -> None:
        if isinstance(event, StageFinished):
            finished.append(event.ref)
            if len(finished) == 4:
                own_server.stop()
                starting.start()

    try:
        work(config, on_event=on_event)
    finally:
        starting.join()
    assert len(finished) == 9
    assert bits(config) == expected


@pytest.mark.parametrize("stop_at", [1, 4, 9])
def test_where_patience_ends_the_same_command_completes_later(
    tmp_path: Path,
    own_server: WeedServer,
    monkeypatch: pytest.MonkeyPatch,
    expected: object,
    stop_at: int,
) -> None:
    config = on_s3(tmp_path / "s3", own_server.make_bucket())
    finished = []

    def on_event(event: Event) -> None:
        if isinstance(event, StageFinished):
            finished.append(event.ref)
            if len(finished) == stop_at:
                own_server.stop()

    with monkeypatch.context() as patch:
        patch.setenv(PATIENCE_VARIABLE, "0.2")
        with pytest.raises((StorageUnavailable, CommitStateUnknown), match="run the same command again"):
            commands.train(config, new_workers=InlineWorkers, on_event=on_event)
    own_server.start()
    work(config)
    assert bits(config) == expected
    assert verify(config, new_workers=InlineWorkers).bit_identical


def test_a_missing_bucket_is_an_error_before_anything_happens(tmp_path: Path, s3_bucket: str) -> None:
    config = on_s3(tmp_path, s3_bucket)
    before = objects(s3_bucket)
    elsewhere = config.model_copy(update={"storage_path": "s3://no-such-bucket/runs"})
    for command in (commands.train, commands.ingest):
        with pytest.raises(BucketMissing, match=r"no-such-bucket.*create it, or correct storage_path"):
            command(elsewhere, new_workers=InlineWorkers)
    assert objects(s3_bucket) == before


@pytest.mark.parametrize("keys", [(ACCESS_KEY, "wrong"), (READ_ONLY_ACCESS_KEY, READ_ONLY_SECRET_KEY)])
@pytest.mark.parametrize("trained", [False, True])
def test_refused_credentials_change_nothing(
    tmp_path: Path,
    s3_server: WeedServer,
    s3_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    keyring: Path,
    keys: tuple[str, str],
    trained: bool,
) -> None:
    config = on_s3(tmp_path, s3_bucket)
    if trained:
        commands.train(config, new_workers=InlineWorkers)
    before, secrets = objects(s3_bucket), set(keyring.iterdir())
    use(s3_environment(s3_server.endpoint_url, *keys), monkeypatch)
    with pytest.raises(StorageDenied, match="check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"):
        forget(config) if trained else train(config)
    use(s3_server.environment, monkeypatch)
    assert objects(s3_bucket) == before
    assert set(keyring.iterdir()) == secrets


def test_a_source_that_is_not_there_is_named(tmp_path: Path, s3_bucket: str) -> None:
    config = on_s3(tmp_path, s3_bucket)
    for train, message in (
        (f"s3://{s3_bucket}/tables/other.parquet", "no Parquet file matches"),
        ("s3://no-such-bucket/train.parquet", "no-such-bucket"),
    ):
        wrong = config.model_copy(update={"data": config.data.model_copy(update={"train": train})})
        with pytest.raises((StorageError, ValueError), match=message):
            commands.train(wrong, new_workers=InlineWorkers)
    assert not list(open_store(config.address).list(all_versions=True))
