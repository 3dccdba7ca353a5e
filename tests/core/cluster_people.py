"""The people of a simulated cluster: they ask to be forgotten, some of them twice, and some think better of it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sisa_ray.core.errors import SisaError
from tests.core.cluster_run import SimRun, Submission, accept_from_outside
from tests.core.cluster_store import DAY_S, HOUR_S, NOBODY, SUBJECTS, Group, Steps, Wait

if TYPE_CHECKING:
    from tests.core.cluster_world import World


class People:
    """Everybody who asks in one history."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.num_waiting = 0

    def come(self) -> tuple[float, list[float]]:
        """Who asks when: the end of it, and when most do."""
        world, rng = self._world, self._world.rng
        end_s = rng.choice((0.3, 1.0, 3.0)) * DAY_S
        times = [rng.random() * end_s for _ in range(rng.choice((1, 2)))]
        for number in range(rng.randrange(2, 6)):
            at_s = rng.choice(times) + rng.random() * rng.choice((1.0, 30.0, 1800.0))
            together = rng.choice((1, 1, 1, 2, 3))
            has_keys = rng.random() < 0.6
            asked = [self._submission(f"k{number}-{i}" if has_keys else None, at_s) for i in range(together)]
            delays = [at_s]
            if has_keys and rng.random() < 0.4:
                world.faults["sent twice"] += 1
                delays.append(at_s + rng.random() * rng.choice((1.0, HOUR_S)))
            for delay_s in delays:
                self.num_waiting += 1
                world.loop.spawn(self._client(asked, delay_s), Group("client"))
        return end_s, times

    def _submission(self, key: str | None, at_s: float) -> Submission:
        rng = self._world.rng
        on_the_way_s = rng.choice((0.0, 0.0, rng.random() * 3 * DAY_S))
        return Submission(
            subjects=tuple(rng.sample((*SUBJECTS, *NOBODY), rng.choice((1, 1, 2)))),
            key=key,
            received_at=self._world.loop.now() + timedelta(seconds=at_s - on_the_way_s),
            due_in=timedelta(days=rng.choice((1, 2, 4))),
            priority="urgent" if rng.random() < 0.1 else "normal",
        )

    def _client(self, asked: list[Submission], delay_s: float) -> Steps:
        """Asks until it is answered: of a coordinator, or through the log."""
        world, rng = self._world, self._world.rng
        yield delay_s
        while True:
            there = [c for c in world.coordinators if c.is_alive and not c.is_stopping and c.run.attempt]
            answer: list[str] | SisaError | None
            if there and rng.random() < 0.7:
                reply = rng.choice(there).submit(asked)
                if reply.answer is None:
                    yield Wait(reply.done, 600.0)
                answer = reply.answer
            else:
                answer = yield from self._ask_outside(asked)
            if isinstance(answer, list):
                break
            yield rng.random() * 300.0
        for one, request in zip(asked, answer, strict=True):
            world.say("client", f"acknowledged {request} {one.subjects}")
            world.referee.acknowledged(one, request)
        if rng.random() < 0.2:
            yield rng.random() * rng.choice((1.0, 60.0, DAY_S))
            self._withdraw(rng.choice(answer))
        self.num_waiting -= 1

    def _withdraw(self, request: str) -> None:
        """Whoever has the run is told to reject a request; where nobody has it, nobody does."""
        holder = self._world.holder()
        if holder is not None:
            holder.orders.append(request)
            holder.has_news = True
            self._world.loop.notify(holder.news)

    def _ask_outside(self, asked: list[Submission]) -> Steps:
        world = self._world
        group = Group(world.new_id("outside"))
        answers: list[list[str]] = []

        def ask() -> Steps:
            run = SimRun(world=world, group=group)
            try:
                answers.append((yield from accept_from_outside(run, asked)))
            except SisaError as error:
                world.say(group.name, f"gives up: {type(error).__name__}")
            group.is_alive = False

        world.loop.spawn(ask(), group)
        for _ in range(100):
            yield 30.0
            if not group.is_alive:
                break
        return answers[0] if answers else None
