"""What is shown of a passage: the sentences that a query asks for, within a limit.

A function of the passage, the query and the limit alone, so equal situations show equal text.
"""

from __future__ import annotations

import re

from trace_gym.envs.search_qa.bm25 import words

__all__ = ["holds", "shorten", "snippet"]

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^\sa-z])")


def snippet(text: str, query: str, limit: int) -> str:
    """`text` from the sentence that shares most words with `query` (the first of them), at most `limit` characters.

    The whole text where it fits.
    """
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    asked = frozenset(words(query))
    starts = [0, *(match.end() for match in _SENTENCE_END.finditer(text))]
    ends = [*starts[1:], len(text)]
    shared = [
        len(asked.intersection(words(text[start:end]))) for start, end in zip(starts, ends, strict=True)
    ]
    return shorten(text[starts[shared.index(max(shared))] :], limit)


def shorten(text: str, limit: int) -> str:
    """`text`, or its beginning to a whole word and "…", at most `limit` characters."""
    if len(text) <= limit:
        return text
    head = text[: limit - 1]
    at_word = head.rsplit(" ", 1)[0] if " " in head and not text[limit - 1].isspace() else head
    return at_word.rstrip() + "…"


def holds(text: str, value: str) -> bool:
    """Whether the words of `value` stand in `text`, next to each other and in order; case and accents do not count."""
    wanted = " ".join(words(value))
    return bool(wanted) and f" {wanted} " in f" {' '.join(words(text))} "
