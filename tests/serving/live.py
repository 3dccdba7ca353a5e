"""The HTTP application of a replica behind a real server on loopback, in a thread of this process."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from sisa_ray.core.config import SisaConfig
from sisa_ray.serving.service import Service
from tests.serving.services import serving


@contextmanager
def listening(config: SisaConfig, coordinator: Any, **settings: Any) -> Iterator[tuple[str, Service]]:
    """The address of a replica that answers, and the replica."""
    ready = threading.Event()
    found: list[Any] = []

    async def main() -> None:
        async with serving(config, coordinator, **settings) as service:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                listener.listen()
                server = uvicorn.Server(
                    uvicorn.Config(service.http, log_level="error", lifespan="off", ws="none")
                )
                found.extend([f"http://127.0.0.1:{listener.getsockname()[1]}", service, server])
                ready.set()
                await server.serve(sockets=[listener])

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    try:
        assert ready.wait(60), "the replica does not start"
        yield found[0], found[1]
    finally:
        if found:
            found[2].should_exit = True
        thread.join(timeout=30)
