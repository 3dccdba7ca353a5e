"""Views: who answers for which shard at a position of the log, and for whom nobody may (design, "A request's way")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sisa_ray.core.config import FencePolicy
from sisa_ray.core.identity import Spec
from sisa_ray.core.planner import Lineage
from sisa_ray.core.records import StageRef
from sisa_ray.core.state import RunState


@dataclass(frozen=True, kw_only=True)
class Voter:
    """What answers for a shard: one of its stages, and the weight of the records that it saw."""

    ref: StageRef
    num_records: int
    is_constituent: bool


@dataclass(frozen=True, kw_only=True)
class View:
    """What a replica answers from. Two views of one ``version`` differ in their position alone.

    Attributes:
        position: the log entry up to which requests are respected.
        version: the position at which its voters came to be.
        generation: the last published one.
        num_shards: of the run; shards that nobody answers for have no voter.
        voters: in the order of their shards.
        columns: the serialised Arrow schema of the role columns, in hex.
        num_ingests: in how many shards one person's records may be.
    """

    position: int
    version: int
    generation: int
    num_shards: int
    voters: tuple[Voter, ...]
    columns: str
    num_ingests: int

    @property
    def fenced(self) -> tuple[int, ...]:
        """Shards that do not answer from their constituent."""
        whole = {voter.ref.shard for voter in self.voters if voter.is_constituent}
        return tuple(shard for shard in range(self.num_shards) if shard not in whole)


def next_view(
    spec: Spec, state: RunState, fenced_from: Mapping[int, int], before: View | None = None
) -> View | None:
    """The view of a state; None where no generation is published yet.

    A shard whose voter knows nobody who is to be forgotten keeps it until the next generation is published, so that
    an answer never mixes generations, and nothing is loaded that is to be replaced soon.

    Args:
        spec: the run's.
        state: the fold of its log.
        fenced_from: for each shard, the first slice that may hold somebody who is to be forgotten.
        before: the view until now.
    """
    if state.ingested is None or not state.generation:
        return None
    lineage = Lineage(spec, state)
    policy = spec.config.serving.fence
    is_same_generation = before is not None and before.generation == state.generation
    kept = {v.ref.shard: v for v in before.voters} if before is not None and is_same_generation else {}
    voters = []
    for shard in range(spec.config.sisa.num_shards):
        voter = kept.get(shard)
        fence = fenced_from.get(shard)
        if voter is None or not _may_stay(lineage, state, voter, fence, policy):
            voter = _best(lineage, state, shard, fence, policy)
        if voter is not None:
            voters.append(voter)
    view = View(
        position=state.entry.seq,
        version=state.entry.seq,
        generation=state.generation,
        num_shards=spec.config.sisa.num_shards,
        voters=tuple(voters),
        columns=state.columns,
        num_ingests=state.num_ingests,
    )
    if before is None or not is_same_generation or view.voters != before.voters:
        return view
    return replace(view, version=before.version)


def tainted(spec: Spec, state: RunState, fenced_from: Mapping[int, int], view: View) -> frozenset[int]:
    """Shards whose voter of an earlier view must not answer any more, not even until another one is loaded."""
    policy = spec.config.serving.fence
    if policy == "keep-until-rebuilt":
        return frozenset()
    lineage = Lineage(spec, state)
    return frozenset(
        v.ref.shard for v in view.voters if not _is_clean(lineage, v.ref, fenced_from.get(v.ref.shard))
    )


def _is_clean(lineage: Lineage, ref: StageRef, fence: int | None) -> bool:
    return (fence is None or ref.stage < fence) and lineage.is_clean(ref)


def _may_stay(
    lineage: Lineage, state: RunState, voter: Voter, fence: int | None, policy: FencePolicy
) -> bool:
    """Whether a voter of the same generation goes on; its checkpoint must exist for replicas that start now."""
    ref = voter.ref
    if state.stages.get((ref.shard, ref.stage)) != ref or ref.path is None:
        return policy == "keep-until-rebuilt" and voter.is_constituent
    if voter.is_constituent:
        return policy == "keep-until-rebuilt" or _is_clean(lineage, ref, fence)
    # Whoever was looked for is not in the shard, or a checkpoint is back: nothing is to be rebuilt.
    is_whole_again = fence is None and _published(lineage, state, ref.shard) is not None
    return _is_clean(lineage, ref, fence) and not is_whole_again


def _best(
    lineage: Lineage, state: RunState, shard: int, fence: int | None, policy: FencePolicy
) -> Voter | None:
    num_stages = lineage.last_stage
    last = state.stages.get((shard, num_stages))
    is_unpublished = last is not None and _is_unpublished(state, last)
    if policy == "keep-until-rebuilt" and last is not None and last.path is not None and not is_unpublished:
        return _voter(lineage, last)
    if is_unpublished:
        fence = min(fence or num_stages, num_stages)
    ref = lineage.latest_clean(shard, before=fence)
    if ref is None or (policy != "rollback" and ref.stage < num_stages):
        return None
    return _voter(lineage, ref)


def _published(lineage: Lineage, state: RunState, shard: int) -> StageRef | None:
    """The constituent of a shard that the last generation has, where it is clean and its checkpoint exists."""
    num_stages = lineage.last_stage
    last = state.stages.get((shard, num_stages))
    if last is None or last.path is None or _is_unpublished(state, last) or not lineage.is_clean(last):
        return None
    return last


def _is_unpublished(state: RunState, last: StageRef) -> bool:
    """Whether the last stage of a shard was rebuilt since the last generation was published."""
    return bool(state.published_keys) and state.published_keys[last.shard] != last.key


def _voter(lineage: Lineage, ref: StageRef) -> Voter | None:
    """None where nobody's records were seen: a shard without records has no opinion."""
    num_records = lineage.num_records(ref.shard, ref.stage)
    if not num_records:
        return None
    return Voter(ref=ref, num_records=num_records, is_constituent=ref.stage == lineage.last_stage)
