"""Messages to token deltas. `ChatRenderer` (in chat.py) is the only place that knows chat templates.

Invariant: history is append-only. A prompt is rendered once; each later message is rendered alone and its tokens are
appended after the tokens the policy sampled. Nothing is ever re-rendered or re-tokenised, so what is trained on is what
the model saw, whatever a template would do to earlier turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from trace_gym.chat import ChatRenderer
from trace_gym.engine import IntArray

__all__ = ["ChatRenderer", "PlainRenderer", "Renderer"]


class Renderer(Protocol):
    """How observations and actions become tokens and back."""

    @property
    def stop(self) -> tuple[int, ...]:
        """Token ids that end a turn; the first is the chat template's own."""

    def prompt(self, observation: str, *, system: str = "", tools: Sequence[dict[str, Any]] = ()) -> IntArray:
        """Token ids of the conversation's start, up to where the policy begins to write."""

    def delta(self, observation: str, *, role: str, closed: bool) -> IntArray:
        """Token ids between an action's last sampled token and the policy's next turn.

        `closed` says whether the action ended with a stop token; otherwise the delta begins by closing the turn.
        """

    def action(self, tokens: IntArray) -> str:
        """The text of sampled tokens, without the stop token."""


@dataclass(frozen=True, slots=True)
class PlainRenderer:
    """UTF-8 bytes as tokens and three control tokens: for tests and examples that need no model."""

    END: ClassVar[int] = 256
    USER: ClassVar[int] = 257
    AGENT: ClassVar[int] = 258
    vocabulary: ClassVar[int] = 259
    stop: tuple[int, ...] = (256,)

    def prompt(self, observation: str, *, system: str = "", tools: Sequence[dict[str, Any]] = ()) -> IntArray:
        text = f"{system}\n{observation}" if system else observation
        return np.array([self.USER, *text.encode(), self.END, self.AGENT], dtype=np.int32)

    def delta(self, observation: str, *, role: str, closed: bool) -> IntArray:
        ending = [] if closed else [self.END]
        return np.array([*ending, self.USER, *observation.encode(), self.END, self.AGENT], dtype=np.int32)

    def action(self, tokens: IntArray) -> str:
        return tokens[tokens < 256].astype(np.uint8).tobytes().decode("utf-8", "replace")

    def encode(self, action: str) -> list[int]:
        """The tokens of a whole turn, stop token included (what a scripted policy returns)."""
        return [*action.encode(), self.END]
