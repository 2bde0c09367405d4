"""The built-in world-facts set: short passages on countries, capitals, elements, airports, people and places, and
questions of 1 to 4 hops about them.

An id reads `topic/split/hops/number`, such as `countries/train/2/17`; the topic is what the question starts from. All
gold passages of a question belong to its split. The files are made by `build_world`; `NOTICE` beside them names the
sources and their licences.
"""

from __future__ import annotations

import gzip
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, zip_longest
from pathlib import Path

import msgspec

from trace_gym.envs.options import SPLITS
from trace_gym.envs.search_qa.retriever import Document
from trace_gym.envs.search_qa.task import MAX_HOPS, Hop, Question
from trace_gym.errors import ConfigError, TaskError

__all__ = ["DOCUMENTS", "FOLDER", "QUESTIONS", "TOPICS", "WorldSource", "read_topics"]

FOLDER = Path(__file__).parent / "data"
DOCUMENTS, QUESTIONS = "world_documents.jsonl.gz", "world_questions.jsonl.gz"
TOPICS = ("airports", "countries", "elements", "people", "places")

_Row = tuple[str, str, tuple[str, ...], str, tuple[Hop, ...], tuple[str, ...]]


def read_topics(text: str) -> tuple[str, ...]:
    """The topics that `text` names, "all" or some with a + between them. Raises `ConfigError`."""
    topics = TOPICS if text == "all" else tuple(text.split("+"))
    if unknown := [topic for topic in topics if topic not in TOPICS]:
        raise ConfigError(f"unknown topic {unknown[0][:40]!r}; there are {', '.join(TOPICS)}, a + b, and all")
    return topics


@dataclass(frozen=True, slots=True)
class WorldSource:
    """The built-in questions of these topics and hops. Any other built-in id can be asked for as well."""

    lowest: int = 1
    highest: int = MAX_HOPS
    topics: tuple[str, ...] = TOPICS

    def tasks(self, split: str) -> Sequence[str]:
        """The ids of a split, or of `all`. Raises `TaskError` for an unknown split."""
        if split == "all":
            return [task_id for each in SPLITS[:3] for task_id in self.tasks(each)]
        if split not in SPLITS:
            raise TaskError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
        return _ids(split, self.lowest, self.highest, self.topics)

    def question(self, task_id: str) -> Question:
        """Raises `TaskError` for an unknown id."""
        found = _questions().get(task_id)
        if found is None:
            raise TaskError(
                f"unknown task {task_id[:80]!r}: built-in ids read topic/split/hops/number, such as "
                f"countries/train/2/0; the splits are {', '.join(SPLITS[:3])}"
            )
        return found

    def documents(self) -> Sequence[Document]:
        """All passages, whatever the topics; a passage's id is its title."""
        return _documents()


@lru_cache(maxsize=64)
def _ids(split: str, lowest: int, highest: int, topics: tuple[str, ...]) -> tuple[str, ...]:
    """The ids in a fixed order. Numbers of hops take turns, so that the beginning of the list holds all of them."""
    by_hops: dict[int, list[str]] = defaultdict(list)
    for task_id in _questions():
        topic, where, hops, _ = task_id.split("/")
        if where == split and topic in topics and lowest <= int(hops) <= highest:
            by_hops[int(hops)].append(task_id)
    turns = zip_longest(*(by_hops[hops] for hops in sorted(by_hops)))
    return tuple(task_id for task_id in chain.from_iterable(turns) if task_id is not None)


@lru_cache(maxsize=1)
def _questions() -> Mapping[str, Question]:
    rows = msgspec.json.Decoder(_Row).decode_lines(_read(QUESTIONS))
    return {
        name: Question(id=name, text=text, answers=answers, kind=kind, hops=hops, tempting=tempting)
        for name, text, answers, kind, hops, tempting in rows
    }


@lru_cache(maxsize=1)
def _documents() -> tuple[Document, ...]:
    rows = msgspec.json.Decoder(tuple[str, str]).decode_lines(_read(DOCUMENTS))
    return tuple(Document(title, title, text) for title, text in rows)


def _read(name: str) -> bytes:
    return gzip.decompress((FOLDER / name).read_bytes())
