"""Whoever watches a run: the training loop reports to an `Observer` and never asks it anything.

Invariant: an observer changes nothing it is shown, so a run is the same whoever watches. Text that reaches a screen
passes `printable` first, for task ids, reasons and tool output may hold a model's or a stranger's words.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Protocol

from trace_gym.algorithm import StepContext
from trace_gym.ledger import Ledger

__all__ = ["Observer", "Silent", "printable"]


class Observer(Protocol):
    """See the module. Metric values are plain numbers; rates and shares lie in 0..1."""

    def progress(self, ctx: StepContext, ledger: Ledger) -> None:
        """A step's trees have grown. Called many times a second: implementations throttle themselves."""

    def step(self, metrics: Mapping[str, float]) -> None:
        """A step is over; `metrics` is its row."""

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """An evaluation is over; `metrics` is its row (`step`, `eval_success`, …)."""

    def note(self, text: str) -> None:
        """Something a person should read once."""


class Silent:
    """Watches and says nothing."""

    def progress(self, ctx: StepContext, ledger: Ledger) -> None: ...

    def step(self, metrics: Mapping[str, float]) -> None: ...

    def evaluated(self, metrics: Mapping[str, float]) -> None: ...

    def note(self, text: str) -> None: ...


def printable(text: str) -> str:
    """`text` with '�' for what could steer a terminal: control, format and surrogate characters; newlines stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )
