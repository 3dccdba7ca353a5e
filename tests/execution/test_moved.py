"""Where a run lies, and how its source table is encoded, shows in no bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sisa_ray.core.config import SisaConfig
from sisa_ray.execution import commands
from sisa_ray.execution.opening import existing_run
from sisa_ray.execution.verify import verify
from tests.execution.tables import make_config, make_table
from tests.support.inline import InlineWorkers


def keys(config: SisaConfig) -> dict[tuple[int, int], str]:
    """Stage keys, under the secret of the run."""
    return {place: ref.key for place, ref in existing_run(config).state.stages.items()}


def bits(config: SisaConfig) -> dict[tuple[int, int], str]:
    return {place: ref.file_digest for place, ref in existing_run(config).state.stages.items()}


def test_a_moved_run_goes_on_as_if_it_had_stayed(tmp_path: Path) -> None:
    table = make_table(90)
    stays, moves = make_config(tmp_path / "stays", table), make_config(tmp_path / "moves", table)
    for config in (stays, moves):
        commands.train(config, new_workers=InlineWorkers)
    before = keys(moves)
    storage = tmp_path / "elsewhere" / "bucket-2"
    storage.parent.mkdir()
    shutil.move(moves.storage_path, storage)
    moved = moves.model_copy(update={"storage_path": str(storage)})
    again = commands.train(moved, new_workers=InlineWorkers)
    assert (again.stages_built, again.record_visits) == (0, 0)
    assert keys(moved) == before
    for config in (stays, moved):
        commands.unlearn(config, ["p3", "p30"], new_workers=InlineWorkers)
    assert bits(stays) == bits(moved)
    assert verify(moved.address, new_workers=InlineWorkers).outcome == "bit-identical"


def test_the_encoding_of_the_source_shows_in_no_bit(tmp_path: Path) -> None:
    table = make_table(90)
    plain, other = make_config(tmp_path / "plain", table), make_config(tmp_path / "other", table)
    shuffled = table.take(pa.array([*range(45, 90), *range(45)]))
    annotated = shuffled.replace_schema_metadata({"written by": "somebody else"})
    encoding: dict[str, Any] = {"row_group_size": 7, "compression": "zstd", "use_dictionary": False}
    pq.write_table(annotated, other.data.train, **encoding)
    for config in (plain, other):
        commands.train(config, new_workers=InlineWorkers)
    assert bits(plain) == bits(other)
    # The content of slices, and with it the keys, are compared under the run's own secret.
    pq.write_table(annotated, plain.data.train, **encoding)
    result = verify(plain, new_workers=InlineWorkers)
    assert (result.outcome, result.source) == ("bit-identical", "source tables")
