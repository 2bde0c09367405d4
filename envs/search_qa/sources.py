"""Questions from files: HotpotQA, 2WikiMultiHopQA and MuSiQue in their own schemas (`trace_gym.envs.taskfiles` says how
files, ids and splits work).

- HotpotQA (Yang et al. 2018) and 2WikiMultiHopQA (Ho et al. 2020): `question, answer, supporting_facts, context`, and
  where they are given `type`. Facts are `[[title, sentence], …]` and the context `[[title, [sentence, …]], …]`, or both
  as columns, as the `datasets` package has them: `{"title": […], "sent_id": […]}`, `{"title": […], "sentences": […]}`.
- MuSiQue (Trivedi et al. 2022): `question, answer, answer_aliases, paragraphs, question_decomposition`; a record with
  `answerable` false is no task.

The corpus is what stands in the records, each passage once, and further passages of a file of `title` and `text`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from trace_gym.envs.actions import format_answer
from trace_gym.envs.search_qa.answers import normalised
from trace_gym.envs.search_qa.retriever import Document
from trace_gym.envs.search_qa.task import MAX_HOPS, Hop, Question
from trace_gym.envs.taskfiles import (
    BadLine,
    OnBadLine,
    RecordSource,
    UnusableError,
    checked_text,
    load_records,
)

__all__ = ["FileSource", "load_questions"]

MAX_QUESTION_CHARS = 8000  # an observation holds 8,192
MAX_ANSWER_CHARS = 1000
MAX_TITLE_CHARS = 400

_Passage = tuple[str, str]  # title, text


@dataclass(frozen=True, slots=True)
class _Entry:
    """A record: its question and the passages that came with it."""

    question: Question
    passages: tuple[_Passage, ...]


@dataclass(frozen=True, slots=True)
class _QuestionReader:
    """Reads records of all three schemas; MuSiQue's are told by their `paragraphs`."""

    def read(self, row: Mapping[str, Any], task_id: str) -> _Entry:
        return _musique(row, task_id) if "paragraphs" in row else _hotpot(row, task_id)

    def question(self, task: _Entry) -> str:
        return task.question.text


@dataclass(frozen=True, slots=True)
class _PassageReader:
    """Reads records with a `title` and a `text`."""

    def read(self, row: Mapping[str, Any], task_id: str) -> _Passage:
        return _title(_field(row, "title"), "title"), _joined(_field(row, "text"), "text")

    def question(self, task: _Passage) -> str:
        return task[0]


@dataclass(frozen=True, slots=True)
class FileSource:
    """The questions of one file or dataset with `lowest` to `highest` gold passages (more than four count as four)."""

    loaded: RecordSource[_Entry]
    further: RecordSource[_Passage] | None
    lowest: int
    highest: int

    @property
    def skipped(self) -> tuple[BadLine, ...]:
        """The bad lines of the questions' file, then those of the further passages'."""
        return self.loaded.skipped + (self.further.skipped if self.further else ())

    def tasks(self, split: str) -> Sequence[str]:
        """The ids of `split`, in the file's order. Raises `TaskError` for an unknown split."""
        return [i for i in self.loaded.tasks(split) if self.lowest <= self._hops(i) <= self.highest]

    def question(self, task_id: str) -> Question:
        """Raises `TaskError` for an unknown id."""
        return self.loaded.record(task_id).question

    def documents(self) -> Sequence[Document]:
        """Each passage once. Its id is its title, with a number where another text has that title too."""
        return _documents(self.loaded, self.further)

    def _hops(self, task_id: str) -> int:
        return min(len(self.question(task_id).titles), MAX_HOPS)


def load_questions(
    source: str, *, lowest: int, highest: int, corpus: str | None = None, on_bad_line: OnBadLine = "error"
) -> FileSource:
    """The questions of a `.json`, `.jsonl` or `.parquet` file or of `hf:NAME[:config[:split]]`.

    Raises `TaskError` for a missing, unreadable or empty file and, unless `on_bad_line` is "skip", for the first bad
    line; `ConfigError` for a setting that cannot be meant.
    """
    loaded = load_records(source, _QuestionReader(), on_bad_line=on_bad_line)
    further = load_records(corpus, _PassageReader(), on_bad_line=on_bad_line) if corpus else None
    return FileSource(loaded, further, lowest, highest)


@lru_cache(maxsize=4)  # one corpus, whatever instance asks
def _documents(loaded: RecordSource[_Entry], further: RecordSource[_Passage] | None) -> tuple[Document, ...]:
    def passages() -> Iterator[_Passage]:
        for entry in loaded.records.values():
            yield from entry.passages
        if further is not None:
            yield from further.records.values()

    texts: dict[str, list[str]] = {}
    for title, text in passages():
        known = texts.setdefault(title, [])
        if text not in known:
            known.append(text)
    return tuple(
        Document(f"{title} #{number}" if number > 1 else title, title, text)
        for title, several in texts.items()
        for number, text in enumerate(several, 1)
    )


# ---- HotpotQA and 2WikiMultiHopQA ----------------------------------------------------------------------------


def _hotpot(row: Mapping[str, Any], task_id: str) -> _Entry:
    titles = dict.fromkeys(
        _title(title, "supporting_facts") for title, _ in _pairs(row, "supporting_facts", "sent_id")
    )
    if not titles:
        raise UnusableError("supporting_facts is empty: no passage is named that the answer rests on")
    passages = tuple(
        (_title(title, "context"), _joined(sentences, "context"))
        for title, sentences in _pairs(row, "context", "sentences")
    )
    hops = tuple(Hop(title, title) for title in titles)
    kind = row.get("type")
    return _Entry(_question(row, task_id, kind if isinstance(kind, str) else "bridge", hops), passages)


