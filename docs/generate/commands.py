"""The commands' page: what `--help` prints, for every command."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from docs.generate.text import block
from trace_gym.cli import app

__all__ = ["commands", "page"]

HEAD = """# Commands

What `trace-gym COMMAND --help` prints. An error is a line on standard error and exit status 1; `--debug` shows its traceback.
Ctrl-C ends with status 130. `python -m trace_gym.cli` is `trace-gym`.
"""


def page() -> str:
    """The page."""
    parts = [HEAD]
    for name, text in commands():
        parts.append(f"{'#' * len(name.split())} {name}\n\n{block(text)}")
    return "\n\n".join(parts)


def commands() -> Iterator[tuple[str, str]]:
    """Name and help of every command, groups included, in the order of `--help`."""
    yield from _below(typer.main.get_command(app), "trace-gym")


def _below(command: Any, name: str) -> Iterator[tuple[str, str]]:
    if name != "trace-gym":
        context = command.context_class(command, info_name=name, terminal_width=100)
        yield name, command.get_help(context).strip()
    for word, inner in getattr(command, "commands", {}).items():
        yield from _below(inner, f"{name} {word}")
