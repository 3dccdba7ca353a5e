from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sisa_ray.core.errors import RecipeError
from sisa_ray.core.order import buckets_of, epoch_order, epoch_seed, record_hashes
from sisa_ray.learning import loader as loader_module
from sisa_ray.learning.loader import Loader, ResidentLoader, StreamingLoader, decode_table, make_loader
from sisa_ray.learning.recipe import Batch, new_recipe
from tests.learning.recipes import Plain
from tests.learning.sources import CPU, SCHEMA, SEED, MemorySlice, arithmetic, load, make_slices, recipe

MAKE = recipe("Plain")


def collect(data: Loader, *, stage: int, batch_size: int, first: int = 0, last: int) -> list[Batch]:
    batches = data.batches(shard=4, stage=stage, batch_size=batch_size, first_step=first, last_step=last)
    return list(batches)


def slow_batches(
    slices: Sequence[MemorySlice], *, stage: int, batch_size: int, first: int, last: int
) -> list[Batch]:
    """Straight from the contract: the epochs' orders one after the other, cut into batches."""
    buckets = range(slices[0].num_buckets)
    parts = [s.read_bucket(b) for s in slices[:stage] for b in buckets if s.bucket_num_rows(b)]
    table = pa.concat_tables(parts)
    hashes = record_hashes(table.column("record_id").to_pylist(), seed=SEED)
    rows: list[int] = []
    epoch = 0
    while len(rows) < last * batch_size:
        key = epoch_seed(seed=SEED, shard=4, stage=stage, epoch=epoch)
        rows += epoch_order(hashes, slices[0].num_buckets, key).tolist()
        epoch += 1
    made = new_recipe(MAKE)
    steps = [rows[t * batch_size : (t + 1) * batch_size] for t in range(first, last)]
    return [decode_table(made, table.take(pa.array(step))) for step in steps]


def same(a: Sequence[Batch], b: Sequence[Batch]) -> bool:
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(x[k].dtype == y[k].dtype and x[k].equal(y[k]) for k in x)
        for x, y in zip(a, b, strict=True)
    )


sizes_of_slices = st.lists(st.integers(0, 14), min_size=1, max_size=4).filter(lambda sizes: sum(sizes) > 0)


@given(
    sizes=sizes_of_slices,
    num_buckets=st.sampled_from([1, 2, 3, 7]),
    batch_size=st.integers(1, 20),
    first=st.integers(0, 9),
    num_steps=st.integers(0, 9),
    chunk_rows=st.sampled_from([1, 16, 4096]),
    data=st.data(),
)
def test_both_loaders_give_the_rows_of_the_contract(
    sizes: list[int],
    num_buckets: int,
    batch_size: int,
    first: int,
    num_steps: int,
    chunk_rows: int,
    data: st.DataObject,
) -> None:
    first_full = next(i for i, size in enumerate(sizes, start=1) if size)
    stage = data.draw(st.integers(first_full, len(sizes)))
    slices = make_slices(sizes, num_buckets)
    last = first + num_steps
    expected = slow_batches(slices, stage=stage, batch_size=batch_size, first=first, last=last)
    for kind in (ResidentLoader, StreamingLoader):
        made: Loader = kind(slices, recipe=MAKE, seed=SEED, device=CPU)
        assert made.num_rows(stage) == sum(sizes[:stage])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loader_module, "_CHUNK_ROWS", chunk_rows)
            got = collect(made, stage=stage, batch_size=batch_size, first=first, last=last)
        assert same(got, expected)


def test_the_order_changes_with_epoch_stage_and_shard() -> None:
    data = load(make_slices([40]), MAKE)
    one = collect(data, stage=1, batch_size=40, last=2)
    assert not same(one[:1], one[1:])
    assert sorted(one[0]["features"][:, 0].tolist()) == sorted(one[1]["features"][:, 0].tolist())
    other = list(data.batches(shard=5, stage=1, batch_size=40, first_step=0, last_step=1))
    assert not same(one[:1], other)


@pytest.mark.parametrize("kind", ["resident", "streaming"])
def test_batches_lie_in_fresh_aligned_buffers(kind: Any) -> None:
    batches = collect(load(make_slices([7, 5], 3), MAKE, kind), stage=2, batch_size=5, last=8)
    addresses = [tensor.data_ptr() for batch in batches for tensor in batch.values()]
    assert len(set(addresses)) == len(addresses)
    assert all(address % 64 == 0 for address in addresses)
    assert all(tensor.is_contiguous() for batch in batches for tensor in batch.values())


