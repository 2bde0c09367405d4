"""Worker processes that run cells one at a time each.

Invariant: a cell that was started either leaves a result or is reported as lost, with the reason: its process died, or it took
longer than its deadline and was killed. Workers are processes of their own (`python -m trace_gym.benchmarks.worker`) with one
numeric thread, in sessions of their own, so that Ctrl-C reaches the runner alone.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from trace_gym.benchmarks.expansion import Cell

__all__ = ["Lost", "Pool"]

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
WORKER = ("-m", "trace_gym.benchmarks.worker")
LAST_WORDS = 300  # characters of a dead worker's log that are told


@dataclass(frozen=True, slots=True)
class Lost:
    """A cell that ended without a result of its own."""

    cell: Cell
    reason: str


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    cell: Cell | None = None
    since: float = 0.0
    heard: bytes = b""

    @property
    def stdin(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin


@dataclass(slots=True)
class Pool:
    """`size` workers, started when there is work. A context manager: leaving it kills whatever still runs."""

    out: Path
    size: int
    deadline_s: float
    keep_open: tuple[int, ...] = ()  # file descriptors that workers hold too
    _workers: list[_Worker] = field(default_factory=list)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
            worker.stdin.close()
            assert worker.process.stdout is not None
            worker.process.stdout.close()

    @property
    def running(self) -> list[tuple[Cell, float]]:
        """Cells under way, with the seconds they have taken."""
        now = time.monotonic()
        return [(w.cell, now - w.since) for w in self._workers if w.cell is not None]

    @property
    def free(self) -> int:
        """How many more cells can be started."""
        return self.size - len(self.running)

    def start(self, cell: Cell) -> None:
        """Give the cell to a worker that waits, or to a new one."""
        assert self.free > 0
        worker = next((w for w in self._workers if w.cell is None), None) or self._hire()
        worker.cell, worker.since = cell, time.monotonic()
        try:
            worker.stdin.write(json.dumps(cell.describe()).encode() + b"\n")
            worker.stdin.flush()
        except BrokenPipeError:
            pass  # it died while it waited: `wait` finds the cell lost

    def wait(self, seconds: float) -> list[Cell | Lost]:
        """The cells that ended, waiting up to `seconds` for one."""
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                assert worker.process.stdout is not None
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            ready = [key.data for key, _ in selector.select(seconds)] if self._workers else []
        ended: list[Cell | Lost] = [found for worker in ready for found in self._hear(worker)]
        for worker in [w for w in self._workers if w.cell and time.monotonic() - w.since > self.deadline_s]:
            worker.process.kill()
            ended += self._bury(worker, f"took longer than {self.deadline_s:g} s and was stopped")
        return ended

    def _hire(self) -> _Worker:
        process = subprocess.Popen(
            [sys.executable, *WORKER, str(self.out)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | dict.fromkeys(THREADS, "1"),
            start_new_session=True,
            pass_fds=self.keep_open,
        )
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        worker = _Worker(process)
        self._workers.append(worker)
        return worker

    def _hear(self, worker: _Worker) -> list[Cell | Lost]:
        assert worker.process.stdout is not None
        said = worker.process.stdout.read()
        if not said:  # the end of its output: it has died
            return self._bury(worker, "")
        worker.heard += said
        if worker.cell is None or worker.cell.key.encode() not in worker.heard.split(b"\n")[:-1]:
            return []
        cell, worker.cell, worker.heard = worker.cell, None, b""
        return [cell]

    def _bury(self, worker: _Worker, reason: str) -> list[Cell | Lost]:
        status = worker.process.wait()
        self._workers.remove(worker)
        assert worker.process.stdout is not None
        worker.process.stdout.close()
        worker.stdin.close()
        if worker.cell is None:
            return []
        return [Lost(worker.cell, reason or f"its process {_how(status)}{self._last_words(worker.cell)}")]

    def _last_words(self, cell: Cell) -> str:
        log = self.out / cell.key / "log.txt"
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        return f"; it last said: {lines[-1][:LAST_WORDS]}" if lines else ""


def _how(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
