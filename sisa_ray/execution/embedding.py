"""A frozen backbone at work: the features of slices, cached in the run, and those of a table asked about."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import pyarrow as pa

from sisa_ray.core.identity import Spec
from sisa_ray.core.lineage import feature_key
from sisa_ray.core.records import SliceRef
from sisa_ray.learning.arithmetic import applied, platform_fingerprint
from sisa_ray.learning.backbone import Backbone, EmbeddedSlice, encode_bucket
from sisa_ray.learning.passes import features_of
from sisa_ray.learning.recipe import Batch
from sisa_ray.storage.features import FeatureStore
from sisa_ray.storage.objects import ObjectStore
from sisa_ray.storage.slices import open_slice

logger = logging.getLogger("sisa_ray.embedding")


def embedded_slices(
    spec: Spec, backbone: Backbone, store: ObjectStore, refs: Sequence[SliceRef], *, attempt: str
) -> list[EmbeddedSlice]:
    """What the backbone makes of these slices: from the run's cache, where something is missing after computing it."""
    platform = platform_fingerprint(spec.config.arithmetic)
    caches = {
        shard: FeatureStore(store, shard=shard, attempt=attempt, platform=platform)
        for shard in {ref.shard for ref in refs}
    }
    return [_embedded(spec, backbone, store, ref, caches[ref.shard]) for ref in refs]


def _embedded(
    spec: Spec, backbone: Backbone, store: ObjectStore, ref: SliceRef, cache: FeatureStore
) -> EmbeddedSlice:
    sisa = spec.config.sisa
    key = feature_key(spec.stage_digest, ref.content_digest)
    rows = open_slice(store, ref, num_buckets=sisa.order_buckets)
    sizes = [rows.bucket_num_rows(bucket) for bucket in range(sisa.order_buckets)]
    paths: dict[int, str] = {}
    started, num_computed = time.monotonic(), 0
    for bucket, size in enumerate(sizes):
        if not size:
            continue
        path = cache.find(key, bucket)
        if path is None:
            with applied(spec.config.arithmetic):
                data = encode_bucket(backbone, rows.read_bucket(bucket), seed=sisa.seed)
            path = cache.save(key, bucket, ref.slice, data)
            num_computed += size
        paths[bucket] = path
    if num_computed:
        seconds = time.monotonic() - started
        logger.info(
            "shard %d slice %d: features of %d records in %.1f s", ref.shard, ref.slice, num_computed, seconds
        )
    return EmbeddedSlice(sizes, lambda bucket: cache.read(paths[bucket]))


def embedded_table(spec: Spec, backbone: Backbone, table: pa.Table) -> Batch:
    """What the backbone makes of rows asked about (role columns; labels are not looked at). Nothing is kept of it."""
    with applied(spec.config.arithmetic):
        return backbone.embed_table(features_of(table))


def pieces_of(table: pa.Table, *, num_pieces: int, rows_per_pass: int) -> list[pa.Table]:
    """A table in about so many pieces of whole passes, so that cutting it changes no bit.

    >>> [piece.num_rows for piece in pieces_of(pa.table({"x": range(10)}), num_pieces=2, rows_per_pass=4)]
    [8, 2]
    """
    num_passes = -(-table.num_rows // rows_per_pass)
    rows = max(1, -(-num_passes // num_pieces)) * rows_per_pass
    return [table.slice(first, rows) for first in range(0, table.num_rows, rows)]
