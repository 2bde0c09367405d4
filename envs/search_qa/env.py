"""`trace_gym/SearchQA-v0`: a question of several hops, two tools, one answer.

    search(query, k)      open(title)      <answer>…</answer>

The frozen state holds the question, the calls made, a digest of every passage shown and which hops of the question
they covered: it can be judged, continued and demonstrated from wherever it is restored. The retriever is no part of
it. What is shown of a passage depends on the passage, the query and the settings alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np

from trace_gym.env import ForkableEnv, Opening, Tool, Turn
from trace_gym.envs.actions import HERMES, SEARCH_R1, Answer, Malformed, check_arguments, parse_action
from trace_gym.envs.options import check_split
from trace_gym.envs.search_qa.answers import exact_match, f1
from trace_gym.envs.search_qa.bm25 import BM25, title_key
from trace_gym.envs.search_qa.demonstrators import KEPT_CHARS, expert_action, novice_action
from trace_gym.envs.search_qa.passages import holds, shorten, snippet
from trace_gym.envs.search_qa.retriever import Document, Hit, Retriever, make_retriever
from trace_gym.envs.search_qa.sources import load_questions
from trace_gym.envs.search_qa.task import Question, Seen, Source, Use, read_difficulty
from trace_gym.envs.search_qa.world import WorldSource, read_topics
from trace_gym.envs.taskfiles import BadLine, OnBadLine, skipped_lines
from trace_gym.errors import ConfigError, TaskError

__all__ = ["SearchQAEnv", "SearchState"]

SPARE_TURNS = 2  # that a task allows beyond those it needs
MAX_K = 10

ANSWERING = "When you know the answer, finish with it alone, in a few words, such as <answer>Warsaw</answer>."
INSTRUCTIONS = {
    "hermes": "Answer the question by searching. Make one tool call per turn, such as "
    '<tool_call>{"name":"search","arguments":{"query":"capital of Poland"}}</tool_call>, and read its result. '
    + ANSWERING,
    "search-r1": "Answer the question by searching. Search with one query per turn, such as "
    "<search>capital of Poland</search>, and read its result. " + ANSWERING,
}
TAGS = {"hermes": HERMES, "search-r1": SEARCH_R1}


class SearchState(msgspec.Struct, frozen=True):
    """The question, every call that reached a tool, every passage shown, and the hops that these covered."""

    question: Question
    uses: tuple[Use, ...] = ()
    seen: tuple[Seen, ...] = ()
    found: tuple[int, ...] = ()  # indices of the question's hops, ascending


class SearchQAEnv(ForkableEnv[SearchState]):
    """Question answering by search. `info` tells of every turn whether its action could not be used
    (`format_error`), the share of gold passages shown so far (`fact_recall`), and the `f1` of the answer (0 until one
    is given).

    `source`: "builtin", a `.json`, `.jsonl` or `.parquet` file or "hf:NAME[:config[:split]]" of HotpotQA,
    2WikiMultiHopQA or MuSiQue (see `sources`). `split`: which of train, dev, test and all `reset` draws from.
    `difficulty`: the number of gold passages, "1" to "4" or a range. `topics`: built-in questions that start from
    these alone, such as "countries+elements". `retriever`: a name that `make_retriever` knows, or a retriever.
    `k`: passages that a search shows unless the call says otherwise. `snippet_chars`, `passage_chars`: how much is
    shown of a passage found and of one opened. `max_turns`: one turn limit for all tasks instead of two turns a hop,
    one for the answer and two to spare. `reward`: "em" is 1 for an exact match, "f1" is the F1 where it reaches
    `f1_threshold`, and 0 otherwise. `tags`: "search-r1" accepts `<search>…</search>` too. `corpus`: further passages,
    a JSON-lines file of `title` and `text`. `on_bad_line`: "error" refuses a file with a bad line, "skip" lists it
    under `skipped`.

    A tiny policy learns from `topics="airports+countries", difficulty="1-2", k=1, snippet_chars=80`.

    Raises `ConfigError` for a setting, `TaskError` for a file that cannot be used.
    """

    env_id: ClassVar[str] = "trace_gym/SearchQA-v0"
    state_type: ClassVar[type[msgspec.Struct]] = SearchState

    def __init__(
        self,
        source: str | Path = "builtin",
        split: str = "train",
        *,
        difficulty: str | int = "1-4",
        topics: str = "all",
        retriever: str | Retriever = "bm25",
        k: int = 3,
        snippet_chars: int = 240,
        passage_chars: int = 2000,
        max_turns: int | None = None,
        reward: Literal["em", "f1"] = "em",
        f1_threshold: float = 0.8,
        tags: Literal["hermes", "search-r1"] = "hermes",
        corpus: str | Path | None = None,
        on_bad_line: OnBadLine = "error",
    ) -> None:
        super().__init__()
        check_split(split)
        _check_choice("reward", reward, ("em", "f1"))
        _check_choice("tags", tags, tuple(TAGS))
        _check_whole("k", k, 1, MAX_K)
        _check_whole("snippet_chars", snippet_chars, 20, 700)
        _check_whole("passage_chars", passage_chars, 20, 7000)
        if max_turns is not None:
            _check_whole("max_turns", max_turns, 1, 1000)
        if not 0 < f1_threshold <= 1:
            raise ConfigError(f"f1_threshold lies above 0 and is at most 1, not {f1_threshold!r}")
        self._split, self._max_turns, self._k = split, max_turns, k
        self._snippet_chars, self._passage_chars = snippet_chars, passage_chars
        self._reward, self._f1_threshold, self._tags = reward, f1_threshold, tags
        self.skipped: tuple[BadLine, ...] = ()  # bad lines of the files, each with its reason
        lowest, highest = read_difficulty(str(difficulty))
        self._source: Source = WorldSource(lowest, highest, read_topics(topics))
        if str(source) != "builtin":
            found = load_questions(
                str(source),
                lowest=lowest,
                highest=highest,
                corpus=None if corpus is None else str(corpus),
                on_bad_line=on_bad_line,
            )
            self._source, self.skipped = found, found.skipped
        elif corpus is not None:
            raise ConfigError("corpus= adds passages to those of a file; the built-in source has its own")
        self._retriever = _retriever(retriever, self._source)
        self._tools = _tools(self._retriever, k)

    # ---- tasks -----------------------------------------------------------------------------------------

    def tasks(self, split: str) -> Sequence[str]:
        """Ids of train, dev, test or all, in a fixed order. Raises `TaskError` for another split."""
        return self._source.tasks(split)

    def notices(self) -> Sequence[str]:
        """The skipped lines of the files, the first twenty by name."""
        return skipped_lines(self.skipped)

    def _draw_task(self) -> str:
        ids = self.tasks(self._split)
        if not ids:
            raise TaskError(f"{self.env_id}: the source's split {self._split!r} is empty; pass split='all'")
        return ids[int(self.np_random.integers(len(ids)))]

    def begin(self, task_id: str, rng: np.random.Generator) -> Opening[SearchState]:
        question = self._source.question(task_id)
        limit = self._max_turns or 2 * len(question.hops) + 1 + SPARE_TURNS
        state = SearchState(question)
        return Opening(state, question.text, limit, _facts(state))

    # ---- turns -----------------------------------------------------------------------------------------

    def advance(self, state: SearchState, action: str, rng: np.random.Generator) -> Turn[SearchState]:
        act = parse_action(action, tags=TAGS[self._tags])
        if isinstance(act, Answer):
            return self._judged(state, act.text)
        if isinstance(act, Malformed):
            return _unusable(state, act.message)
        tool = next((tool for tool in self._tools if tool.name == act.name), None)
        if tool is None:
            return _unusable(state, f"there is no tool {act.name!r}; the tools are search and open")
        wrong = check_arguments(tool.parameters, act.arguments)
        if wrong is not None:
            return _unusable(state, f"{tool.name}: {wrong}")
        return (self._search if tool.name == "search" else self._open)(state, act.arguments)

    def _search(self, state: SearchState, arguments: dict[str, Any]) -> Turn[SearchState]:
        query, k = arguments["query"].strip()[:KEPT_CHARS], int(arguments.get("k", self._k))
        if not 1 <= k <= MAX_K:
            return _unusable(state, f"search: k is a number from 1 to {MAX_K}, not {k}")
        hits = self._retriever.search(query, k)
        shown = [(hit, snippet(hit.text, query, self._snippet_chars)) for hit in hits]
        after = _shown(state, Use("search", query), shown)
        lines = [f"{i}. {_title(hit)}: {text}" for i, (hit, text) in enumerate(shown, 1)]
        return Turn.go(after, "\n".join(lines) or "nothing found", extra=_facts(after))

    def _open(self, state: SearchState, arguments: dict[str, Any]) -> Turn[SearchState]:
        title = arguments["title"].strip()[:KEPT_CHARS]
        hit = self._retriever.open(title)
        if hit is None:
            after = _shown(state, Use("open", title), [])
            return Turn.go(after, "nothing has this title; search for it", extra=_facts(after))
        text = shorten(" ".join(hit.text.split()), self._passage_chars)
        after = _shown(state, Use("open", title), [(hit, text)], whole=True)
        return Turn.go(after, f"{_title(hit)}: {text}", extra=_facts(after))

    def _judged(self, state: SearchState, answer: str) -> Turn[SearchState]:
        score = f1(answer, state.question.answers)
        success = exact_match(answer, state.question.answers)
        reward = float(success)
        if self._reward == "f1":
            success = score >= self._f1_threshold
            reward = score if success else 0.0
        extra = {**_facts(state), "f1": score}
        text = "correct" if success else "wrong"
        return Turn.end(state, text, success=success, reward=reward, extra=extra)

    def instructions(self, state: SearchState) -> str:
        return INSTRUCTIONS[self._tags]

    def tools(self, state: SearchState) -> Sequence[Tool]:
        return self._tools

    # ---- what is known of a situation ------------------------------------------------------------------

    def state_key(self) -> str:
        """Question, what was shown of which passages (in any order), turns left, and how it ended.

        How it was searched for does not matter, nor what was shown twice, nor a turn that showed nothing (but for the
        turn it cost).
        """
        now, state = self._episode(), self.state
        shown = sorted({passage.digest for passage in state.seen})
        question = state.question
        situation = (
            question.id,
            question.text,
            question.answers,
            shown,
            self._turns_left,
            now.status,
            now.success,
        )
        return hashlib.sha256(msgspec.json.encode(situation)).hexdigest()

    def expert_action(self) -> str:
        """The next call that is needed, or the answer when none is or one turn is left."""
        return expert_action(self.state.question, self.state.uses, self.state.found, self._turns_left)

    def novice_action(self, rng: np.random.Generator, *, slip: float = 0.35, noise: float = 0.03) -> str:
        """A fallible demonstrator's action. `slip`: how often it stops a hop early, and how often it takes a tempting
        wrong answer; `noise`: how often per turn it makes a random mistake."""
        state = self.state
        return novice_action(
            state.question, state.uses, state.found, self._turns_left, rng, slip=slip, noise=noise
        )

    @property
    def _turns_left(self) -> int:
        now = self._episode()
        return now.turn_limit - now.turn


# ---- settings ------------------------------------------------------------------------------------------


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"unknown {name} {value!r}; there are {', '.join(choices)}")


def _check_whole(name: str, value: object, lowest: int, highest: int) -> None:
    if type(value) is not int or not lowest <= value <= highest:
        raise ConfigError(f"{name} is a whole number from {lowest} to {highest}, not {value!r}")


def _retriever(retriever: str | Retriever, source: Source) -> Retriever:
    if not isinstance(retriever, str):
        return retriever
    if retriever == "bm25":
        return _index(_Same(source.documents()))
    return make_retriever(retriever, source.documents())


class _Same:
    """Documents compared by being the same object: sources give the same one each time."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = documents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.documents is other.documents

    def __hash__(self) -> int:
        return id(self.documents)


