"""How requests join: what of their prefixes is known, who waits for whom, in which batches the rest is computed.

Forks of one state and the rollouts of one prompt share a prefix. The first to come computes it and the others copy its
row, so that it is computed once however many arrive together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trace_gym.engine import IntArray, Request
from trace_gym.engines.kv import KeptRows, Rows

__all__ = ["Job", "batches", "place"]

PADDING = 64  # tokens of padding that cost less than a forward pass of their own
WORTH_WAITING = 16  # tokens: who would share that many more with another newcomer waits until it is computed


@dataclass(slots=True, eq=False)
class Job:
    """A request, and what has been sampled for it."""

    id: int
    request: Request
    limit: int  # tokens to sample at most: `max_tokens`, or what the context leaves
    uniforms: npt.NDArray[np.float64]  # [limit] one for each token
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    cached: int = 0  # prefix tokens taken from the cache
    processed: int = 0  # prefix tokens to compute

    @property
    def longest(self) -> int:
        """Tokens of the sequence when it ends, at most."""
        return len(self.request.tokens) + self.limit


def place(jobs: Sequence[Job], first: int, rows: Rows, kept: KeptRows) -> tuple[list[Job], list[Job]]:
    """Give the jobs the rows from `first` on (all before it are in use), filled with what is known of their prefixes.

    Returns the jobs in the order of their rows, which is by the number of tokens to compute, and the jobs that wait.
    The first list is not empty where `jobs` is not.
    """
    plans = [(job, *_donor(job.request.tokens, first, rows, kept)) for job in jobs]
    rows.reserve(first + len(jobs), max(len(job.request.tokens) for job in jobs) + 1)
    placed: list[Job] = []
    later: list[Job] = []
    contained: set[int] = set()
    for job, source, donor, common in sorted(plans, key=lambda plan: len(plan[0].request.tokens) - plan[3]):
        prefix, row = job.request.tokens, first + len(placed)
        if rows.longest(prefix, first, row)[1] - common >= WORTH_WAITING:
            later.append(job)
            continue
        rows.take(row, source, donor, common)
        rows.tokens[row, : len(prefix)] = prefix
        job.cached, job.processed = common, len(prefix) - common
        placed.append(job)
        if source is kept:
            kept.touch(donor)
            if common == kept.filled[donor]:
                contained.add(donor)
    for donor in contained:  # all of it is now in a row that will be kept in its turn
        kept.drop(donor)
    return placed, later


def _donor(prefix: IntArray, active: int, rows: Rows, kept: KeptRows) -> tuple[Rows, int, int]:
    """Which row of which store shares most of the prefix, and how much; its last token must be computed in any case."""
    running = rows.longest(prefix[:-1], 0, active)
    resting = kept.longest(prefix[:-1], 0, kept.max_rows)
    return (rows, *running) if running[1] >= resting[1] else (kept, *resting)


def batches(first: int, jobs: Sequence[Job], max_tokens: int) -> Iterator[tuple[int, Sequence[Job]]]:
    """Cut placed jobs into (first row, jobs) with little padding and, unless a job is alone, at most `max_tokens`."""
    start = 0
    for stop in range(1, len(jobs) + 1):
        with_next = [job.processed for job in jobs[start : stop + 1]]
        padded, real = with_next[-1] * len(with_next), sum(with_next)
        if stop == len(jobs) or padded > max_tokens or padded - real > PADDING + real // 4:
            yield first + start, jobs[start:stop]
            start = stop