@pytest.mark.parametrize("kind", ["resident", "streaming"])
def test_no_rows_means_no_batches_and_reads_nothing(kind: Any) -> None:
    data = load(make_slices([0, 0], 2), MAKE, kind)
    assert data.num_rows(2) == 0
    assert collect(data, stage=2, batch_size=4, last=0) == []


class CountingSlice(MemorySlice):
    """Notes which buckets are read."""

    reads: list[int]

    def read_bucket(self, bucket: int) -> pa.Table:
        self.reads.append(bucket)
        return super().read_bucket(bucket)


def counting(size: int, num_buckets: int) -> CountingSlice:
    made = CountingSlice(make_slices([size])[0].table, num_buckets)
    object.__setattr__(made, "reads", [])
    return made


def test_streaming_enters_an_epoch_without_reading_what_lies_before() -> None:
    source = counting(60, 10)
    data = StreamingLoader([source], recipe=MAKE, seed=SEED, device=CPU)
    collect(data, stage=1, batch_size=1, first=59, last=60)
    assert len(source.reads) == 1


def test_streaming_reads_one_bucket_ahead_and_no_more() -> None:
    source = counting(60, 10)
    batches = StreamingLoader([source], recipe=MAKE, seed=SEED, device=CPU).batches(
        shard=0, stage=1, batch_size=1, first_step=0, last_step=60
    )
    next(batches)
    assert len(source.reads) <= 2
    list(batches)
    assert sorted(source.reads) == list(range(10))


def test_a_single_bucket_is_read_once_for_all_epochs() -> None:
    source = counting(10, 1)
    collect(StreamingLoader([source], recipe=MAKE, seed=SEED, device=CPU), stage=1, batch_size=4, last=30)
    assert source.reads == [0]


def test_closing_a_stream_ends_its_thread() -> None:
    before = threading.active_count()
    batches = load(make_slices([30], 5), MAKE, "streaming").batches(
        shard=0, stage=1, batch_size=2, first_step=0, last_step=10
    )
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_an_error_in_the_prefetch_thread_reaches_the_trainer() -> None:
    class Failing(MemorySlice):
        def read_bucket(self, bucket: int) -> pa.Table:
            raise OSError("storage is gone")

    data = StreamingLoader([Failing(make_slices([9])[0].table, 1)], recipe=MAKE, seed=SEED, device=CPU)
    with pytest.raises(OSError, match="storage is gone"):
        collect(data, stage=1, batch_size=3, last=3)


class Sized(Plain):
    """Notes how many rows it decodes at once, and that arrays are whole."""

    rows: list[int]

    def decode(self, columns: Mapping[str, pa.Array]) -> Batch:
        assert set(columns) == {"features", "label"}
        assert all(isinstance(array, pa.Array) and array.offset == 0 for array in columns.values())
        self.rows.append(len(columns["label"]))
        return super().decode(columns)


@pytest.mark.parametrize("kind", [ResidentLoader, StreamingLoader])
def test_decode_sees_pieces_of_a_bounded_size(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "_DECODE_ROWS", 4)
    made = Sized()
    made.bind(SCHEMA)
    made.rows = []
    slices = make_slices([10, 3])
    data = kind(slices, recipe=lambda: made, seed=SEED, device=CPU)
    assert same(
        collect(data, stage=2, batch_size=3, last=6),
        slow_batches(slices, stage=2, batch_size=3, first=0, last=6),
    )
    assert made.rows == [4, 4, 2, 3]


