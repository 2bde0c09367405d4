"""A suite's page: tables, pictures and the settings behind them, from its table of results.

    trace-gym bench report runs/bench/cpu     README.md with its pictures, index.html with everything inside, the table itself

Every number says how many seeds stand behind it, every difference is taken within seeds and has its interval, and what failed
is listed with its reason.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from trace_gym.benchmarks import figures, sections
from trace_gym.benchmarks.comparison import Comparison, read_comparison
from trace_gym.benchmarks.page import Block, Code, Heading, Picture, Table, Text, write_page
from trace_gym.benchmarks.records import TABLE
from trace_gym.benchmarks.statistics import Estimate, bootstrap, iqm, mean, paired, probability_of_improvement
from trace_gym.errors import ConfigError
from trace_gym.seeding import keyed_rng

__all__ = ["blocks", "write_report"]

NOTHING = "–"


def write_report(results: Path, out: Path) -> list[Path]:
    """Read a suite's results and write its page; returns the files. Raises `ConfigError` where there is nothing to report."""
    found = read_comparison(results)
    if not found.runs:
        raise ConfigError(f"no training cell in {results} has ended well; `trace-gym bench run` says why")
    written = write_page(out, blocks(found), title=f"{found.suite.name}: {found.suite.title}")
    table = results / TABLE if results.is_dir() else results
    for source in (table, table.with_name("suite.json")):
        if source.resolve() != (out / source.name).resolve():
            shutil.copyfile(source, out / source.name)
        written.append(out / source.name)
    return written


def blocks(found: Comparison) -> list[Block]:
    """The page."""
    return [
        Heading(f"{found.suite.name}: {found.suite.title}", 1),
        *_opening(found),
        *(block for world in found.environments for block in _world(found, world)),
        *_across(found),
        Heading("Learning curves"),
        Picture(
            "curves",
            figures.curves(found),
            "Success against policy tokens; mean over seeds, bands from the least to the greatest seed.",
        ),
        Heading("Effective ratio"),
        Text(
            "Share of the prompts paid for whose tree holds both outcomes: the others teach nothing by contrast."
        ),
        Picture(
            "effective",
            figures.effective(found),
            "Effective ratio against policy tokens, mean over steps and seeds.",
        ),
        *sections.budget(found),
        *sections.calibration(found),
        *sections.seconds(found),
        *sections.final_sets(found),
        *sections.failed_cells(found),
        *sections.settings(found),
    ]


# ---- opening --------------------------------------------------------------------------------------------------------


def _opening(found: Comparison) -> Iterator[Block]:
    suite = found.suite
    if suite.about:
        yield Text(suite.about)
    yield Code(f"trace-gym bench run {suite.name} --out FOLDER\ntrace-gym bench report FOLDER")
    states = Counter((r["kind"], r["status"]) for r in found.records)
    told = ", ".join(f"{count} {kind} {status}" for (kind, status), count in sorted(states.items()))
    hours = sum(r["cpu_seconds"] for r in found.records) / 3600
    yield Text(f"Cells: {told}. They took {hours:.1f} hours of processor time. {_machine(found)}")
    unit = suite.unit.replace("_", " ")
    yield Text(
        f"Every cell may spend the same number of {unit}, billed by one ledger, and never spends more; the tables tell how "
        "close it came, for what is left at the end covers no further rollout. Final is success at the budget, area is mean "
        "success over it. Cells of one environment and seed share the starting policy, the order of tasks, and the "
        f"evaluation's tasks and seeds, so differences to {suite.baseline} are taken within seeds. Brackets hold 95 % "
        "bootstrap intervals over seeds; with fewer than five seeds they are too narrow, and nothing should be concluded from "
        "one of them."
    )


def _machine(found: Comparison) -> str:
    parts = []
    for name, label in (
        ("commit", "commit"),
        ("platform", "platform"),
        ("cores", "cores"),
        ("python", "Python"),
        ("torch", "torch"),
    ):
        values = sorted({str(r["about"][name]) for r in found.records if name in r["about"]})
        if values:
            parts.append(f"{label} {', '.join(values)}")
    return "; ".join(parts) + "." if parts else ""


# ---- one environment ------------------------------------------------------------------------------------------------


