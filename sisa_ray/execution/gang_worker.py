"""One of several workers of a shard: all of them run this, in the same order, and none of it knows Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sisa_ray.core.errors import IntegrityError
from sisa_ray.core.keys import file_digest
from sisa_ray.core.planner import ShardPlan, StagePlan
from sisa_ray.core.records import PartRef, StageRef
from sisa_ray.execution.actor import BuildJob, ShardActor
from sisa_ray.execution.events import CheckpointBroken, ShardEvent, StageFinished, ignore
from sisa_ray.learning.arithmetic import platform_fingerprint
from sisa_ray.learning.team import Team
from sisa_ray.learning.trainer import Partial
from sisa_ray.storage import layout
from sisa_ray.storage.checkpoints import FoundPartial, PartialStore, index_of, read_checked


class GangWorker(ShardActor):
    """Builds a shard's stages together with the other workers of torch's default process group."""

    def work(self, job: BuildJob, plan: ShardPlan, post: Callable[[ShardEvent], object]) -> None:
        """Build the stages of ``plan``; worker 0 posts what happens, a finished stage once it is durable."""
        team = Team(self._spec.config.arithmetic.parallel)
        if team.rank:
            post = ignore
        state: bytes | None = None
        if plan.start is not None:
            state, problem = _read_start(team, job, plan.start)
            if problem is not None:
                post(CheckpointBroken(shard=plan.shard, stage=plan.start.stage, problem=problem))
                return
        factory = self._recipe.factory(job.schema)
        loader = self._loader(job, plan.slices[: plan.stages[-1].stage], factory)
        platform = _one_platform(team.gather(platform_fingerprint(self._spec.config.arithmetic)))
        for number, stage in enumerate(plan.stages):
            partials = PartialStore(
                job.store,
                shard=plan.shard,
                stage=stage.stage,
                key=stage.key,
                attempt=job.attempt,
                part=team.part,
            )
            # Only the first stage of a plan can have been cut short by a crash.
            resume = _agreed_partial(team, partials) if number == 0 else None
            result = self._train(plan.shard, stage, factory, loader, state, partials, resume, post, team=team)
            state = result.state
            path, digest, size_bytes, parts = _stored(team, job, plan.shard, stage, state)
            ref = StageRef(
                shard=plan.shard,
                stage=stage.stage,
                key=stage.key,
                path=path,
                file_digest=digest,
                size_bytes=size_bytes,
                parts=parts,
                num_steps=stage.num_steps,
                record_visits=stage.num_steps * self._spec.batch_size,
                seconds=round(result.seconds, 3),
                platform=platform,
            )
            post(StageFinished(ref=ref))
            # Nobody deletes what the stage could be resumed from before it is told of.
            team.gather(None)
            partials.clear()


def _read_start(team: Team, job: BuildJob, start: StageRef) -> tuple[bytes | None, str | None]:
    """The checkpoint to start from, or this worker's part of it; else what is wrong with it, to every worker."""
    state, problem = None, None
    try:
        state = read_checked(job.store, start.parts[team.rank] if start.parts else start)
    except IntegrityError as error:
        problem = str(error)
    return state, next(filter(None, team.gather(problem)), None)


def _agreed_partial(team: Team, partials: PartialStore) -> Partial | None:
    """The furthest mid-stage state that every worker can read."""
    found = partials.found() if team.rank == 0 else []
    for step, parts in team.gather([(f.step, f.parts) for f in found])[0]:
        data = partials.read(FoundPartial(step=step, parts=tuple((path, digest) for path, digest in parts)))
        if all(team.gather(data is not None)):
            assert data is not None, "this worker has read it as well"
            return Partial(step=step, data=data)
    return None


def _stored(
    team: Team, job: BuildJob, shard: int, stage: StagePlan, state: bytes
) -> tuple[str | None, str, int, tuple[PartRef, ...]]:
    """Store the state after a stage, where it is kept: payload first, then the index.

    Returns:
        Path, digest and size of the state or of its index, and the parts.
    """
    if not team.shares_out:
        path = layout.checkpoint_path(shard, stage.stage, job.attempt, stage.key) if stage.keep else None
        if path is not None and team.rank == 0:
            job.store.put(path, state)
        return path, file_digest(state), len(state), ()
    index_path = layout.index_path(shard, stage.stage, job.attempt, stage.key)
    part = PartRef(
        path=layout.part_path(index_path, *team.part), file_digest=file_digest(state), size_bytes=len(state)
    )
    if stage.keep:
        job.store.put(part.path, state)
    parts = tuple(PartRef.model_validate(said) for said in team.gather(part.model_dump()))
    index = index_of(parts)
    if stage.keep and team.rank == 0:
        job.store.put(index_path, index)
    return index_path if stage.keep else None, file_digest(index), len(index), parts if stage.keep else ()


def _one_platform(platforms: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The platform of all workers; where they have several, one that equals no other."""
    facts = sorted({name for platform in platforms for name in platform})
    told = {name: [platform.get(name, "") for platform in platforms] for name in facts}
    return {name: values[0] if len(set(values)) == 1 else " | ".join(values) for name, values in told.items()}
