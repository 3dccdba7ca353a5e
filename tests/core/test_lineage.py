from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sisa_ray.core.identity import Spec
from sisa_ray.core.lineage import stage_keys
from sisa_ray.core.partition import Layout, place
from tests.core.builders import content_digest, make_spec

Keys = dict[int, list[str]]


def keys_of(slices: dict[tuple[int, int], set[str]], num_shards: int, num_slices: int, spec: str) -> Keys:
    return {
        k: stage_keys(spec, k, [content_digest(slices.get((k, r), ())) for r in range(1, num_slices + 1)])
        for k in range(num_shards)
    }


def placed(records: Iterable[str], layout: Layout) -> dict[tuple[int, int], set[str]]:
    ids = list(records)
    slices: dict[tuple[int, int], set[str]] = defaultdict(set)
    for record, shard, slice_ in zip(ids, *map(list, place(ids, layout)), strict=True):
        slices[int(shard), int(slice_)].add(record)
    return slices


def test_golden() -> None:
    """The formula of stage keys: a change of it disowns every checkpoint there is."""
    assert stage_keys("spec", 3, ["x", "y"]) == [
        "50336d0185f915aabf1ce306e45c27ac47e77a86be7897f8a3fee13c4e8705d9",
        "5b4ea8a4985f2be1cd42569c16b5ae9239b348c3d3ad349932c6ebe4c105898a",
    ]


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 40), st.integers(0, 2**63 - 1))
@settings(max_examples=60, deadline=None)
def test_removing_any_record_changes_its_stages_and_no_others(
    num_shards: int, num_slices: int, num_records: int, seed: int
) -> None:
    """Every index of every shard and slice: tails, slices and shards that become empty or were."""
    layout = Layout(num_shards=num_shards, num_slices=num_slices, seed=seed)
    records = [str(i) for i in range(num_records)]
    slices = placed(records, layout)
    before = keys_of(slices, num_shards, num_slices, "spec")
    assert len({key for keys in before.values() for key in keys}) == num_shards * num_slices
    for (shard, slice_), held in slices.items():
        for record in held:
            after = keys_of(
                placed([r for r in records if r != record], layout), num_shards, num_slices, "spec"
            )
            for k in range(num_shards):
                changed = [a != b for a, b in zip(before[k], after[k], strict=True)]
                assert changed == [k == shard and r >= slice_ for r in range(1, num_slices + 1)]


@given(st.lists(st.integers(0, 30), unique=True), st.data())
@settings(max_examples=60, deadline=None)
def test_the_way_to_a_set_does_not_show(numbers: list[int], data: st.DataObject) -> None:
    """Whatever batches led here, in whatever order: the keys are those of never having known the others."""
    layout = Layout(num_shards=3, num_slices=3, seed=1)
    records = [str(i) for i in numbers]
    gone = data.draw(st.sets(st.sampled_from(records))) if records else set()
    stepwise = placed(records, layout)
    for record in data.draw(st.permutations(sorted(gone))):
        stepwise = {where: held - {record} for where, held in stepwise.items()}
    never = placed([r for r in records if r not in gone], layout)
    assert keys_of(stepwise, 3, 3, "spec") == keys_of(never, 3, 3, "spec")


