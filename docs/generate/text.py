"""Markdown out of plain text: tables, code, docstrings. Invariant: what goes in comes out as text, never as mark-up."""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Iterable, Sequence

__all__ = ["block", "cell", "code", "prose", "table", "takes"]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are Markdown; `code` and `cell` make them of text."""
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def code(text: str) -> str:
    """A code span, on one line. In a table too: mkdocs reads no | inside one as the end of a cell."""
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{ticks}{space}{text}{space}{ticks}".replace("\n", " ")


def cell(text: str) -> str:
    """Words with `code` in them, for a table cell."""
    return _escaped(" ".join(text.split()))


def takes(annotation: str, module: str) -> str:
    """An annotation as written in `module`, for a table cell; a list of words, under whatever name, is spelled out."""
    alias = getattr(sys.modules[module], annotation, None)
    words = typing.get_args(alias) if typing.get_origin(alias) is typing.Literal else ()
    if annotation.startswith("Literal["):
        words = tuple(re.findall(r"['\"]([^'\"]+)['\"]", annotation))
    return ", ".join(code(str(word)) for word in words) or code(annotation)


def block(text: str, language: str = "text") -> str:
    """A fenced block that its text cannot close."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def prose(docstring: str) -> str:
    """A docstring as Markdown: indented lines are code, the rest are words with `code` in them."""
    parts = []
    for paragraph in _paragraphs(inspect.cleandoc(docstring)):
        if paragraph.startswith("    "):
            parts.append(block(inspect.cleandoc(paragraph)))
        else:
            parts.append(_escaped(paragraph))
    return "\n\n".join(parts)


def _paragraphs(text: str) -> list[str]:
    """Blank-line separated, but indented ones that follow each other are one."""
    merged: list[str] = []
    for part in re.split(r"\n\n+", text):
        if merged and part.startswith("    ") and merged[-1].startswith("    "):
            merged[-1] += "\n\n" + part
        else:
            merged.append(part)
    return merged


def _escaped(text: str) -> str:
    """Text outside `code spans` with everything that Markdown or HTML would read escaped."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(
        part if i % 2 else re.sub(r"([\\*_\[\]<>#|])", r"\\\1", part) for i, part in enumerate(parts)
    )
