"""A retrieval service that speaks Search-R1's wire format, with every answer kept in a record.

    http://127.0.0.1:8000/retrieve#record=answers.sqlite,mode=live,deadline_s=20,private=no

The wire knows queries only, so `open` searches for the title and takes the first passage that bears it: a passage whose
title its service does not find among the first 20 cannot be opened. `trace-gym serve-retriever` is such a service.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from trace_gym.env import Effect, clean_text
from trace_gym.envs.naming import RECORD_OPTIONS, number, record_of, split_name, split_url
from trace_gym.envs.record import Record
from trace_gym.envs.search_qa.retriever import Document, Hit
from trace_gym.envs.search_qa.retrievers.wire import WireError, hits_of, titled
from trace_gym.envs.web import Client, Limits, Reply
from trace_gym.errors import ExternalError

__all__ = ["HttpRetriever", "make"]

MAX_QUERY_CHARS = 2000
MAX_HITS = 100
OPEN_AMONG = 20
OPTIONS = (*RECORD_OPTIONS, "deadline_s")


def make(spec: str, documents: Sequence[Document]) -> HttpRetriever:
    """The service at the URL `spec`. `documents` are not used. Raises `ConfigError`."""
    url, options = split_name(spec, OPTIONS)
    host = split_url(url).hostname or ""
    record = record_of(options, f"retriever-{hashlib.sha256(url.encode()).hexdigest()[:16]}")
    limits = Limits(total_s=number(options, "deadline_s", 30.0), answer_bytes=4 << 20)
    return HttpRetriever(url, Client([host], private_hosts=[host], limits=limits), record)


class HttpRetriever:
    """Asks `url` through `client`; raises `ExternalError` when there is no usable answer."""

    effect: Effect = "recorded"

    def __init__(self, url: str, client: Client, record: Record) -> None:
        self._url, self._client, self._record = url, client, record

    def search(self, query: str, k: int) -> list[Hit]:
        """At most `k` passages, best first."""
        query, k = clean_text(query)[:MAX_QUERY_CHARS], min(k, MAX_HITS)
        if not query.strip() or k < 1:
            return []
        question = {"queries": [query], "topk": k, "return_scores": True}
        rows = self._record.answer({"service": self._url, **question}, lambda: self._ask(question, k))
        return [Hit(*row) for row in rows]

    def open(self, title: str) -> Hit | None:
        """The first passage with this title among those that a search for it finds."""
        return titled(self.search(title, OPEN_AMONG), title)

    def _ask(self, question: dict[str, Any], k: int) -> list[tuple[str, str, str, float]]:
        body = json.dumps(question).encode()
        reply = self._client.send("POST", self._url, body=body)
        try:
            if reply.status != 200:
                raise WireError(f"HTTP {reply.status}{_redirect(reply)}")
            if reply.too_large:
                raise WireError(
                    f"more than {self._client.limits.answer_bytes:,} bytes; ask for fewer passages"
                )
            hits = hits_of(json.loads(reply.body), k)
        except (ValueError, RecursionError) as error:  # of JSON, of its encoding, of the wire
            reason = str(error) if isinstance(error, WireError) else "it is not valid JSON"
            raise ExternalError(
                f"the retriever {self._url} gave an answer that cannot be used: {reason}. "
                "It has to answer POST as Search-R1's server does"
            ) from error
        return [(hit.id, hit.title, hit.text, hit.score) for hit in hits]


def _redirect(reply: Reply) -> str:
    return f", a redirect to {reply.location[:200]!a}: name that address instead" if reply.location else ""
