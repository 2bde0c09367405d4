"""Text as gymnasium sees it: any string is an action, any string up to a limit is an observation.

Invariant: what leaves `clean_text` and `cut` can be encoded as UTF-8 everywhere; model text need not be.
"""

from __future__ import annotations

from typing import Any, NoReturn

from gymnasium import spaces
from gymnasium.vector.utils import create_shared_memory

from trace_gym.errors import ConfigError

__all__ = ["MAX_OBSERVATION_CHARS", "UnicodeText", "clean_text", "cut"]

MAX_OBSERVATION_CHARS = 8192


def clean_text(text: str) -> str:
    """`text` with lone surrogates replaced, so that it can be encoded everywhere."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def cut(observation: str) -> str:
    """`observation`, clean and at most `MAX_OBSERVATION_CHARS` long, with a note where it was longer."""
    observation = clean_text(observation)
    if len(observation) <= MAX_OBSERVATION_CHARS:
        return observation
    note = f"\n[cut: {len(observation)} characters in all]"
    return observation[: MAX_OBSERVATION_CHARS - len(note)] + note


class UnicodeText(spaces.Text):
    """Any string of at most `max_length` characters (gymnasium's `Text` admits a fixed alphabet only)."""

    def __init__(self, max_length: int = 2**20) -> None:
        super().__init__(max_length=max_length, min_length=0, charset=" ")

    def contains(self, x: object) -> bool:
        return isinstance(x, str) and len(x) <= self.max_length

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """A short random string: useless as an action, legal as any."""
        length = int(self.np_random.integers(0, min(32, self.max_length + 1)))
        return "".join(chr(c) for c in self.np_random.integers(32, 0x2FF, size=length))

    def __repr__(self) -> str:
        return f"UnicodeText({self.max_length})"


@create_shared_memory.register(UnicodeText)
def _refuse_shared_memory(space: UnicodeText, n: int = 1, ctx: Any = None) -> NoReturn:
    """Gymnasium reads text from shared memory once, at the start, and would show it for ever."""
    raise ConfigError("AsyncVectorEnv cannot share text observations: pass shared_memory=False")
