"""Tasks from files: GSM8K-format or MATH-like records in JSON lines, in Parquet, or in a Hugging Face
dataset.

Every record becomes a `Problem` or a bad line with its number and one reason; nothing is guessed and nothing
is dropped in silence. Ids are `name/line`; a record's split depends on its question alone (eight tenths
train, one dev, one test), so the same question never stands in two splits, whatever its file or line. `all`
is every record.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import msgspec

from trace_gym.env import clean_text
from trace_gym.envs.actions import format_answer
from trace_gym.envs.math.answer_text import MAX_CHARS, normalised
from trace_gym.envs.math.task import Problem, Step
from trace_gym.errors import ConfigError, TaskError

__all__ = ["BadLine", "FileSource", "OnBadLine", "load_source"]

MAX_QUESTION_CHARS = 8000  # an observation holds 8,192
MAX_STEP_CHARS = 200
QUESTION_FIELDS = ("question", "problem")
ANSWER_FIELDS = ("answer", "solution")
SPLITS = ("train", "dev", "test", "all")

OnBadLine = Literal["error", "skip"]

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_ANNOTATION = re.compile(r"<<([^<>]+)=([^<>=]+)>>")
_NUMBER = re.compile(r"-?\d+(\.\d+)?(/\d+)?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line (or row), counted from 1, that holds no task, and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class FileSource:
    """The tasks of one file or dataset."""

    name: str
    problems: Mapping[str, Problem]
    skipped: tuple[BadLine, ...]
    splits: Mapping[str, tuple[str, ...]]

    def tasks(self, split: str) -> Sequence[str]:
        """The ids of `split`, in the file's order. Raises `TaskError` for an unknown split."""
        if split not in SPLITS:
            raise TaskError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
        return self.splits[split]

    def problem(self, task_id: str) -> Problem:
        """Raises `TaskError` for an unknown id."""
        found = self.problems.get(task_id)
        if found is None:
            example = next(iter(self.problems))
            raise TaskError(
                f"unknown task {task_id[:80]!r}: the ids of {self.name} read {example!r}, by line; "
                f"tasks(split) lists those of {', '.join(SPLITS)}"
            )
        return found


@dataclass(frozen=True, slots=True)
class _Fields:
    question: tuple[str, ...]
    answer: tuple[str, ...]


class _Unusable(Exception):
    """Why a record is no task."""


def load_source(
    source: str,
    *,
    on_bad_line: OnBadLine = "error",
    question_field: str | None = None,
    answer_field: str | None = None,
) -> FileSource:
    """The tasks of a `.jsonl` or `.parquet` file or of `hf:NAME[:config[:split]]`.

    Raises `TaskError` for a missing, unreadable or empty file and, unless `on_bad_line` is "skip", for the
    first bad line; `ConfigError` for a setting that cannot be meant.
    """
    if on_bad_line not in ("error", "skip"):
        raise ConfigError(f"on_bad_line is 'error' or 'skip', not {on_bad_line!r}")
    fields = _Fields(
        (question_field,) if question_field else QUESTION_FIELDS,
        (answer_field,) if answer_field else ANSWER_FIELDS,
    )
    if source.startswith("hf:"):
        return _collect(source, source[3:], _dataset_rows(source), fields, on_bad_line)
    path = Path(source)
    if path.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(
            f"source {source[:200]!r}: name 'builtin', a .jsonl or .parquet file, or 'hf:NAME[:config[:split]]'"
        )
    try:
        found = path.stat()
    except OSError as error:
        raise TaskError(
            f"cannot open the task file {source}: {error.strerror}; check the path in source="
        ) from error
    return _load_file(path, found.st_mtime_ns, found.st_size, fields, on_bad_line)


@lru_cache(maxsize=8)  # many instances of an environment read one file
def _load_file(path: Path, mtime_ns: int, size: int, fields: _Fields, on_bad_line: OnBadLine) -> FileSource:
    rows = _json_rows(path) if path.suffix == ".jsonl" else _parquet_rows(path)
    return _collect(str(path), path.stem, rows, fields, on_bad_line)


# ---- rows: a number from 1 and a record, or the reason why there is none -------------------------------

_Row = tuple[int, Mapping[str, Any] | str]


def _json_rows(path: Path) -> Iterator[_Row]:
    decoder = msgspec.json.Decoder()
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield number, _json_record(decoder, line)
    except OSError as error:
        raise TaskError(f"cannot read the task file {path}: {error.strerror}") from error


def _json_record(decoder: msgspec.json.Decoder[Any], line: bytes) -> Mapping[str, Any] | str:
    try:
        record = decoder.decode(line)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        return f"not valid JSON ({error})"
    return (
        record if isinstance(record, dict) else f"a JSON {type(record).__name__}; write one object per line"
    )


def _parquet_rows(path: Path) -> Iterator[_Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TaskError(f"cannot read the task file {path}: {reason}; is it a Parquet file?") from error
    yield from enumerate(table.to_pylist(), 1)


def _dataset_rows(source: str) -> Iterator[_Row]:
    name, _, rest = source.removeprefix("hf:").partition(":")
    config, _, split = rest.partition(":")
    if not name or ":" in split:
        raise ConfigError(
            f"source {source!r}: write 'hf:NAME[:config[:split]]', such as 'hf:openai/gsm8k:main:test'"
        )
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise ConfigError(
            f"source {source!r} needs the datasets package: pip install 'trace-gym[data]'"
        ) from error
    try:
        yield from enumerate(datasets.load_dataset(name, config or None, split=split or "train"), 1)
    except Exception as error:  # whatever the hub, its cache or the dataset's files raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise TaskError(f"cannot load the dataset {source!r}: {reason}") from error


# ---- records -------------------------------------------------------------------------------------------


def _collect(
    source: str, name: str, rows: Iterator[_Row], fields: _Fields, on_bad_line: OnBadLine
) -> FileSource:
    problems: dict[str, Problem] = {}
    skipped: list[BadLine] = []
    for number, row in rows:
        try:
            task_id = f"{name}/{number}"
            problems[task_id] = _problem(row, task_id, fields)
        except _Unusable as bad:
            if on_bad_line == "error":
                raise TaskError(
                    f"{source}, line {number}: {bad}; mend it or pass on_bad_line='skip'"
                ) from None
            skipped.append(BadLine(number, str(bad)))
    if not problems:
        why = (
            f"all {len(skipped)} lines are bad, the first: {skipped[0].reason}" if skipped else "it is empty"
        )
        raise TaskError(f"{source} holds no task: {why}")
    splits = {
        split: tuple(i for i, p in problems.items() if _split_of(p.question) == split) for split in SPLITS
    }
    return FileSource(name, problems, tuple(skipped), {**splits, "all": tuple(problems)})


def _split_of(question: str) -> str:
    place = int.from_bytes(sha256(question.encode()).digest()[:4], "big") % 10
    return "test" if place == 0 else "dev" if place == 1 else "train"


def _problem(row: Mapping[str, Any] | str, task_id: str, fields: _Fields) -> Problem:
    if isinstance(row, str):
        raise _Unusable(row)
    question = _text(row, fields.question, "question")
    if len(question) > MAX_QUESTION_CHARS:
        raise _Unusable(
            f"the question has {len(question)} characters; at most {MAX_QUESTION_CHARS} can be shown"
        )
    solution = _text(row, fields.answer, "answer")
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
        raise _Unusable(f"no field {' or '.join(names)} (fields: {has}); name it with {what}_field=")
    value = row[name]
    if isinstance(value, int | float) and not isinstance(value, bool) and what == "answer":
        if not math.isfinite(value):
            raise _Unusable(f"the field {name} is {value}, not a finite number")
        value = str(int(value)) if value == int(value) else repr(value)
    if not isinstance(value, str):
        raise _Unusable(f"the field {name} is of type {type(value).__name__}, not text")
    text = clean_text(value).strip()
    if not text:
        raise _Unusable(f"the field {name} is empty")
    control = _CONTROL.search(text)
    if control:
        raise _Unusable(f"the field {name} holds the control character {control[0]!a}")
    return text


def _final_answer(solution: str) -> str:
    """What stands after `####`, or in the last `\\boxed{…}`, or the whole text where it is short."""
    _, mark, after = solution.rpartition("####")
    if mark:
        answer = _THOUSANDS.sub("", after.strip())
        if not answer:
            raise _Unusable("nothing stands after '####'")
    else:
        answer = _boxed(solution) or solution
    if len(answer) > MAX_CHARS:
        raise _Unusable("the answer is long and has neither '#### N' nor \\boxed{N} at its end")
    if not normalised(answer):
        raise _Unusable(f"the answer {answer!a} holds nothing to compare")
    try:
        format_answer(answer)
    except ValueError:
        raise _Unusable(f"the answer {answer[:40]!a} cannot be written inside <answer>…</answer>") from None
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
