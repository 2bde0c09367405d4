"""Live Wikipedia, through the package wikipedia-api, with every answer kept in a record.

    wikipedia        wikipedia:de#record=answers.sqlite,mode=live,per_s=5,deadline_s=30,user_agent=my-lab%2C me@my.org

`search` shows titles with the snippet that matched, in one request; `open` reads the article's text. wikipedia-api builds
the requests and reads the answers; `Transport` carries them through our bounded client, at most `per_s` a second in this
process. Errors that MediaWiki reports inside an answer are failures, never an empty result. Articles change: what was
recorded is what replay gives, and another day's record may differ.
"""

from __future__ import annotations

import html
import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
import wikipediaapi

from trace_gym._version import __version__
from trace_gym.env import Effect, clean_text
from trace_gym.envs.naming import RECORD_OPTIONS, number, record_of, split_name, split_url
from trace_gym.envs.record import Record
from trace_gym.envs.search_qa.retriever import Document, Hit
from trace_gym.envs.web import Client, Limits
from trace_gym.errors import ConfigError, ExternalError

__all__ = ["Transport", "WikipediaRetriever", "make"]

OPTIONS = (*RECORD_OPTIONS, "per_s", "deadline_s", "user_agent")
USER_AGENT = f"trace-gym/{__version__} (research environment; wikipedia-api)"
MAX_QUERY_CHARS = 300  # MediaWiki's own limit
MAX_TITLE_BYTES = 255  # likewise
MAX_TEXT_CHARS = 100_000
MAX_HITS = 50

_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z]{2,12})*|simple")
_NO_TITLE = re.compile(r"[#<>\[\]|{}\x00-\x1f\x7f\ufffd]|^:|%[0-9A-Fa-f]{2}")
_TAG = re.compile(r"<[^<>]{0,200}>")
# Codes of errors that what was asked brings about; they are answers: nothing is found.
_ASKED_WRONG = re.compile(r"cirrussearch-.*|search-.*|missingparam|toolong|invalidtitle|badvalue|srsearch-.*")


def make(spec: str, documents: Sequence[Document]) -> WikipediaRetriever:
    """`wikipedia[:LANGUAGE][#options]`. `documents` are not used. Raises `ConfigError`."""
    name, options = split_name(spec, OPTIONS)
    language = name.partition(":")[2] or "en"
    if not _LANGUAGE.fullmatch(language):
        raise ConfigError(f"{spec[:80]!r}: a language is a code such as en, de or simple")
    endpoint = f"https://{language}.wikipedia.org"
    limits = Limits(total_s=number(options, "deadline_s", 30.0), answer_bytes=8 << 20)
    return WikipediaRetriever(
        language,
        Transport(endpoint, limits=limits, per_s=number(options, "per_s", 5.0)),
        record_of(options, f"wikipedia-{language}"),
        user_agent=options.get("user_agent", USER_AGENT),
    )


class WikipediaRetriever:
    """The Wikipedia of `language`; raises `ExternalError` when it gives no answer, `ConfigError` for a bad user agent."""

    effect: Effect = "recorded"

    def __init__(
        self, language: str, transport: Transport, record: Record, *, user_agent: str = USER_AGENT
    ) -> None:
        if len(user_agent) < 5 or not user_agent.isascii() or not user_agent.isprintable():
            raise ConfigError(
                "user_agent names you and how to reach you, in printable ASCII: my-lab me@my.org"
            )
        self._language, self._transport, self._record = language, transport, record
        self._user_agent = user_agent
        self._client: wikipediaapi.Wikipedia | None = None  # made when first needed; holds no connection

    def search(self, query: str, k: int) -> list[Hit]:
        """At most `k` articles, best first, each with the snippet that matched; scores fall with the rank."""
        query, k = " ".join(clean_text(query).split())[:MAX_QUERY_CHARS], min(k, MAX_HITS)
        if not query or k < 1:
            return []
        rows = self._record.answer(self._request("search", query, k), lambda: _usable(self._search, query, k))
        return [Hit(*row) for row in rows]

    def open(self, title: str) -> Hit | None:
        """The text of the article with this title, a redirect followed; None where there is none."""
        title = " ".join(clean_text(title).replace("_", " ").split())
        if not title or len(title.encode()) > MAX_TITLE_BYTES or _NO_TITLE.search(title):
            return None
        row = self._record.answer(self._request("open", title, 1), lambda: _usable(self._open, title))
        return None if row is None else Hit(*row)

    def _request(self, what: str, text: str, k: int) -> dict[str, Any]:
        return {"service": "wikipedia", "language": self._language, what: text, "k": k}

    def _search(self, query: str, k: int) -> list[tuple[str, str, str, float]]:
        found = list(self._wiki().search(query, limit=k).pages.values())[:k]
        return [
            (str(page.pageid), clean_text(page.title), _plain(page.search_meta.snippet), 1.0 / rank)
            for rank, page in enumerate(found, 1)
        ]

    def _open(self, title: str) -> tuple[str, str, str, float] | None:
        page = self._wiki().page(title)
        try:
            text = page.text
        except KeyError as error:
            if error.args[0] in ("pages", "extract"):  # a title of another wiki, a page without text
                return None
            raise
        if not page.exists() or page.namespace != 0:
            return None
        return str(page.pageid), clean_text(page.title), clean_text(text)[:MAX_TEXT_CHARS], 1.0

    def _wiki(self) -> wikipediaapi.Wikipedia:
        if self._client is None:
            self._client = wikipediaapi.Wikipedia(
                user_agent=self._user_agent,
                language=self._language,
                max_retries=0,  # the transport does it, within its deadline
                transport=self._transport,
                trust_env=False,  # a proxy would replace the transport
            )
        return self._client


