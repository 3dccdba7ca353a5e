"""What must hold in every simulated history. The referee sees every log entry and every deletion, and nothing else.

It decides from the records themselves, where it can, so that a broken fold does not blind it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from sisa_ray.core.planner import named_paths
from sisa_ray.core.records import (
    BatchCertified,
    BatchPlanned,
    GenerationPublished,
    Purged,
    PurgePlanned,
    Record,
    RequestAccepted,
    RequestRejected,
    SlicesRewritten,
)
from sisa_ray.core.requests import EntryMark
from sisa_ray.core.state import RunState
from tests.core.builders import digest_of
from tests.core.cluster_start import contents_without
from tests.core.cluster_store import NUM_SLICES, PERMANENT, Entry

if TYPE_CHECKING:
    from tests.core.cluster_run import Submission
    from tests.core.cluster_world import World

Invariant = Literal[
    "nothing is lost",
    "nothing is done twice",
    "published models know no forgotten",
    "certified means purged",
    "purge spares what is named",
    "the log does not fork",
    "deadlines are met",
    "a run ends",
    "contents are those of a run without them",
]


class Violation(Exception):
    """Something that must hold does not."""

    def __init__(self, invariant: Invariant, message: str) -> None:
        super().__init__(f"{invariant}: {message}")
        self.invariant = invariant


class Referee:
    """Watches one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.truth = RunState()
        self._head = ""
        self._seq = -1
        self._tags: dict[str, tuple[str, ...]] = {}
        self._keys: dict[str, str] = {}
        self._batch_of: dict[str, str] = {}
        self._people: dict[str, frozenset[str]] = {}
        """Batch -> whom its requests name."""
        self._rewritten: dict[str, int] = {}
        self._purged: list[tuple[int, int]] = []
        """(entry, the store's count at the listing) of each purge that was verified."""
        self._spared: set[str] = set()
        """Payloads that were being written when the last purge was planned."""
        self._certified: set[str] = set()
        self._rejected: set[str] = set()
        self._forgotten: frozenset[str] = frozenset()
        self._seen: dict[str, frozenset[str]] = {}
        self._acknowledged: dict[str, tuple[str, ...]] = {}
        self._named: tuple[int, set[str]] = (-2, set())

    @property
    def head(self) -> tuple[int, str]:
        """The last entry's number and commit."""
        return self._seq, self._head

    # What happens

    def saw(self, digest: str, seen: frozenset[str]) -> None:
        """A checkpoint's bytes come of the data of these people, and what they were trained on before."""
        self._seen[digest] = seen

    def on_entry(self, entry: Entry) -> None:
        if (entry.seq, entry.before) != (self._seq + 1, self._head):
            message = (
                f"entry {entry.seq} follows {entry.before!r}; the log is at {self._seq} ({self._head!r})"
            )
            raise Violation("the log does not fork", message)
        self._seq, self._head = entry.seq, entry.commit
        self.truth.entry = EntryMark(seq=entry.seq, digest=entry.commit, at=entry.at)
        for record in entry.records:
            self._judge(record)
            self.truth.apply(record)
            if isinstance(record, GenerationPublished):
                self._check_published(record)

    def _judge(self, record: Record) -> None:
        match record:
            case RequestAccepted():
                self._on_accepted(record)
            case BatchPlanned():
                for request in record.requests:
                    if self._batch_of.setdefault(request, record.batch) != record.batch:
                        raise Violation("nothing is done twice", f"{request} is in two batches")
                people = (tag for request in record.requests for tag in self._tags[request])
                self._people[record.batch] = frozenset(tag.removeprefix("tag ") for tag in people)
            case RequestRejected():
                self._rejected.add(record.request)
                if record.request in self._batch_of:
                    raise Violation("nothing is done twice", f"{record.request} is rejected in its batch")
            case SlicesRewritten():
                self._rewritten[record.batch] = self._seq
                self._forgotten |= self._people[record.batch]
            case PurgePlanned():
                self._spared = self._in_flight()
            case Purged():
                self._purged.append((self._seq, self._world.store.listed[record.attempt]))
            case BatchCertified():
                self._check_certified(record.batch)

    def _on_accepted(self, record: RequestAccepted) -> None:
        if record.key is not None and self._keys.setdefault(record.key, record.request) != record.request:
            return  # the first counts
        self._tags[record.request] = record.tags
        world = self._world
        now = world.loop.now()
        policy = world.spec.config.unlearning
        may_wait = record.priority == "normal" and record.due_at >= now
        due = record.due_at if may_wait else now
        margin = timedelta(seconds=policy.safety_margin_s)
        by_s = (max(due, now + margin) - now).total_seconds() + world.loop.now_s
        world.loop.at(by_s, lambda: self._check_deadline(record.request, by_s))

    def acknowledged(self, asked: Submission, request: str) -> None:
        """A client was told that its request is durable."""
        there = self._tags.get(request)
        if there is None or there != tuple(f"tag {s}" for s in asked.subjects):
            raise Violation("nothing is lost", f"{request} was acknowledged, but is not in the log")
        if asked.key is not None and self._keys[asked.key] != request:
            raise Violation("nothing is done twice", f"{request}: its key is that of {self._keys[asked.key]}")
        self._acknowledged[request] = asked.subjects

    # Continuous checks

    def named(self) -> set[str]:
        """What the state of the whole log names."""
        if self._named[0] != self._seq:
            self._named = (self._seq, _NAMED_PATHS(self._world.spec, self.truth))
        return self._named[1]

    def on_purge(self, path: str) -> None:
        """A purge is about to delete an object."""
        if path in self.named():
            raise Violation("purge spares what is named", f"{path} is deleted, though the state names it")
        holder = self._world.holder()
        if holder is not None and path in holder.in_work():
            raise Violation(
                "purge spares what is named", f"{path} is deleted while {holder.attempt} writes it"
            )

    def _check_published(self, record: GenerationPublished) -> None:
        for shard, key in enumerate(record.keys):
            ref = self.truth.stages[shard, NUM_SLICES]
            known = self._seen[ref.file_digest] & self._forgotten
            if known or ref.key != key:
                what = f"knows {sorted(known)}" if known else "was not built"
                message = f"generation {record.generation}: the constituent of shard {shard} {what}"
                raise Violation("published models know no forgotten", message)

    def _check_certified(self, batch: str) -> None:
        self._certified.add(batch)
        after = [count for seq, count in self._purged if seq > self._rewritten[batch]]
        if not after:
            raise Violation("certified means purged", f"{batch}: nothing was purged after its slices")
        named = self.named()
        asking = self._in_flight() | self._spared
        for path, there in self._world.store.objects.items():
            is_payload = path.startswith("requests/")
            if not there.held & self._people[batch] or (is_payload and path in named | asking):
                continue  # somebody asks again; what comes to nothing is swept later
            # What superseded writers and killed actors wrote after the listing is swept later.
            if there.written < after[-1] or path in named:
                people = sorted(there.held & self._people[batch])
                raise Violation("certified means purged", f"{batch}: {path} holds {people} still")

    def _in_flight(self) -> set[str]:
        return {p for c in self._world.coordinators if c.is_alive for p in c.run.in_flight}

    def _check_deadline(self, request: str, by_s: float) -> None:
        batch = self._batch_of.get(request)
        if request in self._rejected:
            return
        margin_s = self._world.spec.config.unlearning.safety_margin_s
        if self._world.calm_since_s > by_s - margin_s:
            return
        self._world.seen["deadline that was due"] += 1
        if batch in self._certified:
            return
        raise Violation(
            "deadlines are met",
            f"{request} is not certified {margin_s / 3600:.0f} hours after a coordinator had to begin, "
            f"and nothing has gone wrong since",
        )

    # The end

    def is_over(self) -> bool:
        """Whether nothing is open, and nothing lies there that is not named."""
        state = self.truth
        if state.requests or state.batches or state.uncertified or state.purge_due or state.opened_payloads:
            return False
        return self._strays() == []

    def _strays(self) -> list[str]:
        return [p for p in self._world.store.objects if p not in self.named() and not p.startswith(PERMANENT)]

    def check_end(self, *, is_over: bool) -> None:
        state = self.truth
        for request, subjects in self._acknowledged.items():
            there = state.find_request(request)
            gone = there is None or there.tags != tuple(f"tag {s}" for s in subjects)
            if request in self._rejected:
                continue
            if gone or (is_over and self._batch_of.get(request) not in self._certified):
                raise Violation("nothing is lost", f"{request} was acknowledged, and was not carried out")
        if not is_over:
            left = [*state.requests, *state.batches, *state.uncertified, *state.opened_payloads]
            message = f"open: {left}; purge due: {state.purge_due}; strays: {self._strays()}"
            raise Violation("a run ends", message)
        missing = self.named() - self._world.store.objects.keys()
        if missing:
            raise Violation("a run ends", f"named, but not there: {sorted(missing)}")
        self._check_contents()

    def _check_contents(self) -> None:
        asked = (tags for request, tags in self._tags.items() if request not in self._rejected)
        forgotten = frozenset(tag.removeprefix("tag ") for tags in asked for tag in tags)
        slices, stages = contents_without(forgotten)
        state = self.truth
        what: Invariant = "contents are those of a run without them"
        found = {where: s.content_digest for where, s in state.slices.items()}
        if found != slices:
            raise Violation(what, f"slices differ: {sorted(w for w in slices if slices[w] != found[w])}")
        keys = {where: ref.key for where, ref in state.stages.items()}
        if keys != {where: key for where, (key, _) in stages.items()}:
            raise Violation(what, f"stages differ: {sorted(keys.items() ^ stages.items())}")
        for where, ref in sorted(state.stages.items()):
            before = state.stages.get((where[0], where[1] - 1))
            previous = before.file_digest if before is not None else ""
            if ref.file_digest != digest_of("state", ref.key, previous, ref.platform["device"]):
                raise Violation(what, f"stage {where} descends from other bytes than the log names")
            is_comparable = all(r.platform["device"] == "cpu" for r in state.stages.values())
            if is_comparable and ref.file_digest != stages[where][1]:
                raise Violation(what, f"stage {where} has other bytes")


_NAMED_PATHS: Callable[..., set[str]] = named_paths
"""The planner's own, whatever a test breaks."""
