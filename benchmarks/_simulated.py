"""A trained run of any size whose slices and checkpoints are names: the store, the shard actors, the people."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.identity import CodeIdentity, Spec
from sisa_ray.core.keys import file_digest
from sisa_ray.core.places import Place
from sisa_ray.core.planner import Lineage, ShardPlan, missing_stages
from sisa_ray.core.records import (
    AttemptOpened,
    GenerationPublished,
    SelfChecked,
    SliceRef,
    StageBuilt,
    StageRef,
    TableIngested,
)
from sisa_ray.execution.events import OnEvent, StageFinished
from sisa_ray.execution.forget import route
from sisa_ray.execution.workers import Workers
from sisa_ray.storage import layout
from sisa_ray.storage.local import LocalStore
from sisa_ray.storage.objects import ObjectInfo
from sisa_ray.storage.run import Run, open_with_spec
from sisa_ray.storage.slices import store_slice
from sisa_ray.storage.tables import RECORD_ID

PLATFORM = {"torch": "2", "device": "simulated"}
CHECKPOINT_BYTES = 1000
_AN_ENTRY = 1000


class NamesStore(LocalStore):
    """A local directory, and beside it objects that are nothing but names and sizes."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._sizes: dict[str, int] = {}
        self._sorted: list[str] | None = None

    def name(self, path: str, size_bytes: int) -> None:
        """Have an object."""
        self._sizes[path] = size_bytes
        self._sorted = None

    def list(self, prefix: str = "", *, all_versions: bool = False, after: str = "") -> Iterator[ObjectInfo]:
        """See :meth:`LocalStore.list`."""
        yield from super().list(prefix, all_versions=all_versions, after=after)
        if self._sorted is None:
            self._sorted = sorted(self._sizes)
        for at in range(bisect_left(self._sorted, prefix), len(self._sorted)):
            path = self._sorted[at]
            if not path.startswith(prefix):
                break
            if path > after:
                yield ObjectInfo(path=path, size_bytes=self._sizes[path])

    def delete(self, paths: Iterable[str]) -> None:
        """See :meth:`LocalStore.delete`."""
        paths = list(paths)
        super().delete([path for path in paths if path not in self._sizes])
        named = [path for path in paths if self._sizes.pop(path, None) is not None]
        if named and self._sorted is not None:
            gone = set(named)
            self._sorted = [path for path in self._sorted if path not in gone]


class SimulatedPool:
    """Shard actors that need no time: a stage is built by giving it a name."""

    def __init__(self, store: NamesStore) -> None:
        self._store = store

    def num_slots(self) -> int:
        return 8

    def prepare(self, num_shards: int) -> None:
        pass

    def take(self, *, fresh: bool = False) -> None:
        pass

    def give(self, actor: object) -> None:
        pass

    def call(self, actor: object, method: str) -> dict[str, str]:
        assert method == "ready"
        return PLATFORM

    def outlive(self, work: Callable[[], Any]) -> Any:
        return work()

    def build(
        self,
        plans: Sequence[ShardPlan],
        *,
        job: Any,
        handle: Callable[[StageFinished], None],
        replan: Callable[[int], ShardPlan | None],
        poll: Callable[[Mapping[int, ShardPlan]], object],
    ) -> None:
        for first in plans:
            poll({})
            plan: ShardPlan | None = first
            while plan is not None:
                for stage in plan.stages:
                    ref = built(plan.shard, stage.stage, stage.key, job.attempt, num_steps=stage.num_steps)
                    assert ref.path is not None
                    self._store.name(ref.path, ref.size_bytes)
                    handle(StageFinished(ref=ref))
                plan = replan(plan.shard)


class SimulatedWorkers(Workers):
    """Workers of a :class:`SimulatedPool`."""

    def __init__(self, store: NamesStore) -> None:
        super().__init__()
        self._store = store

    def pool(self, spec: Spec, on_event: OnEvent) -> Any:
        return cast(Any, SimulatedPool(self._store))


