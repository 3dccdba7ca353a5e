"""Callers in a process of their own: raw HTTP over keep-alive connections, which ask again once they are answered.

Reads what to do as JSON from standard input, does it until its time is over or it is terminated, and prints what it
measured as JSON. See :class:`Calls` in ``serving.py``.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

_POSITION = re.compile(rb'"position": ?(\d+)')
_GENERATION = re.compile(rb'"generation": ?(\d+)')


class Callers:
    """All the connections."""

    def __init__(self, calls: dict[str, Any]) -> None:
        body = Path(calls["body"]).read_bytes()
        self._address = (calls["host"], calls["port"])
        self._records = calls["records"]
        head = (
            f"POST {calls['path']} HTTP/1.1\r\nhost: {calls['host']}\r\ncontent-type: {calls['content_type']}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        self._request = head.encode() + body
        self._starts_at = time.perf_counter() + calls["warm_s"]
        self._ends_at = self._starts_at + calls["seconds"]
        self._is_stopping = False
        self.seconds: list[float] = []
        self.failed: list[str] = []
        self.answers: list[tuple[float, float, int, int]] = []
        """When it was sent, seconds until the answer, position and generation of the answer."""

    def stop(self) -> None:
        """End after the answers that are under way."""
        self._is_stopping = True

    async def run(self, connections: int) -> None:
        """Ask until it is over."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stop)
        await asyncio.gather(*(self._caller() for _ in range(connections)))

    async def _caller(self) -> None:
        while not self._is_over():
            try:
                reader, writer = await asyncio.open_connection(*self._address, limit=2**20)
                await self._ask_again_and_again(reader, writer)
                writer.close()
            except (OSError, asyncio.IncompleteReadError) as error:
                self.failed.append(f"connection: {type(error).__name__}")
                await asyncio.sleep(0.05)

    def _is_over(self) -> bool:
        return self._is_stopping or time.perf_counter() >= self._ends_at

    async def _ask_again_and_again(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not self._is_over():
            sent_at, started = time.time(), time.perf_counter()
            writer.write(self._request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            body = await _body(reader, head)
            ended = time.perf_counter()
            if b" 200 " not in head[:16]:
                self.failed.append(f"{head[:16].decode().strip()}: {body[:300].decode(errors='replace')}")
            elif self._records:
                position, generation = _POSITION.search(body), _GENERATION.search(body)
                assert position is not None
                assert generation is not None
                self.answers.append((sent_at, ended - started, int(position[1]), int(generation[1])))
            if started >= self._starts_at:
                self.seconds.append(ended - started)
            if b"\r\nconnection: close" in head:  # HAProxy was told of other replicas
                return


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    at = head.find(b"content-length:")
    if at >= 0:
        return await reader.readexactly(int(head[at + 15 : head.index(b"\r\n", at)]))
    chunks = []
    while size := int(await reader.readline(), 16):
        chunks.append((await reader.readexactly(size + 2))[:-2])
    await reader.readline()
    return b"".join(chunks)


def main() -> None:
    """Do what standard input says."""
    calls = json.load(sys.stdin)
    callers = Callers(calls)
    asyncio.run(callers.run(calls["connections"]))
    json.dump({"seconds": callers.seconds, "failed": callers.failed, "answers": callers.answers}, sys.stdout)


if __name__ == "__main__":
    main()
