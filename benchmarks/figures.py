"""The pictures of a report, as SVG.

Colours are Okabe and Ito's, told apart by every kind of colour vision; in grey the line styles, markers and hatches tell them
apart. A panel holds the baseline and four more at most. The same numbers make the same bytes; labels are text, never formulas.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from trace_gym.benchmarks.cells import Floats
from trace_gym.benchmarks.comparison import Comparison, Run
from trace_gym.benchmarks.spending import DEEPEST
from trace_gym.benchmarks.statistics import profile, profile_bands
from trace_gym.observer import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "PARTS",
    "PHASES",
    "calibration",
    "curves",
    "effective",
    "profiles",
    "seconds_of",
    "spending",
    "wall_clock",
]

BASE = {"color": "#000000", "linestyle": "-", "marker": "o"}
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#0072B2", "linestyle": "--", "marker": "s"},
    {"color": "#D55E00", "linestyle": "-.", "marker": "^"},
    {"color": "#009E73", "linestyle": ":", "marker": "D"},
    {"color": "#CC79A7", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
)
BARS = ("#555555", "#56B4E9", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#FFFFFF", "#999999")
HATCHES = ("", "///", "...", "\\\\\\", "xx", "--", "", "++")
PER_PANEL = len(STYLES)
POINTS = 25  # of a mean curve
BINS = 8
PHASES = {  # what seconds_… columns are called in the picture; env_wait is the clock's, env is summed over threads
    "engine": "engine",
    "env_wait": "environment",
    "update": "update",
    "algorithm": "predictor, credit",
    "plan": "plan",
    "plant": "begin tasks",
    "load": "weights to engine",
    "log": "log, checkpoint",
}
PARTS = ["from prompts", *(f"after turn {n}" for n in range(1, DEEPEST)), f"after turn {DEEPEST} or later"]


def curves(found: Comparison) -> bytes:
    """Success against policy tokens: means over seeds; bands from the least to the greatest seed."""

    def draw(axis: Axes, runs: Sequence[Run], style: dict[str, Any], name: str) -> None:
        runs = [run for run in runs if len(run.tokens)]
        if not runs:
            return
        grid = np.linspace(max(r.tokens[0] for r in runs), min(r.tokens[-1] for r in runs), POINTS)
        values = np.array([np.interp(grid, run.tokens, run.success) for run in runs])
        _line(axis, grid, values, style, name, marks=_measured(grid, runs))

    return _by_world(found, draw, "success")


def _measured(grid: Floats, runs: Sequence[Run]) -> list[int]:
    """Places of the grid where success was measured: a mark says so. Of very many, and where runs differ, every sixth place."""
    times = {len(run.tokens) for run in runs}
    if len(times) > 1 or max(times) > POINTS // 2:
        return list(range(0, POINTS, 6))
    means = np.mean([run.tokens for run in runs], axis=0)
    return sorted({int(np.abs(grid - tokens).argmin()) for tokens in means})


def effective(found: Comparison) -> bytes:
    """Effective ratio against policy tokens, in bins of steps, weighted by the prompts paid for."""

    def draw(axis: Axes, runs: Sequence[Run], style: dict[str, Any], name: str) -> None:
        middles, means = _binned(runs, "effective_ratio", "prompts")
        axis.plot(middles, means, label=printable(name), markersize=4, **style)

    return _by_world(found, draw, "effective ratio")


def calibration(found: Comparison) -> bytes | None:
    """Brier score of predictions before they learned from a step; None where no algorithm predicts."""
    places = {"root": "of prompts", "prefix": "of prefixes", "expanded": "of continued prefixes"}
    worlds = [w for w in found.environments if any(_predicts(found, w, a) for a in found.algorithms(w))]
    if not worlds:
        return None
    with _canvas(len(worlds), len(places)) as (figure, axes):
        for row, world in zip(axes, worlds, strict=True):
            names = [a for a in found.algorithms(world) if _predicts(found, world, a)]
            for axis, (place, title) in zip(row, places.items(), strict=True):
                for index, name in enumerate(names):
                    middles, means = _binned(found.of(world, name), f"{place}_brier")
                    style = STYLES[index % PER_PANEL]
                    axis.plot(middles, means, label=printable(name), markersize=4, **style)
                axis.axhline(0.25, color="#777777", linewidth=0.8)
                axis.set(
                    title=printable(f"{world}: {title}"),
                    xlabel="policy tokens, thousands",
                    ylabel="Brier score",
                )
            row[0].legend(frameon=False, fontsize=7)  # not all algorithms predict everywhere
        return _svg(figure)


def spending(found: Comparison) -> bytes:
    """Where sampled tokens went: rollouts from prompts, and continuations by the turn they start after."""
    columns = ["tokens_root", *(f"tokens_prefix_{n}" for n in range(1, DEEPEST + 1))]

    def shares(runs: Sequence[Run]) -> Floats:
        rows = [row for run in runs for row in run.record["spending"]]
        total = np.array([sum(row.get(name, 0.0) for row in rows) for name in columns])
        return np.asarray(total / max(total.sum(), 1e-12))

    return _bars(found, PARTS, shares, "share of the sampled tokens")


def wall_clock(found: Comparison) -> bytes:
    """Where a training step's seconds went, by the clock."""

    def shares(runs: Sequence[Run]) -> Floats:
        total = np.array([sum(seconds_of(run, name) for run in runs) for name in PHASES])
        return np.asarray(total / max(total.sum(), 1e-12))

    return _bars(found, list(PHASES.values()), shares, "share of the seconds")


