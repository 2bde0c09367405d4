"""What a person sees of a training run: a live line on a terminal, a plain line per step anywhere else.

Invariant: text from elsewhere is shown as text; neither rich's markup nor a terminal's control codes in it have an
effect.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trace_gym.algorithm import StepContext
from trace_gym.ledger import Ledger
from trace_gym.observer import printable

__all__ = ["LiveDisplay"]

REFRESH_S = 0.2
BAR_CELLS = 24


@dataclass(slots=True)
class LiveDisplay:
    """An `Observer` for people, and a context manager; outside its block it prints lines even on a terminal."""

    console: Console = field(default_factory=Console)
    _live: Live | None = None
    _metrics: dict[str, float] = field(default_factory=dict)  # the last step's row
    _growing: str = ""  # how far the present step is
    _started: float = field(default_factory=time.monotonic)
    _last: float = 0.0  # when the live line was last drawn

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, get_renderable=self._render)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._growing = ""
            self._live.refresh()
            self._live.stop()
            self._live = None

    # ---- what the training loop tells -------------------------------------------------------------------------------

    def progress(self, ctx: StepContext, ledger: Ledger) -> None:
        if self._live is None or time.monotonic() - self._last < REFRESH_S:
            return
        grown = sum(len(tree) > 1 for tree in ctx.trees.values())
        tokens = f"{ledger.total.policy_tokens:,} tokens so far"
        self._growing = f"{grown} of {len(ctx.trees)} trees, {tokens}"
        self._draw()

    def step(self, metrics: Mapping[str, float]) -> None:
        self._metrics, self._growing = dict(metrics), ""
        if self._live is not None:
            self._draw()
        else:
            self._say("  ".join(f"{name} {value}" for name, value in self._cells().items()))

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        self._say(f"held-out success at step {_whole(metrics.get('step'))}: {_evaluation(metrics)}")

    def note(self, text: str) -> None:
        self._say(text)

    # ---- drawing ----------------------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        self.console.print(Text(printable(text)), soft_wrap=True)

    def _draw(self) -> None:
        assert self._live is not None
        self._last = time.monotonic()
        self._live.refresh()

    def _cells(self) -> dict[str, str]:
        """Column -> text of the last step."""
        m = self._metrics
        return {
            "step": _whole(m.get("step")),
            "success": _share(m.get("success")),
            "effective": _share(m.get("effective_ratio")),
            "format errors": _share(m.get("format_error_rate")),
            "loss": _number(m.get("loss")),
            "tokens/s": _whole(m.get("tokens_per_s")),
            "tokens": _whole(m.get("policy_tokens")),
            "budget": _percent(m.get("budget_used")),
            "left": self._time_left(),
        }

    def _time_left(self) -> str:
        used = self._metrics.get("budget_used", 0.0)
        if not 0.0 < used <= 1.0:
            return "-"
        seconds = round((time.monotonic() - self._started) * (1.0 - used) / used)
        minutes, seconds = divmod(seconds, 60)
        return (
            f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
            if minutes >= 60
            else f"{minutes}:{seconds:02d}"
        )

    def _render(self) -> Group:
        growing = Text(self._growing, style="dim")
        if not self._metrics:
            return Group(growing) if self._growing else Group()
        table = Table(box=None, pad_edge=False, header_style="dim")
        cells = self._cells()
        for name in cells:
            table.add_column(name, justify="right", no_wrap=True)
        table.add_row(*map(Text, cells.values()))
        bar = Table.grid(padding=(0, 1))
        used = min(self._metrics.get("budget_used", 0.0), 1.0)
        bar.add_row(ProgressBar(total=1.0, completed=used, width=BAR_CELLS), growing)
        return Group(table, bar)


def _evaluation(row: Mapping[str, float]) -> str:
    text = _share(row.get("eval_success"))
    if "eval_low" in row and "eval_high" in row:
        text += f" ({_share(row['eval_low'])} to {_share(row['eval_high'])})"
    if "eval_greedy_success" in row:
        text += f", greedy {_share(row['eval_greedy_success'])}"
    return text


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _whole(value: float | None) -> str:
    return f"{value:,.0f}" if value is not None and _known(value) else "-"


def _share(value: float | None) -> str:
    return f"{value:.3f}" if value is not None and _known(value) else "-"


def _number(value: float | None) -> str:
    return f"{value:.3g}" if value is not None and _known(value) else "-"


def _percent(value: float | None) -> str:
    return f"{value:.0%}" if value is not None and _known(value) else "-"
