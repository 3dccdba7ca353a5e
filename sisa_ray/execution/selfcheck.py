"""Schedules the self-check: the same two stages in one process and, the second alone, in a fresh one."""

from __future__ import annotations

from sisa_ray.core.records import SliceRef
from sisa_ray.core.state import RunState
from sisa_ray.execution.actor import BuildJob
from sisa_ray.execution.pool import ShardPool
from sisa_ray.learning.selfcheck import compare_halves
from sisa_ray.storage.run import Run


def self_check(run: Run, pool: ShardPool, job: BuildJob) -> dict[str, str] | None:
    """Check the recipe once a run and platform, before anything is trained.

    Returns:
        The platform that passed, or None where it had passed before (or nobody has records).

    Raises:
        SelfCheckError: where a stage depends on more than the checkpoint before it.
    """
    return pool.outlive(lambda: _self_check(run, pool, job))


def _self_check(run: Run, pool: ShardPool, job: BuildJob) -> dict[str, str] | None:
    slices = _a_shards_slices(run.state)
    first = pool.take()
    platform: dict[str, str] = pool.call(first, "ready")
    if platform in run.state.self_checked or not slices:
        pool.give(first)
        return None
    chain = pool.call(first, "self_check_chain", job, slices)
    pool.give(first)
    second = pool.take(fresh=True)
    alone = pool.call(second, "self_check_alone", job, slices, chain.between)
    pool.give(second)
    compare_halves(run.spec.config.recipe.class_path, chain, alone)
    return platform


def _a_shards_slices(state: RunState) -> tuple[SliceRef, ...]:
    """Two slices with records of one shard, or the only one that any shard has."""
    only: tuple[SliceRef, ...] = ()
    for shard in sorted(state.slices.shards):
        found = tuple(ref for _, ref in sorted(state.slices.of(shard).items()) if ref.num_records)
        if len(found) > 1:
            return found[:2]
        only = only or found
    return only
