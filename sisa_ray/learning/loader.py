"""A shard's records as batches: resident in memory, or streamed bucket by bucket, with the same bits.

Step ``t`` of a stage takes the rows at ``[t*B, (t+1)*B)`` of one endless sequence: the orders of epochs 0,
1, 2, … over the rows of slices 1..r (contract clauses 2 and 5). So every step has exactly ``B`` rows, and a
stage can be entered at any step. Each batch is gathered into fresh buffers: its alignment cannot differ (7).

Both loaders decode the same rows together: pieces of one order bucket of one slice.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import torch

from sisa_ray.core.config import ArithmeticConfig, LoaderMode
from sisa_ray.core.errors import RecipeError
from sisa_ray.core.keys import UInt64Array
from sisa_ray.core.order import (
    Int64Array,
    bucket_order,
    epoch_order,
    epoch_seed,
    record_hashes,
    within_bucket_order,
)
from sisa_ray.learning.arithmetic import resolved_device
from sisa_ray.learning.recipe import Batch, Recipe, RecipeFactory, new_recipe

_NOT_ROLES = frozenset({"record_id", "subject_id"})
_CHUNK_ROWS = 4096
_DECODE_ROWS = 8192
"""Rows that ``decode`` sees at once, at most: one Arrow array of images holds no more than 2 GiB."""


@runtime_checkable
class SliceSource(Protocol):
    """One slice's table: rows sorted by (order bucket, record id)."""

    @property
    def num_buckets(self) -> int:
        """Number of order buckets, the same for every slice of a run."""

    def bucket_num_rows(self, bucket: int) -> int:
        """Rows of one order bucket; 0 where it is empty."""

    def read_bucket(self, bucket: int) -> pa.Table:
        """The rows of one order bucket that is not empty: ``record_id`` and one column a role."""


@runtime_checkable
class TensorSource(Protocol):
    """One slice that was decoded before: rows in the same order as the slice's own."""

    @property
    def num_buckets(self) -> int:
        """See :class:`SliceSource`."""

    def bucket_num_rows(self, bucket: int) -> int:
        """See :class:`SliceSource`."""

    def read_tensors(self, bucket: int) -> tuple[UInt64Array, Batch]:
        """Order hashes and tensors of one order bucket that is not empty."""


class Loader(Protocol):
    """What the trainer draws batches from."""

    def num_rows(self, stage: int) -> int:
        """Rows in slices 1..``stage``."""

    def batches(
        self, *, shard: int, stage: int, batch_size: int, first_step: int, last_step: int
    ) -> Generator[Batch]:
        """The batches of steps ``first_step..last_step-1`` of a stage, each of ``batch_size`` rows."""


def make_loader(
    sources: Sequence[SliceSource | TensorSource],
    *,
    recipe: RecipeFactory,
    seed: int,
    arithmetic: ArithmeticConfig,
    mode: LoaderMode = "auto",
) -> Loader:
    """A loader over a shard's slices (slice 1 first). ``auto`` keeps the shard in memory where it fits.

    ``seed`` is the spec's. Which loader it is changes no bit, so that machines may choose differently.
    """
    device = resolved_device(arithmetic)
    if mode == "auto":
        needed = _Decoder(sources, new_recipe(recipe), seed).estimated_bytes()
        mode = "resident" if needed <= _memory_budget_bytes(device, arithmetic.threads) else "streaming"
    kind = ResidentLoader if mode == "resident" else StreamingLoader
    return kind(sources, recipe=recipe, seed=seed, device=device)


