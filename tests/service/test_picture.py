from __future__ import annotations

import struct
from pathlib import Path

import pytest

from sisa_ray.execution.results import StageStatus
from sisa_ray.service.picture import Cell, cells, draw
from tests.service.standins import status_result, unlearn_result

BEFORE = [[10, 11, 12], [20, 21, 22], [30, 31, 32]]
AFTER = [[10, 11, 12], [20, 19, 22], [30, 31, 31]]


def grid(rows: list[list[Cell]]) -> list[str]:
    return [
        "".join(("r" if c.rebuilt else "k") + (str(c.num_forgotten) if c.num_forgotten else "") for c in row)
        for row in rows
    ]


def test_stages_from_the_first_changed_slice_on_are_rebuilt() -> None:
    rows = cells(status_result(*BEFORE), status_result(*AFTER), unlearn_result(shards_rebuilt=(1, 2)))
    assert grid(rows) == ["kkk", "kr2r", "kkr1"]
    assert [c.num_records for c in rows[1]] == [20, 19, 22]
    assert [(c.shard, c.slice) for c in rows[2]] == [(2, 1), (2, 2), (2, 3)]


def test_a_rebuild_starts_at_the_last_checkpoint_that_was_kept() -> None:
    stages = tuple(
        StageStatus(shard=k, stage=r, status="built", kept=(r == 3 or (k, r) == (2, 1)))
        for k in range(3)
        for r in (1, 2, 3)
    )
    before = status_result(*BEFORE, stages=stages)
    rows = cells(before, status_result(*AFTER), unlearn_result(shards_rebuilt=(1, 2)))
    assert grid(rows) == ["kkk", "rr2r", "krr1"]


def test_nothing_is_rebuilt_before_training() -> None:
    rows = cells(status_result(*BEFORE), status_result(*AFTER), unlearn_result(shards_rebuilt=()))
    assert grid(rows) == ["kkk", "kk2k", "kkk1"]


@pytest.mark.parametrize("size", [(1, 1), (5, 4), (20, 50)])
def test_the_picture_is_a_png_of_a_sensible_size(tmp_path: Path, size: tuple[int, int]) -> None:
    num_shards, num_slices = size
    before = status_result(*[[5] * num_slices] * num_shards)
    after = status_result([4] + [5] * (num_slices - 1), *[[5] * num_slices] * (num_shards - 1))
    path = tmp_path / "picture.png"
    draw(before, after, unlearn_result(shards_rebuilt=(0,)), path, bit_identical=True)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    assert 1000 < width < 2500
    assert 500 < height < 2500


def test_a_picture_of_no_retraining(tmp_path: Path) -> None:
    result = unlearn_result(
        shards_rebuilt=(), stages_rebuilt=0, record_visits=0, full_retrain_record_visits=0
    )
    draw(status_result(), status_result(), result, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