def _world(found: Comparison, world: str) -> Iterator[Block]:
    suite, budget = found.suite, found.suite.environments[world].budget
    unit = suite.unit.replace("_", " ")
    yield Heading(f"{world}: at {budget:,} {unit}")
    base, spent = suite.baseline, f"{unit} spent"
    headers = ["algorithm", "seeds", "start", "final", f"final less {base}'s", "area", f"area less {base}'s"]
    headers += ["effective ratio", spent, "learning rate"]
    names = found.algorithms(world)
    lines = [_row(found, world, name) for name in names]
    yield Table(headers, lines)
    looked = sum("[" in cell for line in lines for cell in line)  # one seed has a difference and no interval
    missing = [name for name in suite.algorithms_of(suite.environments[world]) if name not in names]
    more = f" Without a finished run: {', '.join(missing)}." if missing else ""
    chance = f"{looked} intervals are shown: one in twenty misses its mark by chance." if looked else ""
    if chance or more:
        yield Text(f"{chance}{more}".strip())


def _row(found: Comparison, world: str, name: str) -> list[str]:
    runs, base = found.of(world, name), found.suite.baseline
    rates = sorted({run.rate for run in runs if run.rate is not None})
    differences = {
        what: paired(
            found.by_seed(world, name, what),
            found.by_seed(world, base, what),
            keyed_rng("report", world, name, what),
        )
        for what in ("final", "area")
    }
    return [
        name,
        str(len(runs)),
        _mean([np.nan if run.start is None else run.start for run in runs]),
        f"{np.mean([run.final for run in runs]):.3f}",
        "" if name == base else _difference(differences["final"], len(runs)),
        _mean([run.area for run in runs]),
        "" if name == base else _difference(differences["area"], len(runs)),
        f"{np.mean([run.mean('effective_ratio', 'prompts') for run in runs]):.2f}",
        _range([run.spent for run in runs]),
        ", ".join(f"{rate:g}" for rate in rates) or "default",
    ]


def _difference(found: Estimate, seeds: int) -> str:
    """Says so where it rests on fewer than the row's `seeds`."""
    if found.n == 0:
        return NOTHING
    interval = "" if found.n < 2 else f" [{found.low:+.3f}, {found.high:+.3f}]"
    return f"{found.value:+.3f}{interval}{_fewer(found.n, seeds)}"


def _mean(values: Sequence[float]) -> str:
    """Of the seeds that have one, and how many these are."""
    known = [value for value in values if not np.isnan(value)]
    return f"{np.mean(known):.3f}{_fewer(len(known), len(values))}" if known else NOTHING


def _fewer(n: int, seeds: int) -> str:
    return "" if n == seeds else f" ({n} of {seeds} seeds)"


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"


# ---- all environments -----------------------------------------------------------------------------------------------


def _across(found: Comparison) -> Iterator[Block]:
    """Interquartile means, pooled differences and profiles over a full block of environments and seeds."""
    worlds, names, seeds = found.common()
    base = found.suite.baseline
    if len(seeds) < 2 or base not in names or len(names) < 2:
        return
    every = {name for world in worlds for name in found.algorithms(world)}
    rest = ", ".join(name for name in found.suite.algorithms if name in every - set(names))
    left_out = f" Left out, for they have no finished run in some of them: {rest}." if rest else ""
    yield Heading("All environments together")
    yield Text(
        f"Final success over {', '.join(worlds)}, each with seeds {', '.join(map(str, seeds))}: the mean of the middle half of "
        "all runs (interquartile mean), the difference within environment and seed, and the chance that a run beats one of the "
        "baseline's. Seeds are drawn anew within each environment for the intervals (Agarwal et al. 2021, arXiv 2108.13264). "
        f"Success is not normalised, so environments where it moves more count for more.{left_out}"
    )
    baseline = found.matrix(base, worlds, seeds)
    rows = []
    for name in names:
        scores, rng = found.matrix(name, worlds, seeds), keyed_rng("report", "all", name)
        middle = bootstrap(scores, iqm, rng)
        pooled = bootstrap(scores - baseline, mean, rng)
        better = "" if name == base else f"{probability_of_improvement(scores, baseline):.2f}"
        rows.append(
            [
                name,
                f"{middle.value:.3f} [{middle.low:.3f}, {middle.high:.3f}]",
                "" if name == base else _difference(pooled, len(seeds)),
                better,
            ]
        )
    yield Table(["algorithm", "interquartile mean", f"final less {base}'s", f"chance to beat {base}"], rows)
    svg = figures.profiles(found, keyed_rng("report", "profiles"))
    if svg is not None:
        yield Picture(
            "profiles",
            svg,
            "Performance profiles: share of runs, over all environments, whose final success exceeds a threshold.",
        )
