"""Runs a suite: what is not finished yet, on all cores, in an order that leaves whole seeds behind when it is interrupted.

    out/suite.json   out/policies/…   out/tuning/…   out/cells/ENVIRONMENT/ALGORITHM/seed-S-DIGEST/   out/results.parquet

Invariants: a finished cell is never run again and one that is not starts anew (or from its newest checkpoint); a cell that
fails is recorded with its reason and stops nobody but those that need what it makes; one runner at a time writes to a folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any, Protocol

import numpy as np

from trace_gym.benchmarks.expansion import Cell, expand
from trace_gym.benchmarks.pool import Lost, Pool
from trace_gym.benchmarks.records import area_of, read_record, write_table
from trace_gym.benchmarks.suite import Suite
from trace_gym.benchmarks.worker import RESULT, write_result
from trace_gym.errors import ConfigError

__all__ = ["Done", "Progress", "Watcher", "run_suite"]

POLL_S = 0.5
TABLE_EVERY_S = 60.0  # a runner that is killed leaves a table at most this old
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a suite is."""

    done: int
    failed: int
    total: int
    left_s: float
    running: Sequence[tuple[Cell, float]]


@dataclass(frozen=True, slots=True)
class Done:
    """The records of the cells that have ended, and how many cells are left."""

    records: list[Record]
    left: int


class Watcher(Protocol):
    """Who is told about a suite under way."""

    def progress(self, now: Progress) -> None:
        """Called about twice a second."""

    def ended(self, cell: Cell, record: Record, now: Progress) -> None:
        """A cell has ended, well or not."""

    def note(self, text: str) -> None:
        """Something to read once."""


@dataclass(slots=True)
class _State:
    """What is known of the suite's cells."""

    suite: Suite
    out: Path
    workers: int
    records: dict[str, Record] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    _tuned: bool = False  # something, since the cells were last expanded

    def look(self) -> None:
        """Read what is new on the disk; where tuning has come further, cells that waited for it are settled."""
        while True:
            if not self.cells or self._tuned:
                self._tuned, self.cells = False, expand(self.suite, self._areas())
            keys = [cell.key for cell in self.cells if not cell.waits and cell.key not in self.records]
            for key in keys:
                if (self.out / key / RESULT).exists():
                    self.take(read_record(self.out / key))
            if not self._tuned:
                return

    def take(self, record: Record) -> None:
        """A cell has a result."""
        self.records[record["key"]] = record
        self._tuned |= record["kind"] == "tune"

    def _areas(self) -> dict[str, float]:
        """Mean success over its budget of every tuning cell that has ended."""
        tuned = {k: r for k, r in self.records.items() if r["kind"] == "tune"}
        return {key: area_of(record) for key, record in tuned.items()}

    def tell(self) -> list[Record]:
        """Write the table of all that have ended; returns their records."""
        records = [self.records[c.key] for c in self.cells if c.key in self.records]
        write_table(self.out, records)
        return records

    def next(self, running: Sequence[str]) -> Cell | None:
        """The first cell that can start now."""
        for cell in self.cells:
            if cell.waits or cell.key in self.records or cell.key in running:
                continue
            if not cell.start or self.records.get(cell.start, {}).get("status") == "done":
                return cell
        return None

    def doomed(self) -> list[tuple[Cell, str]]:
        """Cells that cannot be run any more, with the reason."""
        found = []
        for cell in self.cells:
            if cell.waits or cell.key in self.records:
                continue
            if cell.refused:
                found.append((cell, cell.refused))
            elif self.records.get(cell.start, {}).get("status") == "failed":
                found.append((cell, f"its policy could not be made: {self.records[cell.start]['reason']}"))
        return found

    def progress(self, running: Sequence[tuple[Cell, float]]) -> Progress:
        ended = [c for c in self.cells if c.key in self.records]
        failed = sum(self.records[c.key]["status"] == "failed" for c in ended)
        return Progress(len(ended), failed, len(self.cells), self._left_s(running), running)

    def _left_s(self, running: Sequence[tuple[Cell, float]]) -> float:
        """By what cells of each kind and environment have taken so far, else by what the suite expects."""
        taken: dict[tuple[str, str], list[float]] = {}
        for cell in self.cells:
            record = self.records.get(cell.key)
            if record is not None and record["status"] == "done" and cell.seconds > 0:
                taken.setdefault((cell.kind, cell.environment), []).append(record["seconds"] / cell.seconds)
        over = {key: float(np.mean(ratios)) for key, ratios in taken.items()}
        usual = float(np.mean(list(over.values()))) if over else 1.0
        elapsed = {cell.key: seconds for cell, seconds in running}
        left = sum(
            max(
                cell.seconds * over.get((cell.kind, cell.environment), usual) - elapsed.get(cell.key, 0.0),
                0.0,
            )
            for cell in self.cells
            if cell.waits or cell.key not in self.records
        )
        return left / self.workers


