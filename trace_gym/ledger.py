"""What was spent, and what may be.

One `Ledger` bills every algorithm in the same units. A `Budget` caps a step or a run. Invariants: costs only grow;
spent + reserved never exceeds the budget; what was reserved is either spent or given back.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace

from trace_gym.errors import BudgetError

__all__ = ["CONTINUATION_UNITS", "ROOT_UNITS", "Budget", "Cost", "Ledger", "Purse"]

ROOT_UNITS = 1.0  # a rollout from the prompt
CONTINUATION_UNITS = (
    0.5  # a rollout from a prefix inside one: half a rollout on average (TRACE, arXiv 2606.11119)
)


@dataclass(frozen=True, slots=True)
class Cost:
    """Counts of one node, rollout, step or run. Tokens are the policy's."""

    policy_tokens: int = 0  # sampled
    prompt_tokens: int = 0  # prefix tokens the engine computed
    cached_tokens: int = 0  # prefix tokens it took from its cache
    env_steps: int = 0
    restores: int = 0
    rollout_units: float = 0.0

    def __add__(self, other: Cost) -> Cost:  # written out: it runs several times for every turn
        return Cost(
            self.policy_tokens + other.policy_tokens,
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.env_steps + other.env_steps,
            self.restores + other.restores,
            self.rollout_units + other.rollout_units,
        )

    def __sub__(self, other: Cost) -> Cost:
        return self + Cost(*(-getattr(other, f.name) for f in fields(Cost)))


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits on what may be spent; None is no limit."""

    policy_tokens: int | None = None
    rollout_units: float | None = None
    env_steps: int | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            limit = getattr(self, f.name)
            if limit is not None and not limit >= 0:
                raise BudgetError(f"{f.name} must be 0 or more, not {limit}")

    def minus(self, spent: Cost) -> Budget:
        """What is left after `spent`, at least 0."""
        left = {
            f.name: max(0, limit - getattr(spent, f.name))
            for f in fields(self)
            if (limit := getattr(self, f.name)) is not None
        }
        return replace(self, **left)

    def covers(self, cost: Cost) -> bool:
        """Whether `cost` fits within every limit."""
        return all(
            (limit := getattr(self, f.name)) is None or getattr(cost, f.name) <= limit + 1e-9
            for f in fields(self)
        )


@dataclass(slots=True)
class Ledger:
    """The running total of a run: counts, and wall-clock seconds by phase (threads may add up to more than the clock)."""

    total: Cost = Cost()
    seconds: dict[str, float] = field(default_factory=dict)
    _inside: float = field(default=0.0, repr=False, compare=False)  # seconds of blocks within the present one

    def add(self, cost: Cost) -> None:
        self.total = self.total + cost

    def add_seconds(self, phase: str, seconds: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def merge(self, other: Ledger) -> None:
        """Add what another thread's ledger holds."""
        self.add(other.total)
        for phase, seconds in other.seconds.items():
            self.add_seconds(phase, seconds)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the block's wall-clock seconds to `phase`, without those of timed blocks inside it."""
        start, outside, self._inside = time.perf_counter(), self._inside, 0.0
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self.add_seconds(phase, seconds - self._inside)
            self._inside = outside + seconds


@dataclass(slots=True)
class Purse:
    """A budget being spent: reserve the worst case before starting, settle with the true cost afterwards."""

    budget: Budget
    spent: Cost = Cost()
    reserved: Cost = Cost()

    def reserve(self, worst: Cost) -> bool:
        """Set `worst` aside if the budget still covers it."""
        if not self.budget.covers(self.spent + self.reserved + worst):
            return False
        self.reserved = self.reserved + worst
        return True

    def settle(self, worst: Cost, actual: Cost) -> None:
        """Spend `actual` of a reservation of `worst` and give the rest back."""
        self.reserved = self.reserved - worst
        self.spent = self.spent + actual

    @property
    def left(self) -> Budget:
        """What is neither spent nor reserved."""
        return self.budget.minus(self.spent + self.reserved)
