"""A small pool of daemon threads for environment turns, with a deadline per job.

Python cannot stop a thread, so one that overruns is abandoned together with what it holds and a fresh one takes its
place. Daemon threads do not keep the process alive; `concurrent.futures` would wait for them at exit.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Done", "Workers"]

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Job(Generic[T]):
    key: int
    work: Callable[[], T]
    started: float | None = None
    abandoned: bool = False


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """A finished job: its result, or the exception it raised."""

    key: int
    result: T | None
    error: BaseException | None
    seconds: float


class Workers(Generic[T]):
    """`put(key, work)` starts a job; `take` returns what has finished; `overdue` abandons what ran too long."""

    def __init__(self, threads: int) -> None:
        self._jobs: queue.SimpleQueue[_Job[T] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[_Job[T], Done[T]]] = queue.SimpleQueue()
        self._open: dict[int, _Job[T]] = {}
        self._threads = 0
        for _ in range(threads):
            self._start_thread()

    def _start_thread(self) -> None:
        self._threads += 1
        threading.Thread(target=self._run, name="trace_gym-worker", daemon=True).start()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.started = time.monotonic()
            start = time.perf_counter()
            try:
                done = Done(job.key, job.work(), None, time.perf_counter() - start)
            except BaseException as error:  # SystemExit too: the loop decides what the leaf becomes
                done = Done(job.key, None, error, time.perf_counter() - start)
            self._done.put((job, done))
            if job.abandoned:
                return  # a replacement thread is already working

    def put(self, key: int, work: Callable[[], T]) -> None:
        """Start `work`; `key` must not be in use."""
        assert key not in self._open
        job = self._open[key] = _Job(key, work)
        self._jobs.put(job)

    def __len__(self) -> int:
        """Jobs that have not been taken yet."""
        return len(self._open)

    def take(self, timeout_s: float) -> list[Done[T]]:
        """All finished jobs; waits at most `timeout_s` for the first."""
        taken: list[Done[T]] = []
        try:
            job, done = self._done.get(timeout=timeout_s) if timeout_s > 0 else self._done.get_nowait()
            while True:
                if not job.abandoned:
                    del self._open[job.key]
                    taken.append(done)
                job, done = self._done.get_nowait()
        except queue.Empty:
            return taken

    def overdue(self, deadline_s: float) -> list[int]:
        """Keys of jobs that have run longer than `deadline_s`; they are abandoned and their threads replaced."""
        now = time.monotonic()
        late = [
            k for k, job in self._open.items() if job.started is not None and now - job.started > deadline_s
        ]
        for key in late:
            self._open.pop(key).abandoned = True
            self._start_thread()
        return late

    def close(self) -> None:
        """Let idle threads end. Does not wait."""
        for _ in range(self._threads):
            self._jobs.put(None)
