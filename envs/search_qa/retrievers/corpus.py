"""A corpus in a JSONL file: a document a line.

    {"id": "7", "title": "Ada Lovelace", "text": "…"}        {"id": "7", "contents": "\\"Ada Lovelace\\"\\n…"}

The second form is Search-R1's. A missing id is the line's number. A bad line is an error that names it: a corpus with holes
would be another corpus.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from trace_gym.envs.search_qa.retriever import Document
from trace_gym.envs.search_qa.retrievers.wire import WireError, title_and_text
from trace_gym.envs.search_qa.world import WorldSource
from trace_gym.errors import TaskError

__all__ = ["builtin_documents", "read_corpus"]

MAX_LINE_BYTES = 16 << 20


def read_corpus(path: str | Path) -> list[Document]:
    """The documents of the file, in its order. Raises `TaskError`, naming the line, where it cannot be used."""
    documents: list[Document] = []
    places: dict[str, int] = {}
    for number, line in _lines(Path(path)):
        try:
            document = _document(msgspec.json.decode(line), number)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise TaskError(f"{path}, line {number}: not valid JSON ({error})") from error
        except WireError as error:
            raise TaskError(f'{path}, line {number}: {error}; write {{"id", "title", "text"}}') from error
        if document.id in places:
            raise TaskError(
                f"{path}, line {number}: the id {document.id[:80]!r} stands in line {places[document.id]} too"
            )
        places[document.id] = number
        documents.append(document)
    if not documents:
        raise TaskError(f"{path} holds no document")
    return documents


def builtin_documents() -> Sequence[Document]:
    """The documents of the built-in questions."""
    return WorldSource().documents()


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise TaskError(f"{path}, line {number}: longer than {MAX_LINE_BYTES:,} bytes")
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield number, line
    except OSError as error:
        raise TaskError(f"cannot read the corpus {path}: {error.strerror}; check the path") from error


def _document(record: Any, number: int) -> Document:
    if not isinstance(record, dict):
        raise WireError("it is not an object")
    title, text = title_and_text(record)
    found = record.get("id", number)
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise WireError("the id is neither text nor a whole number")
    return Document(str(found), title, text)
