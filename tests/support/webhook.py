"""A real HTTP server that takes alerts, refuses them, hangs, goes away and comes back."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any, NamedTuple, Self

import orjson

from jobs.ports import HOST, free_port


class Posted(NamedTuple):
    """A request that was answered with a status from 200 to 299."""

    key: str
    headers: Mapping[str, str]
    body: Any


class WebhookServer:
    """Keeps what it took.

    Attributes:
        port: Its port, the same after a stop and a start.
        taken: The requests it took, in the order of their answers.
        tries: All idempotency keys, in order, of those it did not take too.
        status: The status for a body; ``OK`` at first.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.taken: list[Posted] = []
        self.tries: list[str] = []
        self.status: Callable[[Any], int] = lambda body: 200
        self._lock = Lock()
        self._open: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/alerts"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._server = ThreadingHTTPServer((HOST, self.port), self._handler())
        self._server.daemon_threads = True
        Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """As a process that ends: connections that callers keep open end too."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        for connection in [*self._open]:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def answer(self, headers: Mapping[str, str], raw: bytes) -> int:
        key, body = headers["Idempotency-Key"], orjson.loads(raw)
        with self._lock:
            self.tries.append(key)
        status = self.status(body)
        if 200 <= status < 300:
            with self._lock:
                self.taken.append(Posted(key, headers, body))
        return status

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                server._open.add(self.connection)

            def finish(self) -> None:
                server._open.discard(self.connection)
                with suppress(OSError):
                    super().finish()

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                status = server.answer(dict(self.headers), raw)
                text = b"as told"
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