class ResidentLoader:
    """Decodes the whole shard once and keeps it on ``device``; stage r uses the rows of slices 1..r."""

    def __init__(
        self,
        sources: Sequence[SliceSource | TensorSource],
        *,
        recipe: RecipeFactory,
        seed: int,
        device: torch.device,
    ) -> None:
        decoder = _Decoder(sources, new_recipe(recipe), seed)
        self._num_buckets = decoder.num_buckets
        self._seed = seed
        self._ends = np.cumsum([sum(sizes) for sizes in decoder.sizes], dtype=np.int64)
        num_rows = int(self._ends[-1]) if len(sources) else 0
        self._device = device
        self._hashes: UInt64Array = np.empty(num_rows, dtype=np.uint64)
        self._tensors: Batch = {}
        row = 0
        for index, sizes in enumerate(decoder.sizes):
            for bucket, size in enumerate(sizes):
                if not size:
                    continue
                self._hashes[row : row + size], unit = decoder.read(index, bucket)
                if not self._tensors:
                    self._tensors = {
                        name: torch.empty((num_rows, *t.shape[1:]), dtype=t.dtype, device=device)
                        for name, t in unit.items()
                    }
                for name, tensor in unit.items():
                    self._tensors[name][row : row + size].copy_(tensor)
                row += size

    def num_rows(self, stage: int) -> int:
        """Rows in slices 1..``stage``."""
        return int(self._ends[stage - 1])

    def batches(
        self, *, shard: int, stage: int, batch_size: int, first_step: int, last_step: int
    ) -> Generator[Batch]:
        """See :class:`Loader`."""
        items = list(self._tensors.items())
        for rows in self._indices(shard, stage, batch_size, first_step, last_step):
            # One view for each step, made in bulk: slicing in every step costs more than all else here.
            for index in rows.to(self._device).unbind():
                yield {name: tensor.index_select(0, index) for name, tensor in items}

    def _indices(
        self, shard: int, stage: int, batch_size: int, first_step: int, last_step: int
    ) -> Iterator[torch.Tensor]:
        """Rows of consecutive steps, each of shape ``(steps, batch_size)``."""
        num_rows = self.num_rows(stage)
        hashes = self._hashes[:num_rows]
        row, last_row = first_step * batch_size, last_step * batch_size
        waiting: list[Int64Array] = []
        num_waiting = 0
        while row < last_row:
            epoch, start = divmod(row, num_rows)
            order = epoch_order(
                hashes, self._num_buckets, epoch_seed(seed=self._seed, shard=shard, stage=stage, epoch=epoch)
            )[start : start + last_row - row]
            row += len(order)
            waiting.append(order)
            num_waiting += len(order)
            # Small shards: several epochs at once.
            if num_waiting >= max(batch_size, _CHUNK_ROWS) or row == last_row:
                rows = np.concatenate(waiting)
                whole = len(rows) // batch_size * batch_size
                yield torch.from_numpy(rows[:whole].reshape(-1, batch_size))
                waiting, num_waiting = [rows[whole:]], len(rows) - whole


class StreamingLoader:
    """Reads one order bucket at a time (of all slices), the next one while the trainer uses this one.

    Memory holds two buckets and eight bytes a row.
    """

    def __init__(
        self,
        sources: Sequence[SliceSource | TensorSource],
        *,
        recipe: RecipeFactory,
        seed: int,
        device: torch.device,
    ) -> None:
        self._decoder = _Decoder(sources, new_recipe(recipe), seed)
        self._seed = seed
        self._device = device

    def num_rows(self, stage: int) -> int:
        """Rows in slices 1..``stage``."""
        return sum(map(sum, self._decoder.sizes[:stage]))

    def batches(
        self, *, shard: int, stage: int, batch_size: int, first_step: int, last_step: int
    ) -> Generator[Batch]:
        """See :class:`Loader`."""
        started: Batch = {}  # the rows of a batch that straddles buckets, as far as gathered
        num_started = 0
        visits = self._visits(shard, stage, first_step * batch_size, last_step * batch_size)
        for tensors, order in self._loaded(stage, visits):
            done = 0
            if num_started:
                done = min(batch_size - num_started, len(order))
                head = _gather(tensors, order[:done])
                started = {name: torch.cat([started[name], head[name]]) for name in head}
                num_started += done
                if num_started < batch_size:
                    continue
                yield started
            whole = (len(order) - done) // batch_size
            for index in order[done : done + whole * batch_size].reshape(whole, batch_size).unbind():
                yield _gather(tensors, index)
            done += whole * batch_size
            num_started = len(order) - done
            started = _gather(tensors, order[done:]) if num_started else {}

    def _visits(self, shard: int, stage: int, row: int, last_row: int) -> Iterator[_Visit]:
        sizes = self._decoder.bucket_sizes(stage)
        epoch, start = divmod(row, sum(sizes)) if row < last_row else (0, 0)
        while row < last_row:
            key = epoch_seed(seed=self._seed, shard=shard, stage=stage, epoch=epoch)
            for bucket in bucket_order(len(sizes), key).tolist():
                stop = min(sizes[bucket], start + last_row - row)
                if start < stop:
                    yield _Visit(bucket, key, start, stop)
                    row += stop - start
                start = max(0, start - sizes[bucket])
            epoch += 1

    def _loaded(self, stage: int, visits: Iterator[_Visit]) -> Generator[tuple[Batch, torch.Tensor]]:
        """For each visit its bucket's tensors and the rows to take of them, in order, on the device."""
        # The number of threads is a setting of each thread.
        pool = ThreadPoolExecutor(1, "prefetch", torch.set_num_threads, (torch.get_num_threads(),))
        coming: deque[tuple[_Visit, Future[_Bucket]]] = deque()
        placed: tuple[Future[_Bucket] | None, Batch] = (None, {})
        try:
            for visit in chain(visits, (None,)):
                if visit is not None:
                    again = coming[-1][1] if coming and coming[-1][0].bucket == visit.bucket else None
                    coming.append((visit, again or pool.submit(self._bucket, stage, visit.bucket)))
                while coming and (visit is None or len(coming) > 1):
                    use, future = coming.popleft()
                    bucket = future.result()
                    if placed[0] is not future:
                        placed = (
                            future,
                            {n: t.to(self._device, non_blocking=True) for n, t in bucket[1].items()},
                        )
                    order = within_bucket_order(bucket[0], use.epoch_seed)[use.start : use.stop]
                    yield placed[1], torch.from_numpy(order).to(self._device)
        finally:
            pool.shutdown(cancel_futures=True)

    def _bucket(self, stage: int, bucket: int) -> _Bucket:
        """One order bucket of slices 1..``stage``, in pinned memory where it goes on to a GPU."""
        hashes, tensors = self._decoder.read_all(stage, bucket)
        if self._device.type == "cuda":
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return hashes, tensors


class _Visit(NamedTuple):
    """A stretch of one order bucket, in one epoch's order."""

    bucket: int
    epoch_seed: int
    start: int
    stop: int


_Bucket = tuple[UInt64Array, Batch]
"""Order hashes and tensors of the same rows."""