def _pairs(row: Mapping[str, Any], name: str, other: str) -> Sequence[tuple[Any, Any]]:
    """The pairs in a list of pairs, or in two columns called `title` and `other`."""
    value = _field(row, name)
    if isinstance(value, Mapping):
        titles, others = value.get("title"), value.get(other)
        if not isinstance(titles, list) or not isinstance(others, list) or len(titles) != len(others):
            raise UnusableError(f"the field {name} holds no two lists of one length, title and {other}")
        return list(zip(titles, others, strict=True))
    if not isinstance(value, list) or any(not isinstance(p, list | tuple) or len(p) != 2 for p in value):
        raise UnusableError(f"the field {name} is no list of pairs [title, {other}]")
    return [(title, other_part) for title, other_part in value]


# ---- MuSiQue -------------------------------------------------------------------------------------------------


def _musique(row: Mapping[str, Any], task_id: str) -> _Entry:
    if row.get("answerable") is False:
        raise UnusableError("the question is marked as not answerable")
    paragraphs = {
        _whole(part, "idx", "paragraphs"): (
            _title(_field(part, "title"), "title"),
            _joined(_field(part, "paragraph_text"), "paragraph_text"),
        )
        for part in _objects(row, "paragraphs")
    }
    hops = []
    for part in _objects(row, "question_decomposition"):
        place = _whole(part, "paragraph_support_idx", "question_decomposition")
        if place not in paragraphs:
            raise UnusableError(f"question_decomposition names the paragraph {place}, which is not there")
        title = paragraphs[place][0]
        hops.append(Hop(title, title, checked_text(_field(part, "answer"), "answer")))
    if not hops:
        raise UnusableError("question_decomposition is empty: no passage is named that the answer rests on")
    return _Entry(_question(row, task_id, "bridge", tuple(hops)), tuple(paragraphs.values()))


def _objects(row: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    value = _field(row, name)
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise UnusableError(f"the field {name} is no list of objects")
    return value


def _whole(part: Mapping[str, Any], name: str, where: str) -> int:
    value = part.get(name)
    if type(value) is not int:
        raise UnusableError(f"{where}: {name} is no whole number")
    return value


# ---- parts of all schemas ------------------------------------------------------------------------------------


def _question(row: Mapping[str, Any], task_id: str, kind: str, hops: tuple[Hop, ...]) -> Question:
    text = checked_text(_field(row, "question"), "question")
    if len(text) > MAX_QUESTION_CHARS:
        raise UnusableError(
            f"the question has {len(text)} characters; at most {MAX_QUESTION_CHARS} can be shown"
        )
    aliases = row.get("answer_aliases") or []
    if not isinstance(aliases, list):
        raise UnusableError("the field answer_aliases is no list")
    golds = [_field(row, "answer"), *aliases]
    answers = tuple(
        dict.fromkeys(_answer(gold, "answer_aliases" if i else "answer") for i, gold in enumerate(golds))
    )
    return Question(
        id=task_id, text=text, answers=answers, kind=kind, hops=hops, tempting=_tempting(answers[0], hops)
    )


def _tempting(answer: str, hops: Sequence[Hop]) -> tuple[str, ...]:
    """The other of yes and no, or what the passages are called and say that is not the answer."""
    plain = normalised(answer)
    if plain in ("yes", "no"):
        return ("no" if plain == "yes" else "yes",)
    wrong = dict.fromkeys(text for hop in hops for text in (hop.title, hop.value) if text)
    return tuple(text for text in wrong if normalised(text) != plain and _can_be_written(text))


def _answer(value: object, name: str) -> str:
    text = checked_text(value, name)
    if len(text) > MAX_ANSWER_CHARS:
        raise UnusableError(f"the field {name} has {len(text)} characters; at most {MAX_ANSWER_CHARS}")
    if not normalised(text):
        raise UnusableError(f"the field {name} holds nothing to compare: {text[:40]!a}")
    if not _can_be_written(text):
        raise UnusableError(f"the answer {text[:40]!a} cannot be written inside <answer>…</answer>")
    return text


def _can_be_written(text: str) -> bool:
    try:
        format_answer(text)
    except ValueError:
        return False
    return True


def _field(row: Mapping[str, Any], name: str) -> Any:
    value = row.get(name)
    if value is None:
        has = ", ".join(str(key)[:40] for key in list(row)[:10]) or "none"
        raise UnusableError(f"no field {name} (fields: {has})")
    return value


def _title(value: object, name: str) -> str:
    text = checked_text(value, f"{name} (a title)" if name != "title" else name)
    if len(text) > MAX_TITLE_CHARS:
        raise UnusableError(f"a title has {len(text)} characters; at most {MAX_TITLE_CHARS}")
    return text


def _joined(value: object, name: str) -> str:
    """The text of a passage, given whole or as a list of sentences."""
    sentences = [s for s in (value if isinstance(value, list) else [value]) if isinstance(s, str)]
    if len(sentences) != (len(value) if isinstance(value, list) else 1):
        raise UnusableError(f"the field {name} holds a passage that is no text")
    return checked_text(" ".join(" ".join(sentences).split()) or "(empty)", name)
