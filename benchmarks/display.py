"""What a person sees of a suite under way: a bar with the time left on a terminal, a line per ended cell anywhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trace_gym.benchmarks.cells import curve
from trace_gym.benchmarks.expansion import Cell
from trace_gym.benchmarks.records import result_of
from trace_gym.benchmarks.runner import Progress
from trace_gym.observer import printable

__all__ = ["SuiteDisplay", "brief", "clock"]

BAR_CELLS = 30
REASON_CELLS = 160


@dataclass(slots=True)
class SuiteDisplay:
    """A `Watcher` for people, and a context manager."""

    console: Console = field(default_factory=Console)
    _live: Live | None = None
    _now: Progress | None = None
    _started: float = field(default_factory=time.monotonic)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, get_renderable=self._render)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def progress(self, now: Progress) -> None:
        self._now = now
        if self._live is not None:
            self._live.refresh()

    def ended(self, cell: Cell, record: dict[str, Any], now: Progress) -> None:
        self._now = now
        left = f"{clock(now.left_s)} left" if now.done < now.total else "that was the last"
        self.note(f"{now.done}/{now.total}  {cell.label}: {brief(record)}; {left}")

    def note(self, text: str) -> None:
        self.console.print(Text(printable(text)), soft_wrap=True)

    def _render(self) -> Group:
        now = self._now
        if now is None:
            return Group()
        bar = Table.grid(padding=(0, 1))
        failed = f", {now.failed} failed" if now.failed else ""
        words = f"{now.done} of {now.total} cells{failed}, {clock(now.left_s)} left"
        bar.add_row(ProgressBar(total=max(now.total, 1), completed=now.done, width=BAR_CELLS), Text(words))
        return Group(bar, *(Text(line, style="dim") for line in _running(now.running)))


def _running(running: Sequence[tuple[Cell, float]]) -> list[str]:
    return [printable(f"  {cell.label}, {clock(seconds)}") for cell, seconds in running]


def brief(record: dict[str, Any]) -> str:
    """What a cell came to, in a few words."""
    if record["status"] == "failed":
        reason = " ".join(record["reason"].split())
        return f"failed: {reason[:REASON_CELLS]}"
    took = f"{record['seconds']:.0f} s"
    if record["kind"] == "warmup":
        return f"policy made in {took}"
    tokens, success = curve(result_of(record))
    if not len(success):
        return f"done in {took}"
    start = (
        f"{success[0]:.3f} -> " if tokens[0] == 0 else "-> "
    )  # one algorithm measures the start for all of its seed
    return f"{start}{success[-1]:.3f} in {took}"


def clock(seconds: float) -> str:
    """`1:02:03`, or `2:03` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
