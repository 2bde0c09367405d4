"""What a question is, whatever source it came from.

A question carries its own gold answers and the hops that lead to them: each is one search (or one passage opened) that
brings a passage and, where the source says so, the value read there. A demonstrator can therefore follow it, or go
wrong on purpose, and a snapshot that holds the question needs no source to be judged. Invariant: reading the passages
of all hops, in order, is enough to answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

from trace_gym.envs.search_qa.retriever import Document
from trace_gym.errors import ConfigError

__all__ = ["MAX_HOPS", "Hop", "Question", "Seen", "Source", "ToolName", "Use", "read_difficulty"]

MAX_HOPS = 4
ToolName = Literal["search", "open"]


class Hop(msgspec.Struct, frozen=True, array_like=True):
    """One gold passage on the way to the answer."""

    title: str
    query: str  # a search that brings it
    value: str = ""  # what is read there; empty where the source does not say


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A question, its gold answers (the first is the one to show), and its hops."""

    id: str
    text: str
    answers: tuple[str, ...]
    kind: str  # bridge, comparison, … as the source calls it
    hops: tuple[Hop, ...]
    tempting: tuple[str, ...] = ()  # wrong answers that a hasty reader of the passages gives

    @property
    def titles(self) -> tuple[str, ...]:
        """The gold titles, each once."""
        return tuple(dict.fromkeys(hop.title for hop in self.hops))


class Use(msgspec.Struct, frozen=True, array_like=True):
    """A tool call that reached its tool: the query or the title."""

    tool: ToolName
    text: str


class Seen(msgspec.Struct, frozen=True, array_like=True):
    """A passage that was shown, in part or whole: its title and a digest of what was shown."""

    title: str
    digest: str
    whole: bool  # opened, not only found


class Source(Protocol):
    """Where questions come from, and the passages that belong to them."""

    def tasks(self, split: str) -> Sequence[str]:
        """The ids of a split, in a fixed order. Raises `TaskError` for an unknown split."""

    def question(self, task_id: str) -> Question:
        """Raises `TaskError` for an unknown id."""

    def documents(self) -> Sequence[Document]:
        """The corpus of the questions, the same each time."""


def read_difficulty(text: str) -> tuple[int, int]:
    """The least and the greatest number of gold passages: "2", "1-4". Raises `ConfigError`."""
    match = re.fullmatch(r"([1-4])(?:-([1-4]))?", text)
    lowest, highest = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if lowest > highest:
        raise ConfigError(
            f"difficulty {text[:40]!r}: write a number of hops from 1 to {MAX_HOPS} such as '2', or a range such as '1-4'"
        )
    return lowest, highest
