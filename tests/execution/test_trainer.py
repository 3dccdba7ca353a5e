"""The Python interface on a real Ray: queueing, results, logs, and what is given back at the end."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import ray
from safetensors.torch import load_file

from sisa_ray import SisaTrainer
from sisa_ray.core.errors import DataError, ExecutionError
from sisa_ray.core.keys import file_digest
from sisa_ray.execution import commands
from sisa_ray.execution.logs import log_file
from sisa_ray.execution.opening import existing_run
from tests.execution.tables import make_config, make_table
from tests.support.inline import InlineWorkers

pytestmark = pytest.mark.usefixtures("ray_local")


def test_more_shards_than_slots_train_forget_and_verify(tmp_path: Path) -> None:
    table = make_table(200)
    config = make_config(tmp_path, table, sisa={"num_shards": 7, "num_slices": 2, "epochs": 2}, name="queued")
    trainer = SisaTrainer(config)
    fitted = trainer.fit()
    assert fitted.address == config.address
    assert fitted.metrics["accuracy"] > 0.6
    assert len(fitted.constituents) == 7
    for shard, checkpoint in enumerate(fitted.constituents):
        assert isinstance(checkpoint, ray.train.Checkpoint)
        with checkpoint.as_directory() as directory:
            file = Path(directory) / "state.safetensors"
            assert file_digest(file.read_bytes()) == existing_run(config).state.stages[shard, 2].file_digest
            assert any(name.startswith("model") for name in load_file(file))
    log = log_file("queued", 3).read_text()
    assert "stage 2:" in log
    assert "p1" not in log
    forgotten = trainer.unlearn(["p1", "p2", "p3"])
    assert forgotten.record_visits == forgotten.predicted_record_visits
    assert trainer.verify().bit_identical
    assert trainer.status().complete
    # The bits do not depend on who trained them: the same in one process, shard after shard.
    oracle = make_config(tmp_path / "inline", table, sisa={"num_shards": 7, "num_slices": 2, "epochs": 2})
    commands.train(oracle, new_workers=InlineWorkers)
    commands.unlearn(oracle, ["p1", "p2", "p3"], new_workers=InlineWorkers)
    bits = [{p: r.file_digest for p, r in existing_run(c).state.stages.items()} for c in (config, oracle)]
    assert bits[0] == bits[1]
    # Idle again: every slot is given back.
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 2


def test_in_a_with_block_shard_actors_stay_until_a_call_fails(tmp_path: Path) -> None:
    table = make_table(120)
    config = make_config(tmp_path, table, name="kept")
    with SisaTrainer(config) as trainer:
        trainer.fit()
        first = _shard_actors()
        trainer.unlearn(["p1", "p2"])
        assert _shard_actors() == first != set()
        with pytest.raises(DataError):
            trainer.predict(str(tmp_path / "none.parquet"), out=str(tmp_path / "out.parquet"))
        trainer.unlearn(["p3"])
        again = _shard_actors()
        assert again
    assert trainer.verify().bit_identical
    # Actors that trained before leave no trace in what they train next.
    left = table.filter(pc.invert(pc.is_in(table["person"], pa.array(["p1", "p2", "p3"]))))
    oracle = make_config(tmp_path / "oracle", left)
    commands.train(oracle, new_workers=InlineWorkers)
    bits = [{p: r.file_digest for p, r in existing_run(c).state.stages.items()} for c in (config, oracle)]
    assert bits[0] == bits[1]
    deadline = time.monotonic() + 30
    while _shard_actors() & (first | again) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _shard_actors() & (first | again)


def _shard_actors() -> set[str]:
    """Processes of shard actors on this machine."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if status.read_bytes().startswith(b"ray::ShardActor"):
                found.add(status.parent.name)
    return found


def test_a_shard_that_no_node_can_hold_is_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path, resources={"cpus_per_shard": 64})
    with pytest.raises(ExecutionError, match=r"cpus_per_shard=64.*no node.*2 CPUs"):
        commands.train(config)


def test_a_recipe_that_fails_names_its_error(tmp_path: Path) -> None:
    config = make_config(tmp_path, recipe={"class": "tests.execution.recipes.Raising", "args": {}})
    with pytest.raises(ExecutionError, match="out of cheese"):
        commands.train(config)


def test_a_table_larger_than_memory_goes_through_ray_data(tmp_path: Path) -> None:
    table = make_table(150)
    small = make_config(tmp_path / "small", table, sisa={"order_buckets": 3})
    large = make_config(
        tmp_path / "large",
        table,
        sisa={"order_buckets": 3},
        resources={"ingest_in_memory_bytes": 0, "loader": "streaming"},
    )
    commands.train(small, new_workers=InlineWorkers)
    commands.train(large)
    states = [existing_run(c).state for c in (small, large)]
    bits = [{p: r.file_digest for p, r in s.stages.items()} for s in states]
    assert bits[0] == bits[1]
    assert not any((Path(large.address) / "scratch").rglob("*.parquet"))
