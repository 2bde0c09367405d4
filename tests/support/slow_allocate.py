"""Allocation by enumeration and by dynamic programme: nothing clever, nothing shared with what it judges."""

import itertools
import math
from collections.abc import Sequence


def mixed_chance(v: float, m: int) -> float:
    """Chance that m independent rollouts with success v show both outcomes, by enumerating the number of successes."""
    return math.fsum(math.comb(m, k) * v**k * (1 - v) ** (m - k) for k in range(1, m))


def mean_mixed_chance(members: Sequence[float], m: int) -> float:
    return math.fsum(mixed_chance(v, m) for v in members) / len(members)


def flip_chance(f: float, k: int) -> float:
    """Chance of at least one flip in k continuations, summed over which is the first."""
    return math.fsum(f * (1 - f) ** j for j in range(k))


def best_roots(columns: Sequence[Sequence[float]], budget: int, cap: int) -> float:
    """The largest sum of `mixed_chance` with counts in 0..cap that sum to at most `budget`; one column per prompt."""
    best = [0.0] * (budget + 1)
    for column in columns:
        gain = [mean_mixed_chance(column, m) for m in range(cap + 1)]
        best = [max(best[b - m] + gain[m] for m in range(min(cap, b) + 1)) for b in range(budget + 1)]
    return best[budget]


def best_prefixes(flips: Sequence[float], budget: int) -> float:
    """The largest sum of `flip_chance` over all ways to split the budget."""
    splits = (k for k in itertools.product(range(budget + 1), repeat=len(flips)) if sum(k) == budget)
    return max(math.fsum(flip_chance(f, n) for f, n in zip(flips, k, strict=True)) for k in splits)
