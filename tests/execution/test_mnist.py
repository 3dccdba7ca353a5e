"""The main job on real input: MNIST in twenty shards on S3 forgets two batches of people, and proves it."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from sisa_ray.core.certificate import Certificate, read_signed
from sisa_ray.core.chain import check_chain
from sisa_ray.core.config import SisaConfig
from sisa_ray.core.partition import Layout, place
from sisa_ray.core.schedule import stage_epochs, stage_steps
from sisa_ray.execution import commands, evidence
from sisa_ray.execution.verify import verify
from sisa_ray.storage import signing
from tests.support.weed import WeedServer, use

NUM_SHARDS, NUM_SLICES, EPOCHS, BATCH_SIZE = 20, 10, 15, 64

CONFIG = """
name: mnist
storage_path: s3://{bucket}
data:
  train: {data}/mnist-train.parquet
  test: {data}/mnist-test.parquet
  record_id: id
  subject_id: id
  columns: {{features: pixels, label: label}}
recipe:
  class: sisa_ray.recipes.MLPClassifier
  args: {{hidden: [128], num_classes: 10, lr: 0.001, batch_size: 64, scale: 255}}
sisa: {{num_shards: 20, num_slices: 10, epochs: 15, schedule: equal, seed: 0}}
resources: {{gpus_per_shard: auto, cpus_per_shard: 1}}
"""


@pytest.fixture
def bucket() -> Iterator[str]:
    """A bucket on a server of its own. Ray's workers keep the environment that they are started with."""
    server = WeedServer()
    try:
        server.start()
        with pytest.MonkeyPatch.context() as patch:
            use(server.environment, patch)
            yield server.make_bucket()
    finally:
        server.close()


def predicted_visits(sizes: dict[tuple[int, int], int], hit: set[tuple[int, int]]) -> int:
    """Record-visits of rebuilding each shard from the first slice of it that was hit."""
    epochs = stage_epochs("equal", NUM_SLICES, EPOCHS)
    visits = 0
    for shard in {k for k, _ in hit}:
        first = min(r for k, r in hit if k == shard)
        steps = stage_steps([sizes[shard, r] for r in range(1, NUM_SLICES + 1)], epochs, BATCH_SIZE)
        visits += sum(steps[first - 1 :]) * BATCH_SIZE
    return visits


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.timeout(3600)
def test_mnist_forgets_two_batches_and_proves_it(
    real_data: Path,
    bucket: str,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    request.getfixturevalue("ray_local")  # only now: its workers must know where the bucket is
    config = SisaConfig.from_mapping(yaml.safe_load(CONFIG.format(bucket=bucket, data=real_data)))
    people = pq.read_table(config.data.train, columns=["id"])["id"].to_pylist()
    people = [str(person) for person in people]
    shards, slices = place(people, Layout(num_shards=NUM_SHARDS, num_slices=NUM_SLICES, seed=0))
    where = dict(zip(people, zip(shards.tolist(), slices.tolist(), strict=True), strict=True))
    sizes = {(k, r): 0 for k in range(NUM_SHARDS) for r in range(1, NUM_SLICES + 1)}
    for spot in where.values():
        sizes[spot] += 1

    def report(name: str, value: object) -> None:
        record_property(name, value)
        with capsys.disabled():
            sys.stdout.write(f"\n{name}: {value}")
            sys.stdout.flush()

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.monotonic()
        result = work()
        report(f"{name}_s", round(time.monotonic() - started, 1))
        return result

    trained = timed("train", lambda: commands.train(config))
    report("accuracy", trained.ensemble)

    chosen = random.Random(1).sample(people, 16)
    for number, batch in enumerate((chosen[:8], chosen[8:]), start=1):
        for person in batch:
            sizes[where[person]] -= 1
        expected = predicted_visits(sizes, {where[person] for person in batch})
        result = timed(f"forget_{number}", partial(commands.unlearn, config, batch))
        report(f"visits_{number}", result.record_visits)
        report(f"full_retrain_visits_{number}", result.full_retrain_record_visits)
        assert (result.num_forgotten, result.num_records) == (8, 8)
        assert result.record_visits == expected
        assert set(result.shards_rebuilt) == {where[person][0] for person in batch}

    certified = evidence.certificate_file(config)
    key = signing.load_or_create(storage_path=config.storage_path).public_key()
    certificate = read_signed(certified, key, name="certificate")
    assert isinstance(certificate, Certificate)
    assert check_chain(certificate, evidence.segment(config), name="certificate") > certificate.log.seq
    assert [t.shard for t in certificate.touched] == sorted({where[p][0] for p in chosen[8:]})
    assert certificate.work.record_visits == result.record_visits
    replayed = timed("replay_certificate", lambda: evidence.replay_certificate(config, certificate))
    assert replayed.outcome == "bit-identical"
    assert not [shard for shard in replayed.shards if shard.is_superseded]

    checked = timed("verify", lambda: verify(config))
    assert (checked.outcome, checked.bit_identical) == ("bit-identical", True)
    assert checked.shards == tuple(range(NUM_SHARDS))
    assert (checked.num_slices, checked.num_checkpoints) == (200, 200)
    assert checked.source == "source tables"
    assert trained.metric == "accuracy"
    assert trained.ensemble == pytest.approx(0.946, abs=0.005)
