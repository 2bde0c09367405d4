"""The next step's trees, grown in a thread of their own while the policy learns from this step's.

The thread has a ledger of its own, which joins the run's when the trees are taken, so that a step's row never counts what the
step after it spends. Invariant: at most one step is grown ahead, so its turns were sampled at most one version ago.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from trace_gym.algorithm import StepContext
from trace_gym.ledger import Ledger
from trace_gym.workers import Done, Workers

__all__ = ["Ahead", "Progress"]

CLOSE_S = 10.0  # how long `close` waits for the thread; it ends with the process in any case
Progress = Callable[[StepContext], None]


class _ClosedError(Exception):
    """The run is over before the trees are."""


class Ahead:
    """`start` growing, `wait` until it has ended, `take` the trees. Engine and environment are the thread's meanwhile."""

    def __init__(self) -> None:
        self._workers: Workers[StepContext] | None = None
        self._done: Done[StepContext] | None = None
        self._ledger = Ledger()
        self._closed = False

    def start(self, grow: Callable[[Ledger, Progress], StepContext]) -> None:
        """Call `grow(ledger, progress)` in the thread."""
        assert self._done is None and not self._running, "one step ahead is enough"
        self._workers = self._workers or Workers(1)
        self._ledger = Ledger()
        self._workers.put(0, partial(grow, self._ledger, self._progress))

    def wait(self, timeout_s: float = float("inf")) -> None:
        """Until nothing grows, `timeout_s` at most."""
        deadline = time.monotonic() + timeout_s
        while self._running and time.monotonic() < deadline:
            assert self._workers is not None
            for done in self._workers.take(0.1):
                self._done = done

    def take(self, ledger: Ledger) -> StepContext | None:
        """The step grown ahead, with what it cost added to `ledger`; None where there is none. Raises what growing raised."""
        self.wait()
        done, self._done = self._done, None
        if done is None:
            return None
        if done.error is not None:
            raise done.error
        ledger.merge(self._ledger)
        return done.result

    def close(self) -> None:
        """Give up what is growing."""
        self._closed = True
        self.wait(CLOSE_S)
        if self._workers is not None:
            self._workers.close()

    @property
    def _running(self) -> bool:
        return self._workers is not None and len(self._workers) > 0

    def _progress(self, ctx: StepContext) -> None:
        if self._closed:
            raise _ClosedError
