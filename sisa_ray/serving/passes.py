"""Dynamic batching: rows of many callers share forward passes of fixed shapes.

The shape of a row's pass follows from the caller's own number of rows, and a row shares a pass with others' only where
its place and its neighbours were shown not to move its bits. So an answer does not depend on who else asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sisa_ray.learning.ensemble import Floats
from sisa_ray.learning.places import is_place_independent
from sisa_ray.serving.electorate import Electorate

_NUM_TRIES = 3
_QUIET_TURNS = 3
"""A request takes a few turns of the event loop from its socket to here."""

_SHORT_S = 0.005
"""Passes up to so long are made on the event loop."""

Answer = dict[str, npt.NDArray[Any]]
"""Named arrays, the first dimension of each being the row."""

Finish = Callable[[Floats, Electorate], Answer]
"""What is made of the votes ``(voters, N, ...)`` of a pass; one object for each way, so that passes can be shared."""


@dataclass(kw_only=True)
class _Piece:
    """Rows of one caller that fit one pass."""

    table: pa.Table
    electorate: Electorate
    finish: Finish
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Answer]


class Passes:
    """The forward passes of a replica, one after the other. The process's arithmetic is pinned by whoever owns it.

    Short passes are made on the event loop itself: handing them to a thread and back would cost more. Long ones have a
    thread, so that leases are renewed and callers heard meanwhile.

    Args:
        rows_per_pass: ascending; a caller's rows go into passes of the largest that they fill, the rest into the
            smallest that holds it.
        on_pass: told the number of rows and of seconds of each pass.
    """

    def __init__(
        self,
        rows_per_pass: Sequence[int],
        *,
        on_pass: Callable[[int, float], None] = lambda *_: None,
    ) -> None:
        self._shapes = tuple(rows_per_pass)
        self._on_pass = on_pass
        self._waiting: dict[int, deque[_Piece]] = {rows: deque() for rows in self._shapes}
        self._shared: dict[int, bool] = {}
        self._tries = dict.fromkeys(self._shapes, 0)
        self._seconds = dict.fromkeys(self._shapes, float("inf"))
        self._passing = threading.Lock()
        self._news = threading.Event()
        self._is_scheduled = False
        self._is_stopping = False
        self._turn = 0
        self._thread = threading.Thread(target=self._run, name="passes", daemon=True)
        self._thread.start()

    async def ask(self, table: pa.Table, electorate: Electorate, finish: Finish) -> tuple[Answer, Electorate]:
        """What ``finish`` makes of the votes on every row of ``table``, all of them of one electorate.

        Raises:
            Exception: whatever the recipe raised for these rows.
        """
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Answer]] = []
        for first, count, rows in pieces(table.num_rows, self._shapes):
            future: asyncio.Future[Answer] = loop.create_future()
            futures.append(future)
            piece = table if count == table.num_rows else table.slice(first, count)
            self._waiting[rows].append(
                _Piece(table=piece, electorate=electorate, finish=finish, loop=loop, future=future)
            )
        if not self._is_scheduled:
            self._is_scheduled = True
            loop.call_soon(self._gather, loop, 0, 0)
        if len(futures) == 1:
            return await futures[0], electorate
        parts = await asyncio.gather(*futures)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, electorate

    def stop(self) -> None:
        """End the thread after the pass at hand."""
        self._is_stopping = True
        self._news.set()

    def _gather(self, loop: asyncio.AbstractEventLoop, num_before: int, num_quiet: int) -> None:
        """On the event loop: wait while others are being read, a few turns at most; they share a pass."""
        num_waiting = sum(len(waiting) for waiting in self._waiting.values())
        num_quiet = 0 if num_waiting > num_before else num_quiet + 1
        if num_quiet < _QUIET_TURNS and num_waiting < self._shapes[0]:
            loop.call_soon(self._gather, loop, num_waiting, num_quiet)
        else:
            self._here()

    def _here(self) -> None:
        """On the event loop: a short pass, if the thread is not in the middle of one; else it is told."""
        self._is_scheduled = False
        shapes = [rows for rows in self._shapes if self._waiting[rows]]
        if not shapes:
            return
        if self._seconds[shapes[0]] <= _SHORT_S and self._passing.acquire(blocking=False):
            try:
                self._pass(shapes[0])
            finally:
                self._passing.release()
            if self._waiting[shapes[0]]:
                self._is_scheduled = True
                asyncio.get_running_loop().call_soon(self._here)
                return
            shapes = shapes[1:]
        if shapes:
            self._news.set()

    def _run(self) -> None:
        while not self._is_stopping:
            self._news.wait()
            self._news.clear()
            while not self._is_stopping:
                with self._passing:
                    shapes = [rows for rows in self._shapes if self._waiting[rows]]
                    if not shapes:
                        break
                    # Callers with few rows do not wait behind all of those with many.
                    self._turn += 1
                    self._pass(shapes[self._turn % len(shapes)])

    def _pass(self, rows: int) -> None:
        waiting = self._waiting[rows]
        pieces_ = [waiting.popleft()]
        room = rows - pieces_[0].table.num_rows
        if self._shared.get(rows, False):
            while (
                waiting
                and waiting[0].table.num_rows <= room
                and waiting[0].electorate is pieces_[0].electorate
            ):
                pieces_.append(waiting.popleft())
                room -= pieces_[-1].table.num_rows
        try:
            _deliver(pieces_, self._answers(pieces_, rows))
        except Exception as error:  # whatever the recipe makes of somebody's rows
            if len(pieces_) == 1:
                _deliver(pieces_, [error])
            else:  # one caller's rows must not fail another's
                self._waiting[rows].extendleft(reversed(pieces_))
                self._one_by_one(len(pieces_), rows)

    def _one_by_one(self, count: int, rows: int) -> None:
        waiting = self._waiting[rows]
        for _ in range(count):
            piece = waiting.popleft()
            try:
                _deliver([piece], self._answers([piece], rows))
            except Exception as error:  # as above
                _deliver([piece], [error])

    def _answers(self, pieces_: list[_Piece], rows: int) -> list[Answer]:
        electorate = pieces_[0].electorate
        votes = self._forward(pieces_, electorate, rows)
        wanted = {id(p.finish): p.finish for p in pieces_}
        finished = {name: finish(votes, electorate) for name, finish in wanted.items()}
        answers, first = [], 0
        for piece in pieces_:
            last = first + piece.table.num_rows
            answers.append({name: values[first:last] for name, values in finished[id(piece.finish)].items()})
            first = last
        return answers

    def _forward(self, pieces_: list[_Piece], electorate: Electorate, rows: int) -> Floats:
        stack = electorate.stack
        assert stack is not None, "whoever makes passes holds models"
        started = time.perf_counter()
        batch = stack.batch([p.table for p in pieces_], rows)
        seconds = time.perf_counter() - started
        if not self._shared.get(rows, False) and self._tries[rows] < _NUM_TRIES:
            # Rows that are all alike show nothing, so others get a chance to.
            self._tries[rows] += 1
            self._shared[rows] = is_place_independent(stack, batch, rows)
        started = time.perf_counter()
        num_rows = sum(p.table.num_rows for p in pieces_)
        votes: Floats = stack.forward(batch)[electorate.slots, :num_rows]
        seconds += time.perf_counter() - started
        # The first pass of a shape takes longer; a slow moment does not count for good.
        self._seconds[rows] = min(seconds, 1.1 * self._seconds[rows])
        self._on_pass(num_rows, seconds)
        return votes


def pieces(num_rows: int, shapes: Sequence[int]) -> list[tuple[int, int, int]]:
    """Where a caller's rows are cut: (first, count, rows of the pass), from their number alone.

    >>> pieces(1, (16, 256)), pieces(600, (16, 256))
    ([(0, 1, 16)], [(0, 256, 256), (256, 256, 256), (512, 88, 256)])
    """
    largest = shapes[-1]
    cuts = [(first, largest, largest) for first in range(0, num_rows - largest + 1, largest)]
    first = len(cuts) * largest
    rest = num_rows - first
    if rest:
        cuts.append((first, rest, next(rows for rows in shapes if rows >= rest)))
    return cuts


def _deliver(pieces_: Sequence[_Piece], results: Sequence[Answer | Exception]) -> None:
    """Hand the results of a pass to those who wait: one visit to each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Answer], Answer | Exception]]] = {}
    for piece, result in zip(pieces_, results, strict=True):
        by_loop.setdefault(piece.loop, []).append((piece.future, result))
    for loop, found in by_loop.items():
        with contextlib.suppress(RuntimeError):  # its loop is closed
            loop.call_soon_threadsafe(_settle, found)


def _settle(found: Sequence[tuple[asyncio.Future[Answer], Answer | Exception]]) -> None:
    for future, result in found:
        if future.done():  # the caller has gone
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
