"""An S3 server of a few operations that fails on demand: what a real one does too seldom to test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from tests.support.weed import s3_environment

Fault = Literal["throttled", "server error", "lost answer", "cut body", "refused"]

_ERRORS = {
    "throttled": (503, "SlowDown", "Please reduce your request rate."),
    "server error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "refused": (403, "ExpiredToken", "The provided token has expired."),
}


class ScriptedS3:
    """Buckets in memory. Each request takes one fault of ``faults`` from its front, until none is left."""

    def __init__(self, *, knows_conditions: bool = True) -> None:
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.knows_conditions = knows_conditions
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"scripted": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True

    @property
    def environment(self) -> dict[str, str]:
        """The standard variables that make S3 clients talk to this server."""
        return s3_environment(f"http://127.0.0.1:{self._server.server_port}", "key", "secret")

    @contextmanager
    def running(self) -> Iterator[ScriptedS3]:
        """Serve until the block ends."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    scripted: ScriptedS3

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        fault = self._next_fault()
        if fault in _ERRORS:
            self._refuse(*_ERRORS[fault])
            return
        with self.scripted.lock:
            conditional = self.scripted.knows_conditions and self.headers.get("If-None-Match") == "*"
            if conditional and self.path in self.scripted.objects:
                self._refuse(412, "PreconditionFailed", "The object is there.")
                return
            self.scripted.objects[self.path] = body
        if fault == "lost answer":
            self.close_connection = True
            return
        self._answer(200, b"")

    def do_GET(self) -> None:
        fault = self._next_fault()
        body = self.scripted.objects.get(self.path)
        if fault in _ERRORS:
            self._refuse(*_ERRORS[fault])
        elif body is None:
            self._refuse(404, "NoSuchKey", "The object is not there.")
        else:
            self._answer(200, body, cut=fault == "cut body")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the base
        pass

    def _next_fault(self) -> str:
        with self.scripted.lock:
            self.scripted.requests.append(f"{self.command} {self.path}")
            return self.scripted.faults.pop(0) if self.scripted.faults else ""

    def _refuse(self, status: int, code: str, message: str) -> None:
        error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        self._answer(status, error.encode())

    def _answer(self, status: int, body: bytes, *, cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("ETag", '"0"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut
