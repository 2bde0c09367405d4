"""Choices that depend on a key alone: what built-in tasks are made of.

Invariant: the same key gives the same choices in every release of numpy and on every machine, for only the raw words of
PCG64 are used (a stream that numpy keeps) and only stable hashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

__all__ = ["Draw", "split_of"]

_T = TypeVar("_T")


class Draw:
    """A stream of choices keyed by the SHA-256 of `key`."""

    def __init__(self, key: str) -> None:
        self._bits = np.random.PCG64(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big"))

    def below(self, n: int) -> int:
        return int(self._bits.random_raw()) % n

    def one(self, choices: Sequence[_T]) -> _T:
        return choices[self.below(len(choices))]

    def some(self, choices: Sequence[_T], count: int) -> list[_T]:
        """`count` different ones, in random order."""
        left = list(choices)
        return [left.pop(self.below(len(left))) for _ in range(count)]


def split_of(text: str) -> str:
    """The split that a stable hash places `text` in: six tenths train, two dev, two test."""
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 10
    return "train" if place < 6 else "dev" if place < 8 else "test"