def built(shard: int, stage: int, key: str, attempt: str, *, num_steps: int) -> StageRef:
    """A stage that was built, as its actor would tell."""
    return StageRef(
        shard=shard,
        stage=stage,
        key=key,
        path=layout.checkpoint_path(shard, stage, attempt, key),
        file_digest=file_digest(key.encode()),
        size_bytes=CHECKPOINT_BYTES,
        num_steps=num_steps,
        record_visits=16 * num_steps,
        seconds=0.01,
        platform=PLATFORM,
    )


def spec_of(directory: Path, *, num_shards: int, num_slices: int) -> Spec:
    """The spec of a run that nobody will train."""
    return Spec(
        config=SisaConfig.from_mapping(
            {
                "name": "scale",
                "storage_path": str(directory / "runs"),
                "data": {"train": "nowhere.parquet", "record_id": "id", "columns": {"features": "x"}},
                "recipe": {"class": "nets.Net"},
                "sisa": {"num_shards": num_shards, "num_slices": num_slices, "epochs": 10},
                "arithmetic": {"device": "cpu"},
            }
        ),
        code=CodeIdentity(modules={"nets": "0" * 64}, distributions={}, numerics=1),
        secret_id="",
        batch_size=16,
        task="classification",
        num_classes=2,
    )


def trained_run(
    directory: Path, *, num_shards: int, num_slices: int, num_subjects: int, people: Sequence[str]
) -> tuple[Run, NamesStore]:
    """A run that has trained its first generation; the slices that hold one of ``people`` are real."""
    spec = spec_of(directory, num_shards=num_shards, num_slices=num_slices)
    store = NamesStore(spec.config.address)
    run = open_with_spec(store, spec)
    held = route(run, people)
    each = max(1, num_subjects // (num_shards * num_slices))
    slices = tuple(
        _real_slice(run, (k, r), held[k, r]) if (k, r) in held else _named_slice(store, (k, r), each)
        for k in range(num_shards)
        for r in range(1, num_slices + 1)
    )
    schema = pa.schema([("features", pa.float32())]).serialize().to_pybytes().hex()
    run.commit(AttemptOpened(attempt="a0", command="benchmark"))
    run.commit(
        TableIngested(attempt="a0", columns=schema, slices=slices, num_rows=num_subjects, num_refused=0),
        SelfChecked(platform=PLATFORM),
    )
    lineage = Lineage(run.spec, run.state)
    records: list[StageBuilt] = []
    for plan in missing_stages(run.spec, run.state, lineage):
        for stage in plan.stages:
            ref = built(plan.shard, stage.stage, stage.key, "a0", num_steps=stage.num_steps)
            assert ref.path is not None
            store.name(ref.path, ref.size_bytes)
            records.append(StageBuilt(ref=ref))
        if len(records) >= _AN_ENTRY:
            run.commit(*records)
            records.clear()
    keys = tuple(lineage.keys(k)[-1] for k in range(num_shards))
    run.commit(*records, GenerationPublished(generation=1, keys=keys))
    return run, store


def _real_slice(run: Run, where: Place, people: Sequence[str]) -> SliceRef:
    """A slice of these people and one who stays."""
    ids = sorted([*people, f"stays-{where[0]}-{where[1]}"])
    table = pa.table({RECORD_ID: ids, "features": pa.array([0.5] * len(ids), pa.float32())})
    return store_slice(
        run.store,
        table,
        shard=where[0],
        slice_=where[1],
        attempt="a0",
        content_key=run.secret.content_key,
        num_buckets=1,
        seed=run.spec.config.sisa.seed,
    )


def _named_slice(store: NamesStore, where: Place, num_records: int) -> SliceRef:
    digest = file_digest(repr(where).encode())
    path = layout.slice_path(*where, "a0", digest)
    store.name(path, 100)
    return SliceRef(
        shard=where[0],
        slice=where[1],
        path=path,
        num_records=num_records,
        num_subjects=num_records,
        content_digest=digest,
        file_digest=digest,
        size_bytes=100,
    )
