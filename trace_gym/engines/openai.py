"""A server with OpenAI's completions protocol as an engine, as long as it takes and returns token ids: vLLM's does.

Each request is one streamed HTTP call in a thread of its own, `max_batch` at a time; the server batches. Invariants: every
call goes to the host that was configured, straight there and with no redirect followed; a call is tried again only before
its first token; a request ends at `deadline_s`, whatever the server does or leaves undone, and closing its connection, which
an abort does with the next token, ends it on the server. What a server cannot prove it has not got: one that returns no token
ids is refused at once, and one whose log-probs are not those of the tempered distribution samples at temperatures 0 and 1
alone. Whatever it sends costs the one request that it answers.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests
import urllib3

from trace_gym.engine import Completion, Finish, Request, Weights
from trace_gym.engines.remote_weights import WeightsFolder
from trace_gym.errors import EngineError
from trace_gym.web_watch import WatchedAdapter, watched
from trace_gym.workers import Workers

__all__ = ["OpenAIEngine"]

CONNECT_S = 5.0
TRIES = 4
FIRST_WAIT_S = 0.5  # doubled after each try; a longer Retry-After is kept to
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
PIECE_BYTES = 1 << 16
EVENT_BYTES = 1 << 20  # of one streamed event, or of an answer that is not streamed
TOKEN_IDS = 2**31
ABOVE_ZERO = 1e-3  # of a log-prob: what rounding may leave
NOT_TEMPERED = (
    "the server's log-probs are not those of the tempered distribution: start vLLM's server with "
    "--logprobs-mode processed_logprobs, or sample at temperature 1"
)


class _NoIds(EngineError):
    pass


class _Again(Exception):
    """A failure that another try may not meet."""

    def __init__(self, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.wait_s = wait_s


@dataclass(slots=True, eq=False)
class _Job:
    """A request, and what its thread has received. The lists grow together; only the job's thread writes to them."""

    request: Request
    limit: int
    deadline: float  # by time.monotonic
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Finish = "error"
    cached: int = 0
    given_up: bool = False


