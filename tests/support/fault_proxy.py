"""A proxy before a real S3 server that throttles, breaks connections, and loses, cuts and delays answers."""

from __future__ import annotations

import contextlib
import random
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum, auto
from io import BufferedIOBase
from typing import NamedTuple
from urllib.parse import urlsplit

_SERVER_TIMEOUT_S = 60.0
_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Fault(StrEnum):
    """What may become of a request."""

    THROTTLED = auto()
    """Answered 503 SlowDown; the server never sees it."""
    BROKEN = auto()
    """The connection breaks; the server never sees it."""
    LOST = auto()
    """The server carries it out, and the connection breaks before the answer."""
    CUT = auto()
    """The connection breaks in the middle of the answer's body (an answer without one arrives)."""
    DELAYED = auto()
    """The server carries it out at once; the answer arrives after :attr:`FaultProxy.delay_s`."""


Choose = Callable[[str, str], Fault | None]
"""From a request's method and path (with the query) to its fault. Called by several threads."""


class Handled(NamedTuple):
    """One request, and what became of it."""

    method: str
    path: str
    fault: Fault | None


def at_random(seed: int, probabilities: Mapping[Fault, float]) -> Choose:
    """Each request gets a fault, or none, with the given probabilities."""
    rng, lock = random.Random(seed), threading.Lock()
    faults = [*probabilities, None]
    weights = [*probabilities.values(), 1 - sum(probabilities.values())]

    def choose(method: str, path: str) -> Fault | None:
        with lock:
            return rng.choices(faults, weights)[0]

    return choose


class FaultProxy:
    """One listener on a free loopback port. The Host header stays the client's, since signatures cover it."""

    def __init__(self, server_url: str) -> None:
        self.choose: Choose = lambda method, path: None
        self.delay_s = 0.0
        self.handled: list[Handled] = []
        self._listener = _Listener(self, server_url)

    @property
    def url(self) -> str:
        """Where to send requests."""
        return f"http://127.0.0.1:{self._listener.server_address[1]}"

    def count(self, fault: Fault | None, method: str = "") -> int:
        """The number of requests, of one method or of all, that met ``fault``."""
        return sum(one.fault == fault and method in ("", one.method) for one in list(self.handled))

    @contextmanager
    def running(self) -> Iterator[FaultProxy]:
        """Serve until the block ends; then every connection is broken and every thread joined."""
        thread = threading.Thread(target=self._listener.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self._listener.shutdown()
            thread.join()
            self._listener.break_connections()
            self._listener.server_close()


class _Listener(socketserver.ThreadingTCPServer):
    request_queue_size = 128
    daemon_threads = False  # so that server_close joins them

    def __init__(self, proxy: FaultProxy, server_url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.proxy = proxy
        host, _, port = urlsplit(server_url).netloc.partition(":")
        self.s3_address = (host, int(port))
        self.ending = threading.Event()
        self._accepted: list[socket.socket] = []

    def get_request(self) -> tuple[socket.socket, object]:
        accepted, address = super().get_request()
        self._accepted.append(accepted)
        return accepted, address

    def break_connections(self) -> None:
        self.ending.set()
        for connection in self._accepted:
            with contextlib.suppress(OSError):  # has ended by itself
                connection.shutdown(socket.SHUT_RDWR)


class _Connection(socketserver.StreamRequestHandler):
    server: _Listener
    disable_nagle_algorithm = True

    def handle(self) -> None:
        # A client that gave up, a server that is down: either way the connection ends.
        with contextlib.suppress(OSError, EOFError):
            while self._handle_one():
                pass

    def _handle_one(self) -> bool:
        """Handle one request; whether the connection stays open."""
        head = _read_head(self.rfile)
        if _header(head, "expect"):
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request = head + _read_body(self.rfile, head)
        method, path, _ = head.decode("latin-1").split(" ", 2)
        proxy = self.server.proxy
        fault = proxy.choose(method, path)
        proxy.handled.append(Handled(method, path, fault))
        if fault == Fault.BROKEN:
            return False
        if fault == Fault.THROTTLED:
            body = b"" if method == "HEAD" else _SLOW_DOWN
            self.wfile.write(b"HTTP/1.1 503 Slow Down\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            return True
        answer_head, body = self._ask_server(request, method)
        if fault == Fault.LOST:
            return False
        if fault == Fault.DELAYED:
            self.server.ending.wait(proxy.delay_s)
        self.wfile.write(answer_head + (body[: len(body) // 2] if fault == Fault.CUT else body))
        return fault != Fault.CUT

    def _ask_server(self, request: bytes, method: str) -> tuple[bytes, bytes]:
        """Head and body of the answer."""
        connection = socket.create_connection(self.server.s3_address, _SERVER_TIMEOUT_S)
        with connection as server, server.makefile("rb") as stream:
            server.sendall(request)
            head = _read_head(stream)
            while head.startswith(b"HTTP/1.1 1"):  # interim; the client had ours
                head = _read_head(stream)
            has_body = method != "HEAD" and head.split(b" ", 2)[1] not in (b"204", b"304")
            return head, _read_body(stream, head) if has_body else b""


def _read_head(stream: BufferedIOBase) -> bytes:
    """A request's or an answer's lines up to the empty one."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += _all_there(stream.readline())
    return head


def _header(head: bytes, name: str) -> str:
    lines = (line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:])
    return next((value.strip().lower() for key, _, value in lines if key.lower() == name), "")


def _read_body(stream: BufferedIOBase, head: bytes) -> bytes:
    """The body as it is on the wire; S3 always frames it."""
    if _header(head, "transfer-encoding") == "chunked":
        return b"".join(_chunks(stream))
    num_bytes = int(_header(head, "content-length") or 0)
    return _all_there(stream.read(num_bytes), num_bytes)


def _chunks(stream: BufferedIOBase) -> Iterator[bytes]:
    num_bytes = 1
    while num_bytes:
        size = _all_there(stream.readline())
        num_bytes = int(size.split(b";")[0], 16)
        yield size
        if num_bytes:
            yield _all_there(stream.read(num_bytes + 2), num_bytes + 2)
    line = b""
    while line != b"\r\n":  # trailers
        yield (line := _all_there(stream.readline()))


def _all_there(data: bytes, num_bytes: int = 1) -> bytes:
    if len(data) < num_bytes:
        raise EOFError
    return data
