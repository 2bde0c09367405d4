"""What a mathematics task is, whatever source it came from.

A problem carries its own solution as symbolic steps: each is one tool call whose text may mention `{x}`, the
running value. A demonstrator can therefore follow a chain through with a wrong value, and a snapshot that
holds the problem needs no source to be judged. Invariant: the right readings, one after the other, lead to
`answer`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

__all__ = ["Problem", "Source", "Step", "ToolName", "ToolUse"]

ToolName = Literal["calculator", "solve"]
_WHOLE = re.compile(r"[0-9]+")


class Step(msgspec.Struct, frozen=True, array_like=True):
    """One tool call on the way to the answer."""

    tool: ToolName
    right: str  # the expression or equation; `{x}` stands for the running value
    result: str  # the running value that the right readings so far lead to
    slip: str | None = None  # the tempting wrong reading, where the clause has one

    def reading(self, value: str, *, slip: bool = False) -> str:
        """The call's text with `value` as the running value."""
        text = self.slip if slip and self.slip is not None else self.right
        return text.replace("{x}", value if _WHOLE.fullmatch(value) else f"({value})")


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A question, its gold answer, and the steps that lead to it (none where the source gives none)."""

    id: str
    question: str
    answer: str
    start: str = ""  # the running value before the first step; empty where the first step makes it
    steps: tuple[Step, ...] = ()

    def right_reading(self, index: int) -> str:
        """The text of step `index` after every earlier step was right."""
        return self.steps[index].reading(self.steps[index - 1].result if index else self.start)


class ToolUse(msgspec.Struct, frozen=True, array_like=True):
    """A tool call that the agent made and what came back."""

    tool: ToolName
    text: str  # the expression or equation
    result: str  # or the error's message
    failed: bool = False

    @property
    def value(self) -> str:
        """The number that came back (the first where there are two); empty where none did."""
        if self.failed or self.result == "no solution" or self.result.startswith("every "):
            return ""
        return self.result.partition(" or ")[0].rpartition(" = ")[2]


class Source(Protocol):
    """Where problems come from."""

    def tasks(self, split: str) -> Sequence[str]:
        """The ids of a split, in a fixed order. Raises `TaskError` for an unknown split."""

    def problem(self, task_id: str) -> Problem:
        """Raises `TaskError` for an unknown id."""
