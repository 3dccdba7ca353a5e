"""A replica put together: models, lease, passes, HTTP. Ray Serve runs it; so does anything with an event loop."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, cast

from sisa_ray.core.errors import SisaError
from sisa_ray.core.identity import Spec
from sisa_ray.core.leases import boot_time
from sisa_ray.core.view import View
from sisa_ray.execution.acceptance import Acceptance, Submission
from sisa_ray.execution.leases import Lease, Renewal
from sisa_ray.execution.results import RequestRow
from sisa_ray.execution.served import ServedRun
from sisa_ray.serving.config import ServeConfig
from sisa_ray.serving.desk import Desk
from sisa_ray.serving.electorate import Electorate, ModelLoader, schema_of, without_models
from sisa_ray.serving.gate import Audit, Gate
from sisa_ray.serving.http import Http
from sisa_ray.serving.keeper import Keeper
from sisa_ray.serving.passes import Passes
from sisa_ray.serving.predict_api import describe_predict
from sisa_ray.serving.replica import Forward, Predictor, warm_up
from sisa_ray.storage.objects import ObjectStore

logger = logging.getLogger("sisa_ray.serving")

_TICK_S = 1.0
_READY_PAUSE_S = 0.02
_DESCRIBE_EVERY = 5


class Coordinator(Protocol):
    """What a replica asks of the coordinator of its run."""

    async def renew(self, asked: Renewal) -> Lease:
        """Acknowledge what the replica holds, and renew its lease."""

    async def leave(self, replica: str) -> None:
        """The replica answers no more."""

    async def submit(self, submissions: Sequence[Submission]) -> list[Acceptance | SisaError]:
        """Have requests accepted."""

    async def find_request(self, name: str) -> RequestRow | None:
        """A request by its id."""

    async def certificate_of(self, name: str) -> bytes | None:
        """The certificate that closed a request."""

    async def describe(self) -> ServedRun:
        """The run."""

    async def spend(self, wanted: int) -> int:
        """Take answers in private mode from the budget."""

    async def call(self, task: str, **arguments: Any) -> Any:
        """Have a task done between batches."""


class Meters(Protocol):
    """Where measurements go."""

    def on_answer(self, status: int, rows: int, seconds: float) -> None:
        """A prediction request ended."""

    def on_pass(self, rows: int, seconds: float) -> None:
        """A forward pass ended; called from its thread."""

    def hand_over(self, num_voters: int, generation: int) -> None:
        """About once a second."""

    def hand_over_run(self, run: ServedRun) -> None:
        """Now and then: what the coordinator says of the run."""


class Service:
    """One replica of an ensemble.

    Args:
        config: of the deployment.
        spec: of the run.
        store: of the run; only checkpoints are read.
        coordinator: of the run.
        audit_log: gets a JSON object a line.
        meters: get what is measured.
        forward: asks others to vote; without it this replica holds every model itself.
        clock: that leases are measured by.
    """

    def __init__(
        self,
        config: ServeConfig,
        spec: Spec,
        store: ObjectStore,
        coordinator: Coordinator,
        *,
        audit_log: logging.Logger,
        meters: Meters,
        forward: Forward | None = None,
        clock: Callable[[], float] = boot_time,
    ) -> None:
        self.replica = uuid.uuid4().hex
        self._config = config
        self._spec = spec
        self._store = store
        self._coordinator = coordinator
        self._meters = meters
        self._audit = Audit(audit_log)
        self._tasks: list[asyncio.Task[None]] = []
        shards = tuple(range(spec.config.sisa.num_shards))
        self._load_models = ModelLoader(spec, store, shards).load if forward is None else without_models
        self._passes = Passes(config.rows_per_pass, on_pass=meters.on_pass) if forward is None else None
        self._forward: Forward = forward or cast("Passes", self._passes)
        self.keeper = Keeper(self.replica, coordinator.renew, self._load, clock=clock)
        self.predictor = Predictor(
            spec, self.keeper, self._forward, spend=coordinator.spend, max_rows=config.max_rows
        )
        gate = Gate(
            lambda: self.keeper.tokens,
            is_open=not config.authentication,
            per_s={"predict": config.predictions_per_s, "desk": config.requests_per_s},
        )
        desk = Desk(
            coordinator,
            gate,
            self._audit,
            is_ready=lambda: None if self.keeper.is_serving else self.keeper.problem,
            predict_api=describe_predict(spec),
            max_subjects=config.max_subjects,
        )
        self.http = Http(
            self.predictor,
            gate,
            self._audit,
            desk.app(),
            task=spec.task,
            max_body_bytes=config.max_body_bytes,
            on_answer=meters.on_answer,
        )

    async def start(self) -> None:
        """Return once this replica can answer.

        Waits for a generation to be published and for the coordinator, as long as that takes.
        """
        self._tasks = [asyncio.create_task(self.keeper.run()), asyncio.create_task(self._tick())]
        while not self.keeper.is_serving:
            self.check()
            await asyncio.sleep(_READY_PAUSE_S)
        electorate = self.keeper.electorate
        assert electorate is not None
        finishers = self.predictor.finishers
        await warm_up(
            self._forward,
            electorate,
            self.predictor.rows.schema,
            finishers.finisher(finishers.question({})),
            self._config.rows_per_pass,
        )
        logger.info("ready: %d voters, generation %d", len(electorate.voters), electorate.generation)

    def check(self) -> None:
        """Raise where this replica has to be replaced. A lease that ran out is no such thing: it comes back."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()
                raise RuntimeError("a task of the replica has ended")

    async def stop(self) -> None:
        """Leave: nothing is answered any more, so nobody has to wait for the lease to run out."""
        for task in self._tasks:
            task.cancel()
        self.keeper.give_up()
        with suppress(SisaError):
            await self._coordinator.leave(self.replica)
        if self._passes is not None:
            self._passes.stop()
        self._audit.flush()

    def _load(self, view: View, before: Electorate | None) -> Electorate:
        self.predictor.reader(schema_of(view.columns))
        return self._load_models(view, before)

    async def _tick(self) -> None:
        count = 0
        while True:
            await asyncio.sleep(_TICK_S)
            electorate = self.keeper.electorate
            if electorate is not None:
                num_voters = len(electorate.voters) if self.keeper.is_serving else 0
                self._meters.hand_over(num_voters, electorate.generation)
            self._audit.flush()
            count += 1
            if count % _DESCRIBE_EVERY == 0:
                await self._hand_over_run()

    async def _hand_over_run(self) -> None:
        ask: Awaitable[ServedRun] = self._coordinator.describe()
        with suppress(SisaError):
            self._meters.hand_over_run(await ask)
