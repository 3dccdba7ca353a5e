"""One replica: it predicts from its electorate, and hands out nothing that the fence does not allow."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import pyarrow as pa

from sisa_ray.core.errors import SisaError
from sisa_ray.core.identity import Spec
from sisa_ray.learning.passes import made_up_rows
from sisa_ray.serving.answers import Finishers, Question, Source
from sisa_ray.serving.electorate import Electorate
from sisa_ray.serving.keeper import Keeper
from sisa_ray.serving.passes import Answer, Finish
from sisa_ray.serving.problems import Problem, unavailable
from sisa_ray.serving.rows import RowReader

logger = logging.getLogger("sisa_ray.serving")

_NUM_TRIES = 5
_PAUSE_S = 0.1
_BLOCK = 1000
"""Answers in private mode that a replica takes from the budget at a time."""


class Forward(Protocol):
    """Where votes are counted: in this replica's passes, or in those of a group of replicas."""

    async def ask(self, table: pa.Table, electorate: Electorate, finish: Finish) -> tuple[Answer, Electorate]:
        """What ``finish`` makes of the votes of ``electorate``, and which of it voted."""


class Predictor:
    """Answers questions about rows.

    Args:
        spec: the run's.
        keeper: of the replica's lease.
        forward: asks the voters.
        spend: takes answers in private mode from the run's budget.
        max_rows: of one request.
    """

    def __init__(
        self,
        spec: Spec,
        keeper: Keeper,
        forward: Forward,
        *,
        spend: Callable[[int], Awaitable[int]],
        max_rows: int,
    ) -> None:
        config = spec.config
        self.finishers = Finishers(
            task=spec.task,
            default_rule=config.aggregation,
            epsilon=config.serving.epsilon_per_answer,
            num_classes=spec.num_classes,
        )
        self._spec = spec
        self._keeper = keeper
        self._forward = forward
        self._spend = spend
        self._max_rows = max_rows
        self._reader: RowReader | None = None
        self._private_left = 0
        self._spending = asyncio.Lock()

    def reader(self, schema: pa.Schema) -> None:
        """The columns of the run are known."""
        self._reader = RowReader(schema, self._spec.config.data.columns, max_rows=self._max_rows)

    @property
    def rows(self) -> RowReader:
        """Reads callers' rows.

        Raises:
            Problem: where nothing can be answered yet.
        """
        if self._reader is None:
            raise unavailable(f"not ready: {self._keeper.problem}")
        return self._reader

    async def predict(self, table: pa.Table, question: Question) -> tuple[Answer, Electorate]:
        """The answer about every row, and who gave it; to be handed over by :meth:`source_of` at once.

        Raises:
            Problem: where nobody may answer now, or the rows cannot be predicted.
        """
        finish = self.finishers.finisher(question)
        for _ in range(_NUM_TRIES):
            electorate = self._electorate()
            if question.is_private:
                await self._pay(table.num_rows)
            try:
                answer, voted = await self._forward.ask(table, electorate, finish)
            except (Problem, SisaError):
                raise
            except Exception as error:
                # The recipe's words could hold a caller's values.
                logger.warning("the recipe cannot predict a request's rows: %s", type(error).__name__)
                raise Problem(
                    422, "bad-rows", f"rows: the recipe cannot predict them ({type(error).__name__})"
                ) from None
            if self._keeper.may_hand_off(voted):
                return answer, voted
            if voted.at_most is not None:
                await asyncio.sleep(_PAUSE_S)  # those who voted are about to hear what this replica has heard
        raise unavailable(f"no answer can be given that is clean: {self._keeper.problem}", kind="fenced")

    def source_of(self, electorate: Electorate) -> Source:
        """Where an answer comes from, said at the moment at which it is handed over.

        Raises:
            Problem: where it must not be handed over any more.
        """
        if not self._keeper.may_hand_off(electorate):
            raise unavailable("the lease on the run's state could not be renewed", kind="fenced")
        position = self._keeper.position
        return Source(
            position=position if electorate.at_most is None else min(position, electorate.at_most),
            generation=electorate.generation,
            num_voters=len(electorate.voters),
            num_shards=self._spec.config.sisa.num_shards,
        )

    def _electorate(self) -> Electorate:
        electorate = self._keeper.electorate
        if electorate is None:
            raise unavailable(f"not ready: {self._keeper.problem}")
        if not self._keeper.may_hand_off(electorate):
            raise unavailable(f"the lease on the run's state ran out: {self._keeper.problem}", kind="fenced")
        if not electorate.voters:
            raise unavailable(
                "no shard has a clean model now; wait for the next generation", kind="no-voters"
            )
        return electorate

    async def _pay(self, num_answers: int) -> None:
        """Each row of each try costs, also that of an answer which is never handed out."""
        async with self._spending:
            if self._private_left < num_answers:
                missing = num_answers - self._private_left
                self._private_left += await self._spend(max(missing, _BLOCK)) or await self._spend(missing)
            if self._private_left < num_answers:
                raise Problem(
                    403,
                    "privacy-budget",
                    "private: the run's privacy budget does not allow so many answers any more",
                )
            self._private_left -= num_answers


async def warm_up(
    forward: Forward, electorate: Electorate, schema: pa.Schema, finish: Finish, shapes: tuple[int, ...]
) -> None:
    """One pass of each shape, so that no caller waits for what only the first one needs."""
    for rows in shapes:
        table = made_up_rows(schema, rows)
        if table is not None and electorate.voters:
            started = time.perf_counter()
            try:
                await forward.ask(table, electorate, finish)
            except Exception as error:  # made-up rows may be none that the recipe can take
                logger.info("no warm-up: %s", type(error).__name__)
                return
            logger.info("warm-up of %d rows took %.2f s", rows, time.perf_counter() - started)
