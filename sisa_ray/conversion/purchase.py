"""Data of the shape of the paper's Purchase: 600 binary features (products bought), two classes.

The real table (Kaggle's Acquire Valued Shoppers Challenge) may not be handed on, so shoppers are drawn here. Each has
one of ``NUM_PROFILES`` profiles, half of them of either class. A product's popularity is raised or lowered by
``STRENGTH``/256, in a share of ``SHARED``/256 of a profile's products the way its class has it, in the others the
profile's own way. A model so has to learn what its class has in common, and every profile besides, which takes
records: a twentieth of them is not enough.

All of it is integer arithmetic on the raw output of PCG64, which NumPy promises never to change: the same seed gives
the same bytes on every machine and in every version.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sisa_ray.conversion.output import fresh_directory
from sisa_ray.core.errors import ConfigError

Split = Literal["train", "test"]
UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]

NUM_FEATURES = 600
NUM_TRAIN = 250_000
NUM_TEST = 50_000
NUM_PROFILES = 10
STRENGTH = 14
SHARED = 160
CHUNK = 10_000
"""Records drawn at a time; part of what a seed means."""

SCHEMA = pa.schema([("id", pa.string()), ("features", pa.binary(NUM_FEATURES)), ("label", pa.int64())])
_LOW, _HIGH = 13, 128
"""Popularity of a product: 5 to 50 %, in 256ths."""
_POPULATION, _SHOPPERS = 0, 1


@dataclass(frozen=True, kw_only=True)
class PurchaseFiles:
    """What was written: directory, records of each table, and the seed."""

    out: str
    num_train: int
    num_test: int
    seed: int


def write_purchase(
    out: str,
    *,
    num_train: int = NUM_TRAIN,
    num_test: int = NUM_TEST,
    seed: int = 0,
    overwrite: bool = False,
) -> PurchaseFiles:
    """Write ``train.parquet`` and ``test.parquet`` into the new directory ``out``, in pieces of ``CHUNK`` records.

    Columns: ``id`` string, ``features`` fixed binary of 600 bytes (each 0 or 1), ``label`` int64 (0 or 1). The first n
    records of a table are the same whatever its size, so that a smaller table is a sample of the larger.

    Raises:
        ConfigError: for sizes or a seed out of range, or where ``out`` is taken.
    """
    _check("--train", num_train, 1, 10**8)
    _check("--test", num_test, 1, 10**8)
    _check("--seed", seed, 0, 2**63 - 1)
    sizes: dict[Split, int] = {"train": num_train, "test": num_test}
    with fresh_directory(out, overwrite=overwrite) as directory:
        for split, size in sizes.items():
            path = directory / f"{split}.parquet"
            with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
                for features, label, first in purchase_chunks(split, size, seed=seed):
                    writer.write_table(_to_table(split, features, label, first))
    return PurchaseFiles(out=str(Path(out).absolute()), num_train=num_train, num_test=num_test, seed=seed)


def purchase_arrays(split: Split, num_records: int, *, seed: int = 0) -> tuple[UInt8Array, Int64Array]:
    """The same records in memory: features ``(num_records, 600)`` of 0 and 1, labels ``(num_records,)``."""
    features = np.empty((num_records, NUM_FEATURES), dtype=np.uint8)
    labels = np.empty(num_records, dtype=np.int64)
    for chunk, label, first in purchase_chunks(split, num_records, seed=seed):
        features[first : first + len(chunk)] = chunk
        labels[first : first + len(chunk)] = label
    return features, labels


def purchase_chunks(
    split: Split, num_records: int, *, seed: int = 0
) -> Iterator[tuple[UInt8Array, Int64Array, int]]:
    """Features ``(n, 600)``, labels ``(n,)`` and the number of the first record, chunk by chunk."""
    thresholds = _profiles(seed)
    for first in range(0, num_records, CHUNK):
        bits = _generator(seed, _SHOPPERS, ("train", "test").index(split), first // CHUNK)
        profiles = (bits.random_raw(CHUNK) % np.uint64(NUM_PROFILES)).astype(np.int64)
        # A byte of noise below p in 256: bought. Profiles alternate between the classes.
        noise = _bytes(bits, CHUNK * NUM_FEATURES).reshape(CHUNK, NUM_FEATURES)
        bought = (noise < thresholds[profiles]).view(np.uint8)
        rows = min(CHUNK, num_records - first)
        yield bought[:rows], profiles[:rows] % 2, first


def _profiles(seed: int) -> UInt8Array:
    """Probability that a profile's shopper buys a product, in 256ths: shape ``(NUM_PROFILES, NUM_FEATURES)``."""
    bits = _generator(seed, _POPULATION)
    popularity = _LOW + _bytes(bits, NUM_FEATURES).astype(np.int64) * (_HIGH - _LOW) // 256
    by_class = _signs(bits, 2)[np.arange(NUM_PROFILES) % 2]
    own = _signs(bits, NUM_PROFILES)
    is_shared = _bytes(bits, NUM_PROFILES * NUM_FEATURES).reshape(own.shape) < SHARED
    preference = STRENGTH * np.where(is_shared, by_class, own)
    chance: Int64Array = np.clip(popularity + preference, 1, 255)
    return chance.astype(np.uint8)


def _signs(bits: np.random.PCG64, rows: int) -> Int64Array:
    ones = _bytes(bits, rows * NUM_FEATURES).reshape(rows, NUM_FEATURES) & 1
    return 1 - 2 * ones.astype(np.int64)


def _generator(seed: int, *path: int) -> np.random.PCG64:
    return np.random.PCG64(np.random.SeedSequence(seed, spawn_key=path))


def _bytes(bits: np.random.PCG64, count: int) -> UInt8Array:
    words: npt.NDArray[np.uint64] = bits.random_raw(-(-count // 8))
    return np.frombuffer(words.astype("<u8").tobytes(), dtype=np.uint8, count=count)


def _to_table(split: Split, features: UInt8Array, labels: Int64Array, first: int) -> pa.Table:
    rows = pa.py_buffer(np.ascontiguousarray(features))
    columns = [
        pa.array([f"{split}-{first + row:06d}" for row in range(len(labels))], pa.string()),
        pa.FixedSizeBinaryArray.from_buffers(pa.binary(NUM_FEATURES), len(labels), [None, rows]),
        pa.array(labels),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _check(option: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{option}: must be a whole number from {low} to {high}, not {value}")
