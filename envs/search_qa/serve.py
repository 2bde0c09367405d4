"""Any retriever as a service on this machine, in Search-R1's wire format (`retrievers.wire`).

Invariant: it listens on 127.0.0.1 only, answers only requests that were addressed there (so no web page can reach it under
another name), and neither a request nor a client that stops talking can hold more than its share: bodies, queries, passages,
waiting time and concurrent requests are bounded.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from trace_gym.env import clean_text
from trace_gym.envs.search_qa.retriever import Retriever
from trace_gym.envs.search_qa.retrievers.wire import item_of
from trace_gym.errors import ConfigError, TraceGymError

__all__ = ["RetrieverServer"]

HOST = "127.0.0.1"
PATH = "/retrieve"
MAX_BODY_BYTES = 4 << 20
MAX_QUERIES = 1024
MAX_QUERY_CHARS = 10_000
MAX_TOPK = 100
DEFAULT_TOPK = 3
MAX_AT_ONCE = 64
BODY_S = 30.0
QUIET_S = 10.0  # a client that says nothing for so long is let go

Log = Callable[[str], None]


class _Refused(Exception):
    """A request that gets `status` and one line."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class RetrieverServer(ThreadingHTTPServer):
    """Serves `retriever` until `shutdown`; port 0 takes any free one. `log` hears a line for each request.

    Raises `ConfigError` where the port cannot be had.
    """

    daemon_threads = True  # a client that hangs must not keep the process
    block_on_close = False
    request_queue_size = 128

    def __init__(self, retriever: Retriever, port: int = 8000, *, log: Log = lambda line: None) -> None:
        self.retriever, self.log = retriever, log
        self._places = threading.BoundedSemaphore(MAX_AT_ONCE)
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"cannot listen on {HOST}:{port} ({reason}); choose another port, or 0 for any"
            ) from error

    @property
    def url(self) -> str:
        """Where to ask."""
        return f"http://{HOST}:{self.server_address[1]}{PATH}"

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)  # full: the client will try again
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.log("a client hung up")

    def answer(self, body: bytes) -> tuple[bytes, str]:
        """The answer to a request's body, and what to log. Raises `_Refused`."""
        queries, topk, scores = _question(body)
        try:
            found = [self.retriever.search(query, topk) for query in queries]
        except TraceGymError as error:
            raise _Refused(503, str(error)) from error
        result = [[item_of(hit, scores=scores) for hit in hits] for hits in found]
        return json.dumps(
            {"result": result}
        ).encode(), f"{len(queries)} queries, {sum(map(len, found))} passages"


def _question(body: bytes) -> tuple[Sequence[str], int, bool]:
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _Refused(400, "the body is not valid JSON") from error
    queries = asked.get("queries") if isinstance(asked, dict) else None
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise _Refused(422, '"queries" must be a list of strings')
    if len(queries) > MAX_QUERIES:
        raise _Refused(413, f"{len(queries)} queries; at most {MAX_QUERIES} at once")
    topk = asked.get("topk")
    topk = DEFAULT_TOPK if topk is None else topk
    if type(topk) is not int or not 1 <= topk <= MAX_TOPK:
        raise _Refused(422, f'"topk" must be a whole number from 1 to {MAX_TOPK}')
    return (
        [clean_text(query[:MAX_QUERY_CHARS]) for query in queries],
        topk,
        asked.get("return_scores") is True,
    )


class _Handler(BaseHTTPRequestHandler):
    server: RetrieverServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "trace-gym", ""
    timeout = QUIET_S

    def do_POST(self) -> None:
        try:
            body, note = self.server.answer(self._body())
            self._reply(200, body, note)
        except _Refused as refused:
            self.close_connection = True  # what is left of the body was not read
            self._reply(refused.status, json.dumps({"error": str(refused)}).encode(), str(refused))

    def do_GET(self) -> None:
        self.close_connection = True
        self._reply(405, b'{"error": "POST to /retrieve"}', "not a POST")

    def _body(self) -> bytes:
        named = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if named not in (HOST, "localhost"):
            raise _Refused(403, f"this service is {self.server.url}, under no other name")
        if self.path != PATH:
            raise _Refused(404, f"POST to {PATH}")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise _Refused(411, "a request says its Content-Length")
        if len(length) > 12 or int(length) > MAX_BODY_BYTES:
            raise _Refused(413, f"a request holds at most {MAX_BODY_BYTES:,} bytes")
        return self._read(int(length))

    def _read(self, length: int) -> bytes:
        body, end = b"", time.monotonic() + BODY_S
        while len(body) < length:
            part = self.rfile.read1(min(length - len(body), 1 << 16))
            if not part or time.monotonic() > end:
                raise _Refused(408, "the body was cut short, or took too long")
            body += part
        return body

    def _reply(self, status: int, body: bytes, note: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.server.log(f"{status} {note}")

    def log_message(self, format: str, *args: Any) -> None:
        """Lines of our own instead."""

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