class _Decoder:
    """Reads and decodes one (slice, order bucket) at a time; all of them must give tensors of one form."""

    def __init__(self, sources: Sequence[SliceSource | TensorSource], recipe: Recipe, seed: int) -> None:
        self._sources = sources
        self._recipe = recipe
        self._seed = seed
        self._form: dict[str, tuple[torch.dtype, torch.Size]] | None = None
        self._hashes: dict[tuple[int, int], UInt64Array] = {}
        self.sizes = [[s.bucket_num_rows(b) for b in range(s.num_buckets)] for s in sources]
        counts = {len(sizes) for sizes in self.sizes}
        if len(counts) > 1:
            raise ValueError(
                f"slices of one shard have {sorted(counts)} order buckets; they must have the same number"
            )
        self.num_buckets = counts.pop() if counts else 1

    def bucket_sizes(self, stage: int) -> list[int]:
        """Rows of each order bucket over slices 1..``stage``."""
        return [sum(sizes) for sizes in zip(*self.sizes[:stage], strict=True)]

    def read(self, index: int, bucket: int) -> _Bucket:
        """One bucket (not empty) of the slice at ``index``; hashes are made once and kept."""
        source = self._sources[index]
        if isinstance(source, TensorSource):
            known, tensors = source.read_tensors(bucket)
            return known, self._of_one_form(tensors, "embed")
        table = source.read_bucket(bucket)
        hashes = self._hashes.get((index, bucket))
        if hashes is None:
            hashes = record_hashes(table.column("record_id").to_pylist(), seed=self._seed)
            self._hashes[index, bucket] = hashes
        starts = range(0, table.num_rows, _DECODE_ROWS)
        return hashes, joined([self._decode(table.slice(start, _DECODE_ROWS)) for start in starts])

    def _decode(self, rows: pa.Table) -> Batch:
        return self._of_one_form(decode_table(self._recipe, rows), "decode")

    def _of_one_form(self, tensors: Batch, method: str) -> Batch:
        form = {name: (tensor.dtype, tensor.shape[1:]) for name, tensor in tensors.items()}
        if self._form is None:
            self._form = form
        elif form != self._form:
            raise RecipeError(
                f"recipe {type(self._recipe).__name__}.{method}: gave {_described(self._form)} for some rows "
                f"and {_described(form)} for others; types and shapes must not depend on the rows"
            )
        return tensors

    def read_all(self, stage: int, bucket: int) -> _Bucket:
        """One bucket of slices 1..``stage``, slice by slice."""
        parts = [self.read(index, bucket) for index in range(stage) if self.sizes[index][bucket]]
        return np.concatenate([hashes for hashes, _ in parts]), joined([tensors for _, tensors in parts])

    def estimated_bytes(self) -> int:
        """What the decoded shard occupies, judged by its first bucket."""
        for index, sizes in enumerate(self.sizes):
            for bucket, size in enumerate(sizes):
                if size:
                    _, tensors = self.read(index, bucket)
                    return sum(t.nbytes for t in tensors.values()) * sum(map(sum, self.sizes)) // size
        return 0


def decode_table(recipe: Recipe, table: pa.Table) -> Batch:
    """A table's roles as tensors on the CPU, by the recipe's ``decode``.

    Raises:
        RecipeError: where ``decode`` gives anything but tensors with one row each for the table's rows.
    """
    roles = [name for name in table.column_names if name not in _NOT_ROLES]
    columns = {name: pa.concat_arrays(table.column(name).chunks) for name in roles}  # one chunk, no offset
    with torch.no_grad():
        batch = recipe.decode(columns)
    name = f"recipe {type(recipe).__name__}.decode"
    if not isinstance(batch, dict) or not batch:
        raise RecipeError(f"{name}: must return a dict of tensors, not {type(batch).__name__}")
    for key, tensor in batch.items():
        if not isinstance(tensor, torch.Tensor) or tensor.device.type != "cpu":
            raise RecipeError(f"{name}: {key!r} must be a tensor on the CPU, not {_kind(tensor)}")
        if tensor.dim() == 0 or len(tensor) != table.num_rows:
            raise RecipeError(
                f"{name}: {key!r} has shape {list(tensor.shape)}; "
                f"its first dimension must be the {table.num_rows} rows"
            )
    return {key: tensor.contiguous() for key, tensor in batch.items()}


def _kind(value: object) -> str:
    return f"one on {value.device}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"


def _gather(tensors: Batch, index: torch.Tensor) -> Batch:
    return {name: tensor.index_select(0, index) for name, tensor in tensors.items()}


def joined(parts: Sequence[Batch]) -> Batch:
    """Batches one after the other."""
    return parts[0] if len(parts) == 1 else {n: torch.cat([part[n] for part in parts]) for n in parts[0]}


def _described(form: dict[str, tuple[torch.dtype, torch.Size]]) -> str:
    return ", ".join(f"{name}: {dtype} {list(shape)}" for name, (dtype, shape) in form.items())


def _memory_budget_bytes(device: torch.device, threads: int) -> int:
    """Memory that one shard may fill: half of the free GPU, or of a fair share of the machine's memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return physical // 2 * threads // max(threads, os.cpu_count() or 1)
