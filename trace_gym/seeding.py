"""Random streams keyed by place, not by time.

`derive_seed(run seed, step, task, node, draw, …)` names a stream; whoever asks, in whatever order, gets the same one.
"""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["derive_seed", "keyed_rng"]

Part = int | str


def derive_seed(*parts: Part) -> int:
    """A 63-bit seed that depends on every part, on their types and on their order."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def keyed_rng(*parts: Part) -> np.random.Generator:
    """A generator seeded by `derive_seed(*parts)`."""
    return np.random.Generator(np.random.PCG64(derive_seed(*parts)))
