"""A service on 127.0.0.1 that answers as a test says, wrongly and slowly too. All of its threads end with it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Asked:
    """A request as it arrived."""

    method: str
    target: str  # path and query, still encoded
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Told:
    """An answer. `drip_s`: the body comes a byte at a time, with this pause between; `size`: so many zeros follow."""

    status: int = 200
    body: bytes | str | dict[str, Any] | list[Any] = b""
    headers: dict[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    drip_s: float = 0.0
    size: int = 0
    raw: bool = False  # the body is the whole answer, status line and all


@dataclass
class Service:
    """Where it listens, and what it was asked."""

    port: int
    asked: list[Asked]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def serving(answer: Callable[[Asked], Told] | Sequence[Told]) -> Iterator[Service]:
    """Answers by a function, or one thing after the other (the last one for good)."""
    asked: list[Asked] = []
    closing = threading.Event()

    def told(request: Asked) -> Told:
        asked.append(request)
        return answer(request) if callable(answer) else answer[min(len(asked), len(answer)) - 1]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = Asked(self.command, self.path, dict(self.headers.items()), body)
            with contextlib.suppress(OSError):
                _say(self, told(request), closing)
            self.close_connection = True

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _handle

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = False  # so that closing waits for them
        block_on_close = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that hung up

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Service(server.server_address[1], asked)
        finally:
            closing.set()
            server.shutdown()
            thread.join()


def _say(handler: BaseHTTPRequestHandler, told: Told, closing: threading.Event) -> None:
    closing.wait(told.wait_s)
    body = told.body
    if isinstance(body, dict | list):
        body = json.dumps(body).encode()
    if isinstance(body, str):
        body = body.encode()
    if not told.raw:
        handler.send_response(told.status)
        for name, value in {"Content-Type": "application/json", **told.headers}.items():
            handler.send_header(name, value)
        if "Transfer-Encoding" not in told.headers and "Content-Length" not in told.headers:
            handler.send_header("Content-Length", str(len(body) + told.size))
        handler.end_headers()
    if told.drip_s:
        for byte in body:
            if closing.wait(told.drip_s):
                return
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
    else:
        handler.wfile.write(body)
    left = told.size
    while left > 0 and not closing.is_set():
        handler.wfile.write(bytes(min(left, 1 << 16)))
        left -= 1 << 16


def free_port() -> int:
    """A port on which nothing listens now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def threads_end(before: set[threading.Thread], within_s: float = 2.0) -> bool:
    """Whether every thread that was not there before ends soon."""
    end = time.monotonic() + within_s
    while set(threading.enumerate()) - before and time.monotonic() < end:
        time.sleep(0.01)
    return not set(threading.enumerate()) - before
