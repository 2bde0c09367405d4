"""Milliseconds to share out a step's rollouts.

python -m trace_gym.benchmarks.allocate
"""

import time
from collections.abc import Callable

import numpy as np

from trace_gym.algorithms.allocate import allocate_prefixes, allocate_roots, sample_roots

REPEATS = 5


def milliseconds(call: Callable[[], object]) -> float:
    """The best of a few."""
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


def main() -> None:
    rng = np.random.default_rng(0)
    print(f"prompts   budget   roots   roots, 5 members   sampled   (ms, best of {REPEATS})")
    for prompts, budget in ((256, 512), (1_000, 1_024), (100_000, 8_192), (1_000_000, 8_192)):
        members = rng.beta(0.5, 0.5, (5, prompts))
        cells = (
            milliseconds(lambda v=members[0], b=budget: allocate_roots(v, b, rng=rng)),  # type: ignore[misc]
            milliseconds(lambda v=members, b=budget: allocate_roots(v, b, rng=rng)),  # type: ignore[misc]
            milliseconds(lambda v=members[0], b=budget: sample_roots(v, b, group=8, rng=rng)),  # type: ignore[misc]
        )
        print(f"{prompts:7d}  {budget:7d} {cells[0]:7.2f} {cells[1]:18.2f} {cells[2]:9.2f}")
    print("\nprefixes   budget  milliseconds")
    for prefixes, budget in ((20, 16), (200, 64), (10_000, 8_192)):
        flips = rng.random(prefixes)
        took = milliseconds(lambda f=flips, b=budget: allocate_prefixes(f, b, rng=rng))  # type: ignore[misc]
        print(f"{prefixes:8d}  {budget:7d}  {took:12.2f}")


if __name__ == "__main__":
    main()
