"""Tasks from files: records in JSON, JSON lines, Parquet, or a Hugging Face dataset.

Every record becomes a task or a bad line with its number and one reason; nothing is guessed and nothing is dropped in
silence. Ids are `name/line`; a record's split depends on its question alone (eight tenths train, one dev, one test), so
the same question never stands in two splits, whatever its file or line. `all` is every record. An environment says how
a record is read: a `Reader` makes a task of it or raises `UnusableError`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import msgspec

from trace_gym.env import clean_text
from trace_gym.envs.options import SPLITS
from trace_gym.errors import ConfigError, TaskError

__all__ = [
    "BadLine",
    "OnBadLine",
    "Reader",
    "RecordSource",
    "UnusableError",
    "checked_text",
    "json_rows",
    "load_records",
    "skipped_lines",
]

MAX_NOTICES = 20  # skipped lines that are named one by one

OnBadLine = Literal["error", "skip"]
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line (or row), counted from 1, that holds no task, and why."""

    line: int
    reason: str


class UnusableError(Exception):
    """Why a record is no task."""


class Reader(Hashable, Protocol[T_co]):
    """How records become tasks; equal readers read alike."""

    def read(self, row: Mapping[str, Any], task_id: str) -> T_co:
        """The task in `row`. Raises `UnusableError`."""

    def question(self, task: Any) -> str:
        """The text that places a task in its split."""


@dataclass(frozen=True, slots=True, eq=False)  # large: one object is compared with itself
class RecordSource(Generic[T]):
    """The tasks of one file or dataset."""

    name: str
    records: Mapping[str, T]
    skipped: tuple[BadLine, ...]
    splits: Mapping[str, tuple[str, ...]]

    def tasks(self, split: str) -> Sequence[str]:
        """The ids of `split`, in the file's order. Raises `TaskError` for an unknown split."""
        if split not in SPLITS:
            raise TaskError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
        return self.splits[split]

    def record(self, task_id: str) -> T:
        """Raises `TaskError` for an unknown id."""
        found = self.records.get(task_id)
        if found is None:
            example = next(iter(self.records))
            raise TaskError(
                f"unknown task {task_id[:80]!r}: the ids of {self.name} read {example!r}, by line; "
                f"tasks(split) lists those of {', '.join(SPLITS)}"
            )
        return found


def skipped_lines(skipped: Sequence[BadLine]) -> Sequence[str]:
    """The skipped lines of a file for a person, the first twenty by name."""
    lines = [f"line {bad.line} skipped: {bad.reason}" for bad in skipped[:MAX_NOTICES]]
    more = len(skipped) - len(lines)
    return [*lines, f"{more} more lines skipped"] if more else lines


def checked_text(value: object, name: str) -> str:
    """`value` stripped and clean. Raises `UnusableError` when it is no text, or text that cannot be shown."""
    if not isinstance(value, str):
        raise UnusableError(f"the field {name} is of type {type(value).__name__}, not text")
    text = clean_text(value).strip()
    if not text:
        raise UnusableError(f"the field {name} is empty")
    control = _CONTROL.search(text)
    if control:
        raise UnusableError(f"the field {name} holds the control character {control[0]!a}")
    return text


# ---- loading -------------------------------------------------------------------------------------------


def load_records(source: str, reader: Reader[T], *, on_bad_line: OnBadLine = "error") -> RecordSource[T]:
    """The tasks of a `.json`, `.jsonl` or `.parquet` file or of `hf:NAME[:config[:split]]`.

    Raises `TaskError` for a missing, unreadable or empty file and, unless `on_bad_line` is "skip", for the
    first bad line; `ConfigError` for a setting that cannot be meant.
    """
    if on_bad_line not in ("error", "skip"):
        raise ConfigError(f"on_bad_line is 'error' or 'skip', not {on_bad_line!r}")
    if source.startswith("hf:"):
        return _collect(source, source[3:], _dataset_rows(source), reader, on_bad_line)
    path = Path(source)
    if path.suffix not in _ROWS:
        raise ConfigError(
            f"source {source[:200]!r}: name 'builtin', a .jsonl or .parquet file (or .json with one array), "
            "or 'hf:NAME[:config[:split]]'"
        )
    try:
        found = path.stat()
    except OSError as error:
        raise TaskError(
            f"cannot open the task file {source}: {error.strerror}; check the path in source="
        ) from error
    return _load_file(path, found.st_mtime_ns, found.st_size, reader, on_bad_line)


@lru_cache(maxsize=8)  # many instances of an environment read one file
def _load_file(
    path: Path, mtime_ns: int, size: int, reader: Reader[Any], on_bad_line: OnBadLine
) -> RecordSource[Any]:
    return _collect(str(path), path.stem, _ROWS[path.suffix](path), reader, on_bad_line)


def _collect(
    source: str, name: str, rows: Iterator[_Row], reader: Reader[T], on_bad_line: OnBadLine
) -> RecordSource[T]:
    records: dict[str, T] = {}
    skipped: list[BadLine] = []
    for number, row in rows:
        try:
            if isinstance(row, str):
                raise UnusableError(row)
            task_id = f"{name}/{number}"
            records[task_id] = reader.read(row, task_id)
        except UnusableError as bad:
            if on_bad_line == "error":
                raise TaskError(
                    f"{source}, line {number}: {bad}; mend it or pass on_bad_line='skip'"
                ) from None
            skipped.append(BadLine(number, str(bad)))
    if not records:
        why = (
            f"all {len(skipped)} lines are bad, the first: {skipped[0].reason}" if skipped else "it is empty"
        )
        raise TaskError(f"{source} holds no task: {why}")
    places = {task_id: _split_of(reader.question(task)) for task_id, task in records.items()}
    splits = {split: tuple(i for i, place in places.items() if place == split) for split in SPLITS}
    return RecordSource(name, records, tuple(skipped), {**splits, "all": tuple(records)})


def _split_of(question: str) -> str:
    place = int.from_bytes(sha256(question.encode()).digest()[:4], "big") % 10
    return "test" if place == 0 else "dev" if place == 1 else "train"


# ---- rows: a number from 1 and a record, or the reason why there is none -------------------------------

_Row = tuple[int, Mapping[str, Any] | str]


def json_rows(path: Path) -> Iterator[_Row]:
    """The records of a JSON-lines file. Raises `TaskError` when it cannot be read."""
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


def _array_rows(path: Path) -> Iterator[_Row]:
    """The items of the one array in a JSON file, counted from 1."""
    try:
        items = msgspec.json.decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except OSError as error:
        raise TaskError(f"cannot read the task file {path}: {error.strerror}") from error
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise TaskError(f"cannot read the task file {path}: not valid JSON ({error})") from error
    if not isinstance(items, list):
        raise TaskError(f"cannot read the task file {path}: write one array of objects, or name it .jsonl")
    for number, item in enumerate(items, 1):
        yield number, item if isinstance(item, dict) else f"a JSON {type(item).__name__}, not an object"


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


_ROWS = {".jsonl": json_rows, ".json": _array_rows, ".parquet": _parquet_rows}