class OpenAIEngine:
    """See the module. `url` ends in /v1; `model` is the name there (empty: the first). `key`: sent as a bearer token.

    `weights_folder`: where `load` writes the weights for the server to read, in a folder of this engine's that is gone once it
    is closed; none: they cannot be replaced. For one thread. Raises `EngineError` for a server that cannot be reached or does
    not return what is needed.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str = "",
        key: str = "",
        max_batch: int = 64,
        max_context: int | None = None,
        deadline_s: float = 600.0,
        weights_folder: str = "",
    ) -> None:
        self._url = _checked(url)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._deadline_s = deadline_s
        self.version = 0
        listed = self._served(model)
        self._model = str(listed["id"])
        self.max_context = _context(listed, max_context)
        self._tempered = self._probe()
        self._weights = WeightsFolder(weights_folder, self._control) if weights_folder else None
        self._workers: Workers[None] = Workers(max_batch)
        self._jobs: dict[int, _Job] = {}
        self._aborted: list[Completion] = []
        self._ids = itertools.count()
        self._closed = False

    # ---- the protocol -----------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> int:
        if self._closed:
            raise EngineError("the engine is closed: make a new one")
        room = self.max_context - len(request.tokens)
        if room < 1:
            raise EngineError(
                f"a prefix of {len(request.tokens)} tokens leaves no room in a context of {self.max_context}"
            )
        if request.temperature not in (0.0, 1.0) and not self._tempered:
            raise EngineError(NOT_TEMPERED)
        job = _Job(request, min(request.max_tokens, room), time.monotonic() + self._deadline_s)
        request_id = next(self._ids)
        self._jobs[request_id] = job
        self._workers.put(request_id, lambda: self._ask(job))
        return request_id

    def poll(self, timeout_s: float) -> list[Completion]:
        done, self._aborted = self._aborted, []
        for ended in self._workers.take(0.0 if done or not self._jobs else timeout_s):
            job = self._jobs.pop(ended.key, None)
            if job is not None:  # else it was aborted
                done.append(
                    self._completion(ended.key, job, "" if ended.error is None else _said(ended.error))
                )
        return done

    def _completion(self, request_id: int, job: _Job, error: str, finish: Finish | None = None) -> Completion:
        finish = finish or ("error" if error else job.finish)
        logprobs = list(job.logprobs)
        tokens = np.array(job.tokens[: len(logprobs)], dtype=np.int32)
        values = np.array(logprobs, dtype=np.float32)
        if job.request.temperature == 0:
            values[:] = 0.0
        processed = len(job.request.tokens) - job.cached if finish in ("stop", "length") else 0
        return Completion(request_id, tokens, values, finish, self.version, processed, job.cached, error)

    def abort(self, request_id: int) -> None:
        job = self._jobs.pop(request_id, None)
        if job is not None:
            job.given_up = True
            self._aborted.append(self._completion(request_id, job, "", "aborted"))

    def load(self, weights: Weights, version: int) -> None:
        """Have the server read new weights, through a folder that it sees. Refused without one: they would stay the same."""
        if self._jobs:
            raise EngineError(
                f"the engine cannot load weights with {len(self._jobs)} requests unfinished: poll or abort them first"
            )
        if self._weights is None:
            raise EngineError(
                "a server's weights cannot be replaced from here: set engine.weights_folder to a folder that it sees"
            )
        self._weights.replace(weights, version)
        self.version = version

    def sleep(self) -> None:
        """The server's memory is its own."""

    def wake(self) -> None: ...

    def close(self) -> None:
        for job in self._jobs.values():
            job.given_up = True
        self._jobs.clear()
        self._aborted.clear()
        if not self._closed:
            self._workers.close()
            if self._weights is not None:
                self._weights.close()
        self._closed = True

    # ---- a request, in its thread -----------------------------------------------------------------------------------

    def _ask(self, job: _Job) -> None:
        for attempt in itertools.count():
            try:
                self._stream(job)
                return
            except _Again as failure:
                wait_s = max(FIRST_WAIT_S * 2**attempt, failure.wait_s)
                late = time.monotonic() + wait_s >= job.deadline
                if job.tokens or attempt + 1 == TRIES or late or job.given_up:
                    raise EngineError(f"{self._host} failed: {failure}") from failure
                time.sleep(wait_s)

    def _stream(self, job: _Job) -> None:
        """Send the request and take tokens as they come."""
        body = self._body(job.request, job.limit)
        with self._sent("POST", f"{self._url}/completions", body, job.deadline) as answer:
            for event in _events(answer, job):
                usage = event.get("usage") or {}
                details = usage.get("prompt_tokens_details") or {}
                cached = int(details.get("cached_tokens") or 0) or job.cached
                job.cached = min(max(cached, 0), len(job.request.tokens))
                for choice in event.get("choices", ()):
                    self._take(job, choice)
            if job.finish == "error" and not job.given_up:
                raise _Again("the answer broke off")
        if job.finish == "stop" and not (job.tokens and job.tokens[-1] in job.request.stop):
            raise EngineError("the server ended the turn at a token that does not end turns")

    def _take(self, job: _Job, choice: Mapping[str, Any]) -> None:
        tokens, logprobs = _ids_and_logprobs(choice)
        if not np.isfinite(logprobs).all():
            raise EngineError("the server's log-probs are not finite: its weights may have diverged")
        if max(logprobs, default=0.0) > ABOVE_ZERO:
            raise EngineError("the server's log-probs are above 0, which no probability's can be")
        if len(job.tokens) + len(tokens) > job.limit:
            raise EngineError(f"the server sent more than the {job.limit} tokens that were asked for")
        job.tokens += tokens
        job.logprobs += logprobs
        reason = choice.get("finish_reason")
        if reason is not None:
            if reason not in ("stop", "length"):
                raise EngineError(f"the server ended the request: {str(reason)[:100]}")
            job.finish = "stop" if reason == "stop" else "length"

    def _body(self, request: Request, limit: int) -> dict[str, Any]:
        """What is left out, a server may fill in from the model's own settings: so top-p and its like are named."""
        return {
            "model": self._model,
            "prompt": request.tokens.tolist(),
            "max_tokens": limit,
            "temperature": request.temperature,
            "seed": request.seed % 2**63,
            "stop_token_ids": list(request.stop),
            "ignore_eos": True,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    # ---- HTTP -------------------------------------------------------------------------------------------------------

    @property
    def _host(self) -> str:
        return urlsplit(self._url).netloc

    @contextmanager
    def _sent(self, method: str, url: str, body: object, deadline: float) -> Iterator[requests.Response]:
        """An answer with status 200, its body yet to be read. The connection is shut down at the deadline, whatever is
        waited for. Raises `_Again` or `EngineError`, also for what goes wrong with the body."""
        late = EngineError(f"{self._host} gave no answer in time")
        if time.monotonic() >= deadline:
            raise late
        with watched(lambda host, address: True, deadline) as watch, requests.Session() as session:
            session.trust_env = False  # no proxy, no .netrc
            session.mount("http://", WatchedAdapter())
            session.mount("https://", WatchedAdapter())
            try:
                with session.request(
                    method,
                    url,
                    json=body,
                    headers=self._headers,
                    stream=True,
                    allow_redirects=False,
                    timeout=(min(CONNECT_S, watch.left_s), watch.left_s),
                ) as answer:
                    self._check(answer)
                    yield answer
            except (requests.RequestException, _Again, ValueError) as error:
                if time.monotonic() >= deadline:  # it may look like an answer that was broken off or is empty
                    raise late from error
                if isinstance(error, requests.RequestException):
                    raise _Again(type(error).__name__) from error
                raise

    def _check(self, answer: requests.Response) -> None:
        if answer.status_code == 200:
            return
        if answer.status_code in TRANSIENT:
            raise _Again(f"status {answer.status_code}", _retry_after(answer))
        text = _text(answer) if answer.status_code in (400, 404, 422) else ""
        raise EngineError(f"{self._host} answered with status {answer.status_code} {text}".strip())

    def _json(self, method: str, url: str, body: object = None, *, within_s: float = 30.0) -> Any:
        try:
            with self._sent(method, url, body, time.monotonic() + within_s) as answer:
                return json.loads(_text(answer, EVENT_BYTES) or "null")
        except (_Again, ValueError, RecursionError) as error:
            raise EngineError(f"{url} gave no usable answer: {error}") from error

    def _control(self, path: str, body: object) -> None:
        """One of vLLM's own routes, beside /v1."""
        self._json("POST", self._url.removesuffix("/v1") + path, body, within_s=self._deadline_s)

    # ---- what kind of server it is ----------------------------------------------------------------------------------

    def _served(self, model: str) -> Mapping[str, Any]:
        answer = self._json("GET", f"{self._url}/models")
        listed = answer.get("data") if isinstance(answer, dict) else None
        models = [m for m in listed if isinstance(m, dict) and "id" in m] if isinstance(listed, list) else []
        if not models:
            raise EngineError(f"{self._url}/models lists no model: is this an OpenAI-compatible server?")
        for served in models:
            if model in ("", served["id"]):
                return served
        raise EngineError(
            f"{self._host} serves no {model!r}; it has {', '.join(str(m['id']) for m in models)}"[:300]
        )

    def _probe(self) -> bool:
        """Refuse a server without token ids; say whether its log-probs follow the temperature."""
        gaps = []
        for temperature in (1.0, 0.5):
            request = Request(np.ones(1, dtype=np.int32), 1, seed=0, temperature=temperature)
            body = self._body(request, 1) | {
                "stream": False,
                "logprobs": 2,
                "return_tokens_as_token_ids": True,
            }
            del body["stream_options"]
            answer = self._json("POST", f"{self._url}/completions", body, within_s=self._deadline_s)
            try:
                choice = answer["choices"][0]
                _ids_and_logprobs(choice)
                top = sorted(choice["logprobs"]["top_logprobs"][0].values(), reverse=True)
                gaps.append(top[0] - top[1])
            except (KeyError, IndexError, TypeError, AttributeError) as error:
                raise EngineError(f"{self._host} returns no log-probs of its two likeliest tokens") from error
        return bool(gaps[1] > 1.5 * gaps[0])


# ---- what comes back ------------------------------------------------------------------------------------------------


def _checked(url: str) -> str:
    """Raises `EngineError` for what is no plain address. One with a password would be kept in files and shown in errors."""
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.hostname and not (parts.query or parts.fragment)
    except ValueError:
        right = False
    if not right or "@" in url:
        shown = url.rpartition("@")[2]
        raise EngineError(
            f"engine.url is an address such as http://localhost:8000/v1, without user or key, not {shown!r}"
        )
    return url.rstrip("/")


def _context(listed: Mapping[str, Any], asked: int | None) -> int:
    limit = listed.get("max_model_len")
    if not isinstance(limit, int):
        if asked is None:
            raise EngineError("the server does not say how long its context is: set engine.max_context")
        return asked
    if asked is not None and asked > limit:
        raise EngineError(f"engine.max_context={asked} is beyond the server's context of {limit}")
    return asked or limit


def _ids_and_logprobs(choice: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    """The new tokens of a choice. Raises `EngineError` where the server does not tell them."""
    tokens = choice.get("token_ids")
    logprobs = (choice.get("logprobs") or {}).get("token_logprobs") or []
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise _NoIds(
            "the server returns no token ids, without which nothing can be trained or continued: use vLLM's server"
        )
    if not all(0 <= token < TOKEN_IDS for token in tokens):
        raise EngineError("the server returns token ids that no tokenizer has")
    if len(logprobs) != len(tokens) or not all(isinstance(value, float | int) for value in logprobs):
        raise _NoIds("the server returns no log-probs for its tokens: use vLLM's server")
    return tokens, [float(value) for value in logprobs]


def _events(answer: requests.Response, job: _Job) -> Iterator[dict[str, Any]]:
    """The events of a stream, until the job is given up."""
    rest = b""
    try:
        while piece := answer.raw.read1(
            PIECE_BYTES, decode_content=True
        ):  # what there is; `iter_content` may wait
            if job.given_up:
                return
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
                if data and data != b"[DONE]":
                    event = json.loads(data)
                    if not isinstance(event, dict) or "error" in event:
                        raise EngineError(f"the server said: {' '.join(str(event).split())[:200]}")
                    yield event
            if len(rest) > EVENT_BYTES:
                raise EngineError("the server sent an event without an end")
    except (urllib3.exceptions.HTTPError, OSError, http.client.HTTPException, ValueError) as error:
        raise _Again(type(error).__name__) from error


def _text(answer: requests.Response, limit: int = 300) -> str:
    """The beginning of a body, on one line if it is for people."""
    try:
        body = next(answer.iter_content(chunk_size=limit), b"") if limit <= 300 else _whole(answer, limit)
    except requests.RequestException as error:
        raise _Again(type(error).__name__) from error
    text = body.decode("utf-8", "replace")
    return " ".join(text.split()) if limit <= 300 else text


def _whole(answer: requests.Response, limit: int) -> bytes:
    body = b""
    for piece in answer.iter_content(chunk_size=65_536):
        body += piece
        if len(body) > limit:
            raise EngineError("the server's answer is too large")
    return body


def _retry_after(answer: requests.Response) -> float:
    value = answer.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else 0.0


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def key_from(variable: str) -> str:
    """The server's key out of the environment. Raises `EngineError` where the variable that is to hold it is empty, or holds
    what no header can: an HTTP library would show it in its complaint."""
    key = os.environ.get(variable, "").strip() if variable else ""
    if variable and not key:
        raise EngineError(f"engine.key_env={variable}: there is no such environment variable")
    if not (key.isascii() and key.isprintable()):
        raise EngineError(f"engine.key_env={variable}: a key is printable ASCII on one line")
    return key