@lru_cache(maxsize=4)  # every instance with one corpus searches one index
def _index(corpus: _Same) -> BM25:
    return BM25(corpus.documents)


def _tools(retriever: Retriever, k: int) -> tuple[Tool, ...]:
    search = Tool(
        name="search",
        description="The passages that match a query best, a few words of each.",
        parameters={
            "type": "object",
            "properties": {
                "query": {"type": "string"},
                "k": {"type": "integer", "description": f"how many passages, {k} unless given"},
            },
            "required": ["query"],
        },
        effect=retriever.effect,
    )
    read = Tool(
        name="open",
        description="The whole passage with this title.",
        parameters={
            "type": "object",
            "properties": {"title": {"type": "string"}},
            "required": ["title"],
        },
        effect=retriever.effect,
    )
    return search, read


# ---- steps ---------------------------------------------------------------------------------------------


def _shown(
    state: SearchState, use: Use, shown: Sequence[tuple[Hit, str]], *, whole: bool = False
) -> SearchState:
    """The state after `use` showed these passages and this much of them."""
    seen, found = dict.fromkeys(state.seen), set(state.found)
    for hit, text in shown:
        complete = whole or text == " ".join(hit.text.split())
        seen[Seen(hit.title, _digest(hit.title, text), complete)] = None
        for index, hop in enumerate(state.question.hops):
            if title_key(hop.title) == title_key(hit.title) and (complete or holds(text, hop.value)):
                found.add(index)
    return SearchState(state.question, (*state.uses, use), tuple(seen), tuple(sorted(found)))


def _title(hit: Hit) -> str:
    return shorten(" ".join(hit.title.split()), 200)


def _digest(title: str, text: str) -> str:
    return hashlib.sha256(f"{title}\n{text}".encode()).hexdigest()[:16]


def _facts(state: SearchState) -> dict[str, Any]:
    """What `info` tells of a turn that went well."""
    titles = {title_key(title) for title in state.question.titles}
    seen = {title_key(passage.title) for passage in state.seen}
    recall = len(titles & seen) / len(titles) if titles else 1.0
    return {"f1": 0.0, "fact_recall": recall, "format_error": False}  # in the order that bytes keep


def _unusable(state: SearchState, message: str) -> Turn[SearchState]:
    return Turn.go(state, f"error: {message}", extra={**_facts(state), "format_error": True})
