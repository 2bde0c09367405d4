"""Search-R1's wire format, read leniently and written strictly.

    POST /retrieve  {"queries": ["…"], "topk": 3, "return_scores": true}
    {"result": [[{"document": {"id": "7", "contents": "\\"Title\\"\\ntext"}, "score": 1.5}, …]]}

Servers vary: without scores an item is the document itself; `id`, `score` or both may be missing; some give `title` and
`text` beside `contents`. All of these are read. A missing id is made from the contents, a missing score falls with the
rank, so that hits always come with both.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

from trace_gym.env import clean_text
from trace_gym.envs.search_qa.bm25 import title_key
from trace_gym.envs.search_qa.retriever import Hit

__all__ = ["WireError", "hits_of", "item_of", "title_and_text", "titled"]


class WireError(ValueError):
    """What is wrong with an answer, in a few words."""


def item_of(hit: Hit, *, scores: bool) -> dict[str, Any]:
    """A hit as the wire has it."""
    document = {"id": hit.id, "contents": f'"{hit.title}"\n{hit.text}'}
    return {"document": document, "score": hit.score} if scores else document


def hits_of(answer: Any, k: int) -> list[Hit]:
    """The first `k` hits of the one query asked. Raises `WireError`."""
    results = answer.get("result") if isinstance(answer, dict) else None
    if not isinstance(results, list) or len(results) != 1 or not isinstance(results[0], list):
        raise WireError('it is not {"result": [[…]]} with one list for the one query')
    return [_hit(item, rank) for rank, item in enumerate(results[0][:k])]


def _hit(item: Any, rank: int) -> Hit:
    if not isinstance(item, dict):
        raise WireError("an item is not an object")
    document = item.get("document", item)
    if isinstance(document, str):
        document = {"contents": document}
    if not isinstance(document, dict):
        raise WireError("a document is not an object")
    title, text = title_and_text(document)
    return Hit(_id(document, title, text), title, text, _score(item, rank))


def title_and_text(document: dict[str, Any]) -> tuple[str, str]:
    contents, title, text = (document.get(key) for key in ("contents", "title", "text"))
    if isinstance(contents, str):
        head, _, rest = contents.partition("\n")
        mine, rest = head.strip(), rest
        if len(mine) > 1 and mine[0] == mine[-1] == '"':
            mine = mine[1:-1]
        title, text = (title, contents) if isinstance(title, str) and title != mine else (mine, rest)
    if not isinstance(title, str) or not isinstance(text, str):
        raise WireError('a document has neither "contents" nor "title" and "text"')
    return clean_text(title), clean_text(text)


def _id(document: dict[str, Any], title: str, text: str) -> str:
    found = document.get("id")
    if isinstance(found, str | int) and not isinstance(found, bool):
        return clean_text(str(found))
    return hashlib.sha256(f"{title}\n{text}".encode()).hexdigest()[:16]


def _score(item: dict[str, Any], rank: int) -> float:
    found = item.get("score")
    if isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found):
        return float(found)
    return 1.0 / (1 + rank)


def titled(hits: Sequence[Hit], title: str) -> Hit | None:
    """The first of `hits` with this title, as `title_key` compares them."""
    wanted = title_key(title)
    return next((hit for hit in hits if title_key(hit.title) == wanted), None)
