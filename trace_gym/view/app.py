"""The viewer's server: read-only, for this machine alone.

Model and tool text is a stranger's, and so is every page open in the same browser. Hence: GET and HEAD only; a request must
name a loopback host, so that a page whose name was pointed at this machine (DNS rebinding) reads nothing; answers are JSON or
one of the files listed in `PAGES`, with a content-security policy that lets the page run our script and nothing else; a path
holds numbers, checked against what the run has, and never reaches the file system as text.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trace_gym.errors import ConfigError, TraceGymError
from trace_gym.view.data import RunReader

__all__ = ["Guard", "listen", "make_app", "make_server"]

# The port does not matter: a browser cannot be made to send a loopback name by a page from elsewhere, and `ssh -L` may
# give the viewer another port.
LOOPBACK = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.IGNORECASE)
PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/static/viewer.css": ("viewer.css", "text/css; charset=utf-8"),
    "/static/viewer.js": ("viewer.js", "text/javascript; charset=utf-8"),
    "/static/drawing.js": ("drawing.js", "text/javascript; charset=utf-8"),
    "/static/d3.min.js": ("d3.min.js", "text/javascript; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # ask again each time: answers carry an ETag
}
LONGEST_PATH = 200
TASK_CHARACTERS = 10_000  # of a task id that is searched for
Answer = Callable[[Request], Response | Awaitable[Response]]


def make_app(runs: Sequence[str | Path]) -> Guard:
    """The application for these run folders. Raises `ConfigError` for one that is none."""
    readers = [RunReader(path) for path in runs]
    routes = [Route(path, _page(*page)) for path, page in PAGES.items()]
    for path, answer in _questions(readers).items():
        routes.append(Route(path, _as_json(answer)))
    # outside everything of Starlette's, so that an answer about an error is guarded too
    return Guard(Starlette(routes=routes, exception_handlers={HTTPException: _refused, Exception: _broken}))


def listen(port: int) -> socket.socket:
    """A listening socket on 127.0.0.1; 0 takes any free port. Raises `ConfigError` where the port is taken."""
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise ConfigError(
            f"cannot listen on port {port}: {error.strerror}; take another with --port"
        ) from error


def make_server(app: Guard) -> uvicorn.Server:
    """`run(sockets=[…])` serves until SIGINT, SIGTERM or `should_exit`."""
    config = uvicorn.Config(
        app, log_level="error", access_log=False, lifespan="off", ws="none", http="h11", server_header=False
    )
    return uvicorn.Server(config)


# ---- what can be asked ----------------------------------------------------------------------------------------------


def _questions(readers: list[RunReader]) -> dict[str, Callable[[Request], Any]]:
    """Path -> what it answers. Each may raise `TraceGymError`."""

    def run_of(request: Request) -> RunReader:
        number = int(request.path_params["run"])
        if number >= len(readers):
            raise ConfigError(f"there is no run {number}; runs are 0 to {len(readers) - 1}")
        return readers[number]

    def number(request: Request, name: str) -> int:
        return int(request.path_params[name])

    def trees(request: Request) -> Any:
        found = run_of(request).trees(number(request, "step"))
        return [recorded.summary(place) for place, recorded in enumerate(found)]

    def tree(request: Request) -> Any:
        return run_of(request).tree(number(request, "step"), number(request, "tree")).drawing()

    def node(request: Request) -> Any:
        return run_of(request).node(number(request, "step"), number(request, "tree"), number(request, "node"))

    def places(request: Request) -> Any:
        return run_of(request).places_of(request.query_params.get("task", "")[:TASK_CHARACTERS])

    return {
        "/api/runs": lambda request: [reader.facts() for reader in readers],
        "/api/runs/{run:int}": lambda request: run_of(request).progress(),
        "/api/runs/{run:int}/places": places,
        "/api/runs/{run:int}/steps/{step:int}": trees,
        "/api/runs/{run:int}/steps/{step:int}/trees/{tree:int}": tree,
        "/api/runs/{run:int}/steps/{step:int}/trees/{tree:int}/nodes/{node:int}": node,
    }


def _as_json(answer: Callable[[Request], Any]) -> Answer:
    def endpoint(request: Request) -> Response:
        """Runs in a thread pool, for it reads files."""
        try:
            found = answer(request)
        except ConfigError as error:
            return _json({"error": str(error)}, status=404)
        except TraceGymError as error:
            return _json({"error": str(error)}, status=500)
        return _with_etag(request, _json(found))

    return endpoint


def _page(name: str, kind: str) -> Answer:
    body = files("trace_gym.view").joinpath("static", name).read_bytes()

    def endpoint(request: Request) -> Response:
        return _with_etag(request, Response(body, media_type=kind))

    return endpoint


def _json(value: Any, status: int = 200) -> Response:
    # ASCII with `<` escaped: whatever a model wrote, the answer is no markup in any reading of it
    text = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return Response(text.encode("ascii"), status_code=status, media_type="application/json")


def _with_etag(request: Request, response: Response) -> Response:
    """304 without a body where the browser has this answer already."""
    tag = f'"{hashlib.sha256(response.body).hexdigest()[:32]}"'
    if request.headers.get("if-none-match") == tag:
        response = Response(status_code=304)
    response.headers["ETag"] = tag
    return response


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json({"error": error.detail}, status=error.status_code)


def _broken(request: Request, error: Exception) -> Response:
    return _json(
        {"error": f"the viewer failed ({type(error).__name__}); its terminal has the details"}, status=500
    )


class Guard:
    """Answers nobody but a browser that asked for this machine by name, and puts `HEADERS` on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await send(message)

        if scope["type"] != "http":
            return
        refused = _objection(scope)
        answer = self.app if refused is None else _json({"error": refused[1]}, status=refused[0])
        await answer(scope, receive, send_guarded)


def _objection(scope: Scope) -> tuple[int, str] | None:
    """Status and reason to refuse the request; None to answer it."""
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    if len(hosts) != 1 or not LOOPBACK.fullmatch(hosts[0]):
        return 421, "ask for localhost or 127.0.0.1: the viewer answers this machine alone"
    if scope["method"] not in ("GET", "HEAD"):
        return 405, "the viewer is read-only"
    if len(scope["path"]) > LONGEST_PATH:
        return 404, "Not Found"
    return None
