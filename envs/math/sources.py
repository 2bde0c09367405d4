"""Problems from files: GSM8K-format or MATH-like records (see `trace_gym.envs.taskfiles` for files, ids and splits)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trace_gym.envs.actions import format_answer
from trace_gym.envs.math.answer_text import MAX_CHARS, normalised
from trace_gym.envs.math.task import Problem, Step
from trace_gym.envs.taskfiles import (
    BadLine,
    OnBadLine,
    RecordSource,
    UnusableError,
    checked_text,
    load_records,
)

__all__ = ["FileSource", "load_source"]

MAX_QUESTION_CHARS = 8000  # an observation holds 8,192
MAX_STEP_CHARS = 200
QUESTION_FIELDS = ("question", "problem")
ANSWER_FIELDS = ("answer", "solution")

_ANNOTATION = re.compile(r"<<([^<>]+)=([^<>=]+)>>")
_NUMBER = re.compile(r"-?\d+(\.\d+)?(/\d+)?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


@dataclass(frozen=True, slots=True)
class FileSource:
    """The problems of one file or dataset."""

    loaded: RecordSource[Problem]

    @property
    def skipped(self) -> tuple[BadLine, ...]:
        """The bad lines."""
        return self.loaded.skipped

    def tasks(self, split: str) -> Sequence[str]:
        """The ids of `split`, in the file's order. Raises `TaskError` for an unknown split."""
        return self.loaded.tasks(split)

    def problem(self, task_id: str) -> Problem:
        """Raises `TaskError` for an unknown id."""
        return self.loaded.record(task_id)


@dataclass(frozen=True, slots=True)
class _Fields:
    """Reads a problem from the fields of these names."""

    names_of_question: tuple[str, ...]
    names_of_answer: tuple[str, ...]

    def read(self, row: Mapping[str, Any], task_id: str) -> Problem:
        return _problem(row, task_id, self)

    def question(self, task: Problem) -> str:
        return task.question


def load_source(
    source: str,
    *,
    on_bad_line: OnBadLine = "error",
    question_field: str | None = None,
    answer_field: str | None = None,
) -> FileSource:
    """The problems of a `.json`, `.jsonl` or `.parquet` file or of `hf:NAME[:config[:split]]`.

    Raises `TaskError` for a missing, unreadable or empty file and, unless `on_bad_line` is "skip", for the
    first bad line; `ConfigError` for a setting that cannot be meant.
    """
    fields = _Fields(
        (question_field,) if question_field else QUESTION_FIELDS,
        (answer_field,) if answer_field else ANSWER_FIELDS,
    )
    return FileSource(load_records(source, fields, on_bad_line=on_bad_line))


def _problem(row: Mapping[str, Any], task_id: str, fields: _Fields) -> Problem:
    question = _text(row, fields.names_of_question, "question")
    if len(question) > MAX_QUESTION_CHARS:
        raise UnusableError(
            f"the question has {len(question)} characters; at most {MAX_QUESTION_CHARS} can be shown"
        )
    solution = _text(row, fields.names_of_answer, "answer")
    answer = _final_answer(solution)
    steps = tuple(
        Step("calculator", text.strip(), result.strip())
        for text, result in _ANNOTATION.findall(solution)
        if text.strip() and len(text) <= MAX_STEP_CHARS
    )
    if not steps and _NUMBER.fullmatch(answer):  # so that the expert shows the use of a tool
        steps = (Step("calculator", answer, answer),)
    return Problem(id=task_id, question=question, answer=answer, steps=steps)


def _text(row: Mapping[str, Any], names: Sequence[str], what: str) -> str:
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        has = ", ".join(str(key)[:40] for key in list(row)[:8]) or "none"
        raise UnusableError(f"no field {' or '.join(names)} (fields: {has}); name it with {what}_field=")
    value = row[name]
    if isinstance(value, int | float) and not isinstance(value, bool) and what == "answer":
        if not math.isfinite(value):
            raise UnusableError(f"the field {name} is {value}, not a finite number")
        value = str(int(value)) if value == int(value) else repr(value)
    return checked_text(value, name)


def _final_answer(solution: str) -> str:
    """What stands after `####`, or in the last `\\boxed{…}`, or the whole text where it is short."""
    _, mark, after = solution.rpartition("####")
    if mark:
        answer = _THOUSANDS.sub("", after.strip())
        if not answer:
            raise UnusableError("nothing stands after '####'")
    else:
        answer = _boxed(solution) or solution
    if len(answer) > MAX_CHARS:
        raise UnusableError("the answer is long and has neither '#### N' nor \\boxed{N} at its end")
    if not normalised(answer):
        raise UnusableError(f"the answer {answer!a} holds nothing to compare")
    try:
        format_answer(answer)
    except ValueError:
        raise UnusableError(
            f"the answer {answer[:40]!a} cannot be written inside <answer>…</answer>"
        ) from None
    return answer


def _boxed(solution: str) -> str:
    """The content of the last `\\boxed{…}` whose braces match, or nothing."""
    _, mark, rest = solution.rpartition("\\boxed{")
    depth = 1
    for place, character in enumerate(rest if mark else ""):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[:place].strip()
    return ""