class Transport(httpx.BaseTransport):
    """Carries wikipedia-api's requests to `endpoint`, whatever host they name, at most `per_s` a second."""

    def __init__(self, endpoint: str, *, limits: Limits | None = None, per_s: float = 5.0) -> None:
        self._endpoint, self._limits = endpoint, limits
        self._host = split_url(endpoint).hostname or ""
        self._pace = Pace(per_s)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """One request. Raises `ExternalError` when there is no answer, or one that says that it failed."""
        self._pace.wait()
        headers = {"User-Agent": request.headers.get("User-Agent", USER_AGENT)}
        client = Client([self._host], headers=headers, limits=self._limits)
        reply = client.send("GET", self._endpoint + request.url.raw_path.decode("ascii"))
        if reply.status != 200 or reply.too_large:
            size = f", an answer of more than {client.limits.answer_bytes:,} bytes" if reply.too_large else ""
            raise ExternalError(
                f"{self._host} answered HTTP {reply.status}{size}; check that it is a MediaWiki"
            )
        return httpx.Response(200, json=_checked(reply.body, self._host))


def _usable(ask: Callable[..., Any], *arguments: Any) -> Any:
    """`ask(*arguments)`; what the package raises over an answer of another shape becomes our error."""
    try:
        return ask(*arguments)
    except (AttributeError, LookupError, TypeError, ValueError, wikipediaapi.WikipediaException) as error:
        raise ExternalError(
            f"Wikipedia gave an answer that cannot be used ({type(error).__name__}); try again"
        ) from error


def _checked(body: bytes, host: str) -> Mapping[str, Any]:
    """The answer with a `query` in it; an empty one where what was asked makes no sense."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ExternalError(f"{host} gave an answer that is not valid JSON; try again later") from error
    code = _error_code(answer)
    if code is not None and not _ASKED_WRONG.fullmatch(code):
        raise ExternalError(
            f"{host} reports the error {code[:80]!a}; try again later, or less often with per_s="
        )
    if code is not None:
        return {"query": {"pages": {"-1": {"missing": ""}}}}
    if not isinstance(answer, dict) or not isinstance(answer.get("query"), dict):
        raise ExternalError(f"{host} gave an answer without a result; check that it is a MediaWiki")
    return answer


def _error_code(answer: Any) -> str | None:
    error = answer.get("error") if isinstance(answer, dict) else None
    if error is None:
        return None
    return str(error.get("code")) if isinstance(error, dict) else "unknown"


def _plain(snippet: str) -> str:
    return clean_text(" ".join(html.unescape(_TAG.sub("", snippet)).split()))


class Pace:
    """Lets callers pass at most `per_s` times a second, in turn."""

    def __init__(self, per_s: float) -> None:
        self._gap_s = 1.0 / per_s
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self) -> None:
        with self._lock:
            now = time.monotonic()
            mine = max(now, self._next)
            self._next = mine + self._gap_s
        time.sleep(mine - now)