class Returning(Plain):
    """Decodes to whatever it is told."""

    result: Any

    def decode(self, columns: Mapping[str, pa.Array]) -> Batch:
        answer: Batch = self.result(len(columns["label"]))
        return answer


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (torch.ones, "must return a dict of tensors, not Tensor"),
        (lambda n: {}, "must return a dict of tensors, not dict"),
        (lambda n: {"x": [1] * n}, "'x' must be a tensor on the CPU, not a list"),
        (lambda n: {"x": torch.ones(n, device="meta")}, "'x' must be a tensor on the CPU, not one on meta"),
        (
            lambda n: {"x": torch.ones(n, 2).T},
            r"'x' has shape \[2, 5\]; its first dimension must be the 5 rows",
        ),
        (lambda n: {"x": torch.tensor(1)}, r"'x' has shape \[\]"),
        (
            lambda n: {"x": torch.ones(n, n)},
            r"gave x: torch.float32 \[5\] for some rows and x: torch.float32 \[3\]",
        ),
        (
            lambda n: {"x": torch.ones(n, dtype=torch.int8 if n == 3 else torch.int16)},
            r"gave x: torch.int16 \[\] for some rows and x: torch.int8 \[\] for others",
        ),
    ],
)
def test_a_wrong_decode_is_explained(result: Any, message: str) -> None:
    made = Returning()
    made.result = result
    with pytest.raises(RecipeError, match=message):
        ResidentLoader(make_slices([5, 3]), recipe=lambda: made, seed=SEED, device=CPU)


def test_tensors_in_any_memory_order_give_the_same_batches() -> None:
    class Transposed(Plain):
        def decode(self, columns: Mapping[str, pa.Array]) -> Batch:
            batch = super().decode(columns)
            return {**batch, "features": batch["features"].T.contiguous().T}

    def make() -> Plain:
        made = Transposed()
        made.bind(SCHEMA)
        return made

    slices = make_slices([7, 5], 2)
    expected = slow_batches(slices, stage=2, batch_size=4, first=0, last=7)
    for kind in (ResidentLoader, StreamingLoader):
        got = collect(kind(slices, recipe=make, seed=SEED, device=CPU), stage=2, batch_size=4, last=7)
        assert same(got, expected)
        assert all(batch["features"].is_contiguous() for batch in got)
    assert decode_table(make(), slices[0].table)["features"].is_contiguous()


def test_auto_keeps_a_shard_in_memory_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    slices = make_slices([20, 10])
    row_bytes = 6 * 4 + 8

    def made(budget: int) -> Loader:
        monkeypatch.setattr(loader_module, "_memory_budget_bytes", lambda device, threads: budget)
        return make_loader(slices, recipe=MAKE, seed=SEED, arithmetic=arithmetic())

    assert isinstance(made(30 * row_bytes), ResidentLoader)
    assert isinstance(made(30 * row_bytes - 1), StreamingLoader)


def test_the_memory_budget_shares_the_machine_among_its_processors() -> None:
    one, two = (loader_module._memory_budget_bytes(CPU, threads) for threads in (1, 2))  # noqa: SLF001
    assert 0 < one <= two


def test_the_mode_can_be_said() -> None:
    slices = make_slices([3])
    settings = arithmetic()
    assert isinstance(
        make_loader(slices, recipe=MAKE, seed=0, arithmetic=settings, mode="resident"), ResidentLoader
    )
    streaming = make_loader(slices, recipe=MAKE, seed=0, arithmetic=settings, mode="streaming")
    assert isinstance(streaming, StreamingLoader)
    empty = make_loader(make_slices([0]), recipe=MAKE, seed=0, arithmetic=settings)
    assert empty.num_rows(1) == 0


def test_slices_must_have_the_same_buckets() -> None:
    slices = [*make_slices([3], 1), *make_slices([3], 2)]
    with pytest.raises(ValueError, match=r"have \[1, 2\] order buckets"):
        ResidentLoader(slices, recipe=MAKE, seed=SEED, device=CPU)


def test_the_sources_of_the_tests_are_sorted_as_slice_files_are() -> None:
    source = make_slices([30], 4)[0]
    ids = [
        i
        for b in range(4)
        if source.bucket_num_rows(b)
        for i in source.read_bucket(b)["record_id"].to_pylist()
    ]
    buckets = buckets_of(record_hashes(ids, seed=SEED), 4)
    assert list(zip(buckets.tolist(), ids, strict=True)) == sorted(zip(buckets.tolist(), ids, strict=True))
    assert np.all(np.diff(buckets) >= 0)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["resident", "streaming"])
def test_batches_on_a_gpu_are_those_of_the_cpu(kind: Any) -> None:
    slices = make_slices([13, 0, 8], 3)
    got = collect(load(slices, MAKE, kind, torch.device("cuda", 0)), stage=3, batch_size=4, last=9)
    assert all(tensor.device.type == "cuda" for batch in got for tensor in batch.values())
    expected = slow_batches(slices, stage=3, batch_size=4, first=0, last=9)
    assert same([{name: t.cpu() for name, t in batch.items()} for batch in got], expected)