def run_suite(suite: Suite, out: Path, *, workers: int, watcher: Watcher, retry_failed: bool = False) -> Done:
    """Run what is missing and write the table. The first Ctrl-C lets running cells end,
    a second one stops them. Raises `ConfigError` where another runner uses the folder."""
    state = _State(suite, out, workers)
    with _locked(out) as lock:
        _keep_suite(suite, out)
        state.look()
        if retry_failed:
            _forget_failed(state)
        try:
            with (
                Pool(out, workers, suite.deadline_s, keep_open=(lock.fileno(),)) as pool,
                _drain(watcher) as stop,
            ):
                _work(state, pool, watcher, stop)
        finally:
            records = state.tell()
    return Done(records, len(state.cells) - len(records))


def _work(state: _State, pool: Pool, watcher: Watcher, stop: list[int]) -> None:
    told = time.monotonic()
    while True:
        for cell, reason in state.doomed():
            _record_lost(state, cell, reason, watcher, pool)
        while not stop and pool.free and (ready := _next(state, pool)) is not None:
            _empty(state.out / ready.key)
            pool.start(ready)
        if not pool.running:
            return
        for ended in pool.wait(POLL_S):
            if isinstance(ended, Lost):
                _record_lost(state, ended.cell, ended.reason, watcher, pool)
                continue
            state.look()
            watcher.ended(ended, state.records[ended.key], state.progress(pool.running))
        watcher.progress(state.progress(pool.running))
        if time.monotonic() - told > TABLE_EVERY_S:
            told = time.monotonic()
            state.tell()


def _next(state: _State, pool: Pool) -> Cell | None:
    return state.next([cell.key for cell, _ in pool.running])


def _record_lost(state: _State, cell: Cell, reason: str, watcher: Watcher, pool: Pool) -> None:
    write_result(cell, state.out, {"status": "failed", "reason": reason, "seconds": 0.0, "cpu_seconds": 0.0})
    state.look()
    watcher.ended(cell, state.records[cell.key], state.progress(pool.running))


def _empty(folder: Path) -> None:
    """What an unfinished cell left, but for a run that can go on from a checkpoint."""
    if not (folder / "run" / "checkpoints").is_dir():
        shutil.rmtree(folder, ignore_errors=True)


def _forget_failed(state: _State) -> None:
    for key, record in list(state.records.items()):
        if record["status"] == "failed":
            (state.out / key / RESULT).unlink()
            del state.records[key]
    state.look()


def _keep_suite(suite: Suite, out: Path) -> None:
    """Say in the folder what runs there. Raises `ConfigError` for a folder of another suite."""
    path, fresh = out / "suite.json", out / ".suite.json"
    if path.exists():
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8"))).get("name")
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path} cannot be read ({error}); delete it to go on") from error
        if before != suite.name:
            raise ConfigError(f"{out} holds the suite {before!r}; name another folder with --out")
    fresh.write_text(json.dumps(suite.model_dump(mode="json"), indent=1), encoding="utf-8")
    fresh.rename(path)


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[IO[str]]:
    """Only one runner at a time, and none while a worker of a runner that was killed still lives."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make the folder {out}: {error.strerror}; name another with --out"
        ) from error
    with open(out / ".lock", "a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another runner is at work in {out}; wait for it, or name another folder"
            ) from None
        os.set_inheritable(lock.fileno(), True)
        yield lock


@contextlib.contextmanager
def _drain(watcher: Watcher) -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM is remembered in the list that is yielded; a second SIGINT interrupts at once."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        watcher.note("waiting for the cells that run; Ctrl-C again stops them, and they start anew next time")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