class TestReferenceFault:
    """The published reference code names a checkpoint by the indices up to R*(n//R), but trains on all n."""

    n, num_slices, index = 103, 5, 101

    def reference_name(self, indices: list[int]) -> str:
        return hashlib.sha256(
            str(indices[: self.num_slices * (self.n // self.num_slices)]).encode()
        ).hexdigest()

    def test_its_name_misses_the_tail(self) -> None:
        indices = list(range(self.n))
        erased = [i for i in indices if i != self.index]
        assert self.reference_name(indices) == self.reference_name(erased)

    def test_ours_does_not(self) -> None:
        size = self.n // self.num_slices
        bounds = [r * size for r in range(self.num_slices)] + [self.n]
        slices = [list(range(a, b)) for a, b in pairwise(bounds)]
        for index in range(self.n):
            keys, erased = (
                stage_keys("spec", 0, [content_digest(str(i) for i in s if i != gone) for s in slices])
                for gone in (None, index)
            )
            home = next(r for r, s in enumerate(slices) if index in s)
            assert [a == b for a, b in zip(keys, erased, strict=True)] == [
                r < home for r in range(self.num_slices)
            ]

    def test_nor_where_records_are_placed_by_hash(self) -> None:
        layout = Layout(num_shards=1, num_slices=self.num_slices, seed=0)
        records = [str(i) for i in range(self.n)]
        before = keys_of(placed(records, layout), 1, self.num_slices, "spec")[0]
        records.remove(str(self.index))
        after = keys_of(placed(records, layout), 1, self.num_slices, "spec")[0]
        assert before[-1] != after[-1]


def test_a_stage_is_named_by_its_place_too() -> None:
    """Equal contents elsewhere train under other seeds: they must not share a checkpoint."""
    empty = [content_digest(())] * 4
    keys = {key for shard in range(3) for key in stage_keys("spec", shard, empty)}
    assert len(keys) == 12
    assert stage_keys("spec", 1, ["2"]) != stage_keys("spec", 12, [""])


IDENTITY: dict[str, Callable[[], Spec]] = {
    "seed": lambda: make_spec(sisa__seed=1),
    "num_shards": lambda: make_spec(sisa__num_shards=4),
    "num_slices": lambda: make_spec(sisa__num_slices=5),
    "epochs": lambda: make_spec(sisa__epochs="13/2"),
    "schedule": lambda: make_spec(sisa__schedule="harmonic"),
    "weights": lambda: make_spec(sisa__schedule=[1, 1, 1, 2]),
    "order_buckets": lambda: make_spec(sisa__order_buckets=2),
    "recipe": lambda: make_spec(recipe__class="mine.Net"),
    "recipe argument": lambda: make_spec(recipe__args={"hidden": [128], "lr": 0.002}),
    "nested argument": lambda: make_spec(recipe__args={"hidden": [128, 1], "lr": 0.001}),
    "argument's type": lambda: make_spec(recipe__args={"hidden": [128.0], "lr": 0.001}),
    "argument more": lambda: make_spec(recipe__args={"hidden": [128], "lr": 0.001, "extra": None}),
    "module": lambda: make_spec(modules={"nets": "cd" * 32}),
    "helper module": lambda: make_spec(modules={"nets": "ab" * 32, "helper": "ab" * 32}),
    "distribution": lambda: make_spec(distributions={"einops": "0.9"}),
    "numerics": lambda: make_spec(numerics=2),
    "column": lambda: make_spec(data__columns={"features": "other", "label": "label"}),
    "role": lambda: make_spec(data__columns={"inputs": "pixels", "label": "label"}),
    "order of packed columns": lambda: make_spec(data__columns={"features": ["b", "a"], "label": "label"}),
    "record_id": lambda: make_spec(data__record_id="key", data__subject_id="id"),
    "subject_id": lambda: make_spec(data__subject_id="person"),
    "precision": lambda: make_spec(arithmetic__precision="bf16"),
    "threads": lambda: make_spec(arithmetic__threads=2),
    "device": lambda: make_spec(arithmetic__device="cuda"),
}

CIRCUMSTANCES: dict[str, Callable[[], Spec]] = {
    "name": lambda: make_spec(name="other"),
    "storage_path": lambda: make_spec(storage_path="s3://bucket/prefix"),
    "train": lambda: make_spec(data__train="s3://bucket/train"),
    "test": lambda: make_spec(data__test="test.parquet"),
    "gpus": lambda: make_spec(resources__gpus_per_shard=0.5),
    "cpus": lambda: make_spec(resources__cpus_per_shard=2),
    "loader": lambda: make_spec(resources__loader="streaming"),
    "memory": lambda: make_spec(resources__ingest_in_memory_bytes=0),
    "aggregation": lambda: make_spec(aggregation="majority"),
    "keep_checkpoints": lambda: make_spec(keep_checkpoints=[2]),
    "partial checkpoints": lambda: make_spec(partial_checkpoint_every_s=1),
    "predict_batch_size": lambda: make_spec(arithmetic__predict_batch_size=32),
    "directory of the code": lambda: make_spec(code_dirs=("/elsewhere",)),
    "schedule spelled out": lambda: make_spec(sisa__schedule=["1/2", "1/2", "0.5", 0.5]),
    "epochs written otherwise": lambda: make_spec(sisa__epochs="12/2"),
    "order of roles": lambda: make_spec(data__columns={"label": "label", "features": "pixels"}),
    "order of arguments": lambda: make_spec(recipe__args={"lr": 0.001, "hidden": [128]}),
    "defaults written out": lambda: make_spec(data__subject_id="id", sisa__seed=0, sisa__order_buckets=1),
}


def all_keys(spec: Spec) -> list[list[str]]:
    return [stage_keys(spec.stage_digest, shard, ["x", "y", "z"]) for shard in range(2)]


@pytest.mark.parametrize("change", IDENTITY)
def test_identity_changes_every_key(change: str) -> None:
    before = {key for keys in all_keys(make_spec()) for key in keys}
    after = {key for keys in all_keys(IDENTITY[change]()) for key in keys}
    assert not before & after
    assert make_spec().digest != IDENTITY[change]().digest


@pytest.mark.parametrize("change", CIRCUMSTANCES)
def test_circumstances_change_no_key(change: str) -> None:
    assert all_keys(make_spec()) == all_keys(CIRCUMSTANCES[change]())
    # Predictions are made at a fixed shape, so that one is part of the spec, though of no stage.
    assert (make_spec().digest == CIRCUMSTANCES[change]().digest) == (change != "predict_batch_size")


@pytest.mark.parametrize(
    ("name", "weights"),
    [("equal", [3, 3, 3, 3]), ("equal_cost", [12, 6, 4, 3]), ("harmonic", [144, 36, 16, 9])],
)
def test_a_schedule_is_its_weights(name: str, weights: list[int]) -> None:
    named, spelled_out = make_spec(sisa__schedule=name), make_spec(sisa__schedule=weights)
    assert all_keys(named) == all_keys(spelled_out)
    assert named.digest == spelled_out.digest
