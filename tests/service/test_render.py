from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType

from sisa_ray.execution.results import IngestResult, StageStatus
from sisa_ray.service import render
from sisa_ray.service.subjects import SubjectList
from tests.service.standins import (
    ADDRESS,
    FORGOTTEN,
    Outcome,
    sizes,
    status_result,
    train_result,
    unlearn_result,
    verify_result,
)


def shown(content: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=160, color_system=None)
    console.print(content)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def people(number: int) -> SubjectList:
    return SubjectList(
        keys=tuple(f"person-{i}" for i in range(number)), places=tuple(f"line {i}" for i in range(number))
    )


def test_ingest_counts_the_refused() -> None:
    result = IngestResult(
        address=ADDRESS,
        already=False,
        num_rows=1002,
        num_refused=2,
        num_records=1000,
        shards=sizes((400, 100), (500, 0)),
    )
    text = shown(render.ingest_text(result))
    assert "ingested 1,000 records from 1,002 rows; 2 refused" in text
    assert "    1      500  500 0" in text
    assert "ingested before" in shown(render.ingest_text(result.model_copy(update={"already": True})))


def test_train_names_the_ensemble_and_the_range_of_its_constituents() -> None:
    text = shown(render.train_text(train_result()))
    assert "built 4 stages in 3.0 s (1,600 record-visits)" in text
    assert "accuracy of the ensemble 95.1% (its constituents: 91.0% to 93.0%)" in text
    again = train_result(stages_built=0, metric=None, ensemble=None, constituents=())
    assert "everything was trained before" in shown(render.train_text(again))
    regression = train_result(metric="rmse", ensemble=0.123456, constituents=(None,))
    assert "rmse of the ensemble 0.1235\n" in shown(render.train_text(regression))


def test_unlearn_tells_the_cost() -> None:
    text = shown(render.unlearn_text(unlearn_result(("forgotten", "unknown")), people(2), show_ids=False))
    assert "forgot 1 of 2 subjects; 1 unknown here (4 records erased, 1.5 s)" in text
    assert "rewrote 1 slice, deleted 5 objects and verified that they are gone" in text
    expected = (
        "retrained 2 stages of 1 shard: 320 record-visits instead of 1,600 for training from scratch (20.0%)"
    )
    assert expected in text


def test_unlearn_without_work() -> None:
    result = unlearn_result(
        ("already forgotten",), stages_rebuilt=0, slices_rewritten=0, num_records=0, shards_rebuilt=()
    )
    text = shown(render.unlearn_text(result, people(1), show_ids=False))
    assert "forgot 0 of 1 subject; 1 forgotten before" in text
    assert "nothing had to be retrained" in text
    assert "rewrote" not in text


def test_the_unknown_come_first_and_long_lists_are_cut() -> None:
    outcomes: tuple[Outcome, ...] = ((FORGOTTEN,) * 60) + ("unknown",)
    text = shown(render.unlearn_text(unlearn_result(outcomes), people(61), show_ids=False))
    first = next(line for line in text.splitlines() if line.startswith("line "))
    assert first.startswith("line 60")
    assert "person" not in text
    assert "… and 11 more; --json lists all" in text
    assert sum(line.startswith("line ") for line in text.splitlines()) == 50
    assert "person-60" in shown(render.unlearn_text(unlearn_result(outcomes), people(61), show_ids=True))


@pytest.mark.parametrize(
    ("outcome", "answer"),
    [("bit-identical", "yes"), ("different", "NO"), ("not comparable", "not comparable")],
)
def test_verify_is_one_line(outcome: str, answer: str) -> None:
    assert shown(render.verify_text(verify_result(outcome=outcome))) == (
        "4 slices, 4 checkpoints and 100 predictions of 2 shards compared with training from scratch "
        f"(from the source tables) in 2.0 s: bit-identical: {answer}"
    )


def test_verify_names_the_first_difference() -> None:
    result = verify_result(
        outcome="different", source="slices", first_difference="shard 1 stage 2: fc.weight"
    )
    text = shown(render.verify_text(result))
    assert "(from the slices of the run)" in text
    assert text.endswith("\nfirst difference: shard 1 stage 2: fc.weight")


def test_status_marks_every_stage() -> None:
    stages = (
        StageStatus(shard=0, stage=1, status="built", kept=True),
        StageStatus(shard=0, stage=2, status="built", kept=False),
        StageStatus(shard=1, stage=1, status="stale", kept=True),
        StageStatus(shard=1, stage=2, status="missing", kept=False),
    )
    text = shown(
        render.status_text(
            status_result(
                stages=stages, open_requests=1, purge_due=True, next_step="train: 2 stages", complete=False
            )
        )
    )
    assert "46 records in 2 shards, 2/4 stages built, generation 1, device cpu" in text
    assert "1 open request, purge due" in text
    assert "    0       21  ■□      10 11" in text
    assert "    1       25  ▨·      12 13" in text
    assert "▨ its slices changed: to be rebuilt" in text
    assert text.endswith("next: train: 2 stages")


def test_status_before_ingest() -> None:
    text = shown(
        render.status_text(
            status_result(shards=(), stages=(), num_records=0, generation=0, next_step="ingest")
        )
    )
    assert "nothing published yet" in text
    assert "stages  records" not in text


def test_status_of_a_large_run_stays_short() -> None:
    text = shown(render.status_text(status_result(*[[3] * 50] * 1000)))
    assert len(text.splitlines()) < 62
    assert "950 more shards; --json lists all" in text
    assert "3 to 3 in each of 50" in text
