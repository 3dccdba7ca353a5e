from __future__ import annotations

from typing import Any

import pytest

from sisa_ray.core.errors import ConfigError
from sisa_ray.planning.scenario import DAY_S, Scenario

SMALL: dict[str, Any] = {
    "num_records": 60_000,
    "epochs": 15,
    "checkpoint_bytes": "2MB",
    "seconds_per_visit": 2e-5,
    "requests_per_day": 4,
}


def scenario(**changes: Any) -> Scenario:
    return Scenario.from_mapping({**SMALL, **changes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_records": 0}, "num_records: must be a whole number from 1"),
        ({"requests_per_day": 0}, "requests_per_day: must be a positive, finite number, not 0"),
        (
            {"requests_per_day": 200},
            "requests_per_day: must leave somebody after a year, not 200: 73,000 records",
        ),
        ({"records_per_request": 100}, "requests_per_day: must leave somebody after a year, not 4: 146,000"),
        ({"accuracy": {1: 0.9}}, "accuracy: must have at least two points.*not 1: one point says nothing"),
        ({"accuracy": {}}, "accuracy: must have at least two points"),
        (
            {"accuracy": {1: 0.9, 20: 95.0}},
            "accuracy: must have accuracies from 0 to 1, not 95.0 at 20 shards",
        ),
        ({"accuracy": {2: 0.9, 20: 0.8}}, "accuracy: must have a point at 1 shard"),
        ({"accuracy": {0: 0.9, 20: 0.8}}, "accuracy: must have numbers of shards from 1"),
        ({"storage_budget": "1MB"}, "storage_budget: must hold at least the model of one shard, 2,000,000"),
        ({"safety_margin_s": 28 * DAY_S}, "safety_margin_s: must be less than the 2,419,200 s"),
        ({"shards": [70_000]}, "shards: must be at most 60000, not 70000: there are no more records"),
        (
            {"shards": [5], "accuracy": {1: 0.9, 2: 0.8}},
            "shards: must be at most 2, not 5: the accuracy curve",
        ),
        ({"shards": [0]}, r"shards: must be whole numbers from 1 to 100000, such as 5,10,20, not \[0\]"),
        ({"slices": []}, "slices: must be whole numbers from 1 to 200"),
        ({"schedule_loss": {"cosine": 0.1}}, "schedule_loss: has no schedule 'cosine'; known are equal"),
        ({"schedule_loss": {"equal": 2}}, "schedule_loss: must have losses from 0 to 1, not 2 for equal"),
        ({"schedule_loss": "equal"}, "schedule_loss: "),
        (
            {"max_accuracy_loss": 2},
            "max_accuracy_loss: must be from 0 to 1, not 2; divide percentages by 100",
        ),
        ({"gpu_hour_price": -1}, "gpu_hour_price: must be 0 or more, not -1"),
        ({"basis": "hipaa"}, "basis: must be gdpr, ccpa or custom, not 'hipaa'"),
        ({"seconds_per_visit": float("nan")}, "seconds_per_visit: must be a positive, finite number"),
        ({"gpus": 2}, "gpus: unknown key; did you mean 'num_gpus'"),
    ],
)
def test_bad_values_are_named_with_rule_and_fix(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scenario(**change)


def test_what_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        scenario(num_records=-1, requests_per_day=-1)
    assert len(str(caught.value).splitlines()) == 2


def test_candidates_end_where_knowledge_ends() -> None:
    assert scenario().candidate_shards() == (1, 2, 5, 10, 20)
    assert scenario(accuracy={1: 0.9, 8: 0.8}).candidate_shards() == (1, 2, 5, 8)
    assert scenario(shards=[40, 3]).candidate_shards() == (3, 40)


def test_loss_is_read_off_the_curve() -> None:
    curve = scenario(accuracy={1: 0.95, 4: 0.94, 16: 0.90})
    assert curve.loss(1, 1, "equal") == 0
    assert curve.loss(2, 1, "equal") == pytest.approx(0.005)
    assert curve.loss(16, 1, "harmonic") == pytest.approx(0.05)
    assert curve.loss(4, 10, "harmonic") == pytest.approx(0.01 + 0.0045)
    assert scenario(schedule_loss={"harmonic": 0.1}).loss(20, 2, "harmonic") == 0.1


def test_the_limit_is_the_promise_or_the_law() -> None:
    assert scenario().limit_s == 7 * DAY_S
    assert scenario(erase_within_days=100).limit_s == 27 * DAY_S
    assert scenario(basis="ccpa", erase_within_days=100).due_s == 45 * DAY_S