def profiles(found: Comparison, rng: np.random.Generator) -> bytes | None:
    """Share of runs over all environments whose final success exceeds a threshold; None without two runs of each."""
    worlds, names, seeds = found.common()
    if len(names) < 2 or not seeds:
        return None
    scored = np.concatenate([found.matrix(name, worlds, seeds).ravel() for name in names])
    thresholds = np.linspace(max(0.0, scored.min() - 0.02), min(1.0, scored.max() + 0.02), 101)
    panels = _panels(names, found.suite.baseline)
    with _canvas(1, len(panels)) as (figure, axes):
        for axis, panel in zip(axes[0], panels, strict=True):
            for name, style in panel:
                scores = found.matrix(name, worlds, seeds)
                axis.plot(
                    thresholds,
                    profile(scores, thresholds),
                    label=printable(name),
                    markevery=10,
                    markersize=4,
                    **style,
                )
                low, high = profile_bands(scores, thresholds, rng)
                axis.fill_between(thresholds, low, high, color=style["color"], alpha=0.1, linewidth=0)
            axis.set(xlabel="final success above", ylabel="share of runs", ylim=(-0.02, 1.02))
            axis.legend(frameon=False, fontsize=7)
        return _svg(figure)


# ---- shared ---------------------------------------------------------------------------------------------------------


def _by_world(
    found: Comparison, draw: Callable[[Axes, Sequence[Run], dict[str, Any], str], None], label: str
) -> bytes:
    """A row an environment, a panel for each few algorithms; the first row has the legends of all."""
    worlds = found.environments
    names = [name for name in found.suite.algorithms if any(name in found.algorithms(w) for w in worlds)]
    panels = _panels(names, found.suite.baseline)
    from matplotlib.lines import Line2D

    with _canvas(len(worlds), len(panels)) as (figure, axes):
        for row, world in zip(axes, worlds, strict=True):
            for axis, panel in zip(row, panels, strict=True):
                for name, style in panel:
                    draw(axis, found.of(world, name), style, name)
                axis.set(xlabel="policy tokens, thousands", ylabel=label, title=printable(world))
            _same_height(row)
        for axis, panel in zip(axes[0], panels, strict=True):
            marks = [Line2D([], [], markersize=4, label=printable(name), **style) for name, style in panel]
            axis.legend(handles=marks, frameon=False, fontsize=7)
        return _svg(figure)


def _panels(names: Sequence[str], baseline: str) -> list[list[tuple[str, dict[str, Any]]]]:
    """The algorithms in groups of at most four, the baseline first in each."""
    others = [name for name in names if name != baseline]
    first = [(baseline, BASE)] if baseline in names else []
    groups = [others[i : i + PER_PANEL] for i in range(0, len(others), PER_PANEL)] or [[]]
    return [first + list(zip(group, STYLES, strict=False)) for group in groups]


def _line(
    axis: Axes, grid: Floats, values: Floats, style: dict[str, Any], name: str, marks: Sequence[int]
) -> None:
    x = grid / 1000
    axis.plot(
        x, values.mean(axis=0), label=printable(name), markevery=marks, markersize=4, linewidth=1.4, **style
    )
    if len(values) > 1:
        axis.fill_between(
            x, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.1, linewidth=0
        )


def _binned(runs: Sequence[Run], name: str, weight: str = "") -> tuple[Floats, Floats]:
    """Mean of a metric over the steps of all runs, in equal bins of tokens: middles in thousands, means."""
    rows = [
        (row["policy_tokens"], row[name], row.get(weight, 0.0) if weight else 1.0)
        for run in runs
        for row in run.metrics
        if name in row and not np.isnan(row[name])
    ]
    tokens, values, weights = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    if not len(tokens):
        return tokens, values
    place = np.minimum((tokens / tokens.max() * BINS).astype(int), BINS - 1)
    kept = [i for i in range(BINS) if weights[place == i].sum() > 0]
    means = [np.average(values[place == i], weights=weights[place == i]) for i in kept]
    return np.array([tokens[place == i].mean() / 1000 for i in kept]), np.array(means)


def _predicts(found: Comparison, world: str, name: str) -> bool:
    return any("root_brier" in row for run in found.of(world, name) for row in run.metrics)


def seconds_of(run: Run, phase: str) -> float:
    """Seconds of a phase over the whole run; checkpoints count as log."""
    last = run.metrics[-1] if run.metrics else {}
    more = float(last.get("seconds_checkpoint", 0.0)) if phase == "log" else 0.0
    return float(last.get(f"seconds_{phase}", 0.0)) + more


def _bars(
    found: Comparison, parts: Sequence[str], shares: Callable[[Sequence[Run]], Floats], label: str
) -> bytes:
    """A panel an environment, a stacked bar an algorithm."""
    worlds = found.environments
    tallest = max(len(found.algorithms(world)) for world in worlds)
    with _canvas(1, len(worlds), height=0.9 + 0.28 * tallest) as (figure, axes):
        for axis, world in zip(axes[0], worlds, strict=True):
            names = found.algorithms(world)
            rows = np.array([shares(found.of(world, name)) for name in names])
            left = np.zeros(len(names))
            for index, part in enumerate(parts):
                look = {"color": BARS[index % len(BARS)], "hatch": HATCHES[index % len(HATCHES)]}
                axis.barh(
                    range(len(names)),
                    rows[:, index],
                    left=left,
                    label=part,
                    edgecolor="#333333",
                    linewidth=0.5,
                    **look,
                )
                left += rows[:, index]
            axis.set_yticks(range(len(names)), [printable(name) for name in names], fontsize=7)
            axis.invert_yaxis()
            axis.set(title=printable(world), xlabel=label, xlim=(0, 1))
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=7)
        return _svg(figure)


def _same_height(row: Sequence[Axes]) -> None:
    limits = [axis.get_ylim() for axis in row]
    for axis in row:
        axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


@contextmanager
def _canvas(rows: int, columns: int, *, height: float = 2.6) -> Iterator[tuple[Figure, Any]]:
    """A figure with a grid of axes, drawn without a display; settings elsewhere stay as they are."""
    import matplotlib
    from matplotlib.figure import Figure as Plain

    fixed: dict[Any, Any] = {
        "svg.hashsalt": "trace_gym",
        "text.parse_math": False,
        "font.size": 8,
        "hatch.linewidth": 0.6,
        "text.usetex": False,
    }
    with matplotlib.rc_context(fixed):
        figure = Plain(figsize=(max(3.6 * columns, 5.0), height * rows), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False)


def _svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
