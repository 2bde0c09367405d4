"""Text from anywhere as lines on a screen.

Invariant: each line of a block starts with the block's label, so what a model or a tool wrote can pass neither for the
program's own words nor for another speaker's; and nothing in it can steer the terminal.
"""

from __future__ import annotations

from rich.text import Text

from trace_gym.observer import printable

__all__ = ["block", "on_one_line"]


def block(label: str, text: str, *, width: int = 0) -> str:
    """`label | line` for every line of `text`; the label is padded to `width`."""
    head = f"{printable(label):<{width}} |"
    return "\n".join(f"{head} {line}".rstrip() for line in _safe(text).split("\n"))


def on_one_line(text: str, cells: int) -> str:
    """`text` with its white space collapsed, cut to `cells` columns of a terminal."""
    line = Text(" ".join(_safe(text).split()))
    line.truncate(cells, overflow="ellipsis")
    return line.plain


def _safe(text: str) -> str:
    return printable(text.replace("\r\n", "\n").expandtabs(4))
