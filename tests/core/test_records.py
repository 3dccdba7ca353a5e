from __future__ import annotations

import json
from typing import get_args

import pytest
from pydantic import ValidationError

from sisa_ray.core import records
from sisa_ray.core.keys import canonical_json
from sisa_ray.core.protection import BucketProtection
from sisa_ray.core.records import (
    AttemptClosed,
    AttemptOpened,
    BatchCertified,
    BatchClosed,
    BatchPlanned,
    CheckpointLost,
    GenerationPublished,
    PayloadOpened,
    PayloadRewritten,
    PrivacySpent,
    Purged,
    PurgeFailed,
    PurgePlanned,
    Record,
    RequestExtended,
    RequestRejected,
    RequestsFenced,
    RunCreated,
    SelfChecked,
    ServingClosed,
    ServingOpened,
    SlicesRewritten,
    StageBuilt,
    SuppressionLifted,
    TableAppended,
    TableIngested,
    Verified,
    dump_record,
    load_record,
)
from tests.core.builders import RECEIVED, accepted, make_slice, make_stage

SLICES = (make_slice(0, 1, ["1", "2"]), make_slice(0, 2, []))
ALL: list[Record] = [
    RunCreated(spec_digest="d", secret_id="s", protection=BucketProtection()),
    AttemptOpened(attempt="a", command="train"),
    AttemptClosed(attempt="a"),
    TableIngested(attempt="a", columns="00ff", slices=SLICES, num_rows=2, num_refused=1),
    TableAppended(attempt="a", source="t.parquet", num_slices=1, slices=SLICES, num_rows=2, num_refused=0),
    SelfChecked(platform={"torch": "2"}),
    accepted("r", "t1", "t2", payload="requests/r.json"),
    accepted("r2", "t3", key="k", priority="urgent", basis="ccpa"),
    PayloadOpened(path="requests/p"),
    RequestsFenced(requests=("r", "r2")),
    RequestExtended(request="r", due_at=RECEIVED, reason="complexity"),
    RequestRejected(request="r2", reason="identity-not-verified"),
    PayloadRewritten(before="requests/r.json", path="requests/p", requests=("r",)),
    SuppressionLifted(tags=("t1",), reason="consent-renewed", key_id="k", signature="00"),
    BatchPlanned(batch="b", requests=("r",), unknown=("t2",), num_records=1, affected=((0, 1), (2, 3))),
    SlicesRewritten(batch="b", slices=SLICES),
    StageBuilt(ref=make_stage(0, 1, key="k")),
    StageBuilt(ref=make_stage(0, 1, key="k", kept=False)),
    CheckpointLost(shard=0, stage=1, reason="digest"),
    GenerationPublished(generation=2, keys=("k", "l")),
    PurgePlanned(attempt="a", num_objects=3),
    Purged(attempt="a", num_objects=3, num_bytes=300),
    BatchClosed(
        batch="b",
        stages_rebuilt=2,
        record_visits=24,
        full_retrain_record_visits=100,
        objects_purged=3,
        bytes_purged=0,
    ),
    PurgeFailed(problem="still there", retry_at=RECEIVED),
    BatchCertified(batch="b", path="certificates/b.json", digest="d"),
    ServingOpened(lease_s=4.0),
    ServingClosed(),
    PrivacySpent(num_answers=100, epsilon="1/10"),
    Verified(shards=(0, 1), source="slices", outcome="bit-identical"),
]
each_record = pytest.mark.parametrize("record", ALL, ids=lambda r: r.type)


def test_every_type_is_here() -> None:
    union = get_args(get_args(Record)[0])
    assert {type(r) for r in ALL} == set(union)
    assert len({r.type for r in ALL}) == len(union)
    # Nothing that looks like a record was left out of the union.
    named = {
        v for v in vars(records).values() if isinstance(v, type) and "type" in getattr(v, "model_fields", ())
    }
    assert named == set(union)


@each_record
def test_comes_back_from_the_log_as_it_was(record: Record) -> None:
    data = json.loads(canonical_json(dump_record(record)))
    again = load_record(data)
    assert again == record
    assert type(again) is type(record)
    assert canonical_json(dump_record(again)) == canonical_json(dump_record(record))


@each_record
def test_is_frozen(record: Record) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        record.type = "other"  # type: ignore[assignment]


@each_record
def test_unknown_and_missing_fields_are_refused(record: Record) -> None:
    """A field that this version does not know may change what the record means."""
    data = dump_record(record)
    with pytest.raises(ValidationError, match="surprise"):
        load_record({**data, "surprise": 1})
    for field in data:
        if field != "type":
            with pytest.raises(ValidationError, match=field):
                load_record({k: v for k, v in data.items() if k != field})


def test_unknown_fields_of_references_are_refused() -> None:
    data = dump_record(StageBuilt(ref=make_stage(0, 1, key="k")))
    data["ref"]["surprise"] = 1
    with pytest.raises(ValidationError, match="surprise"):
        load_record(data)


@pytest.mark.parametrize("data", [{"type": "time_travelled"}, {}, {"attempt": "a"}], ids=str)
def test_unknown_types_are_refused(data: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="tag"):
        load_record(data)
