"""A suite's page: tables, pictures and the settings behind them, from its table of results.

    trace-gym bench report runs/bench/cpu     README.md with its pictures, index.html with everything inside, the table itself

Every number says how many seeds stand behind it, every difference is taken within seeds and has its interval, and what failed
is listed with its reason.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from trace_gym.benchmarks import figures
from trace_gym.benchmarks.comparison import Comparison, Run, read_comparison
from trace_gym.benchmarks.display import clock
from trace_gym.benchmarks.page import Block, Code, Heading, Picture, Table, Text, write_page
from trace_gym.benchmarks.records import TABLE, area_of
from trace_gym.benchmarks.spending import DEEPEST
from trace_gym.benchmarks.statistics import Estimate, bootstrap, iqm, mean, paired, probability_of_improvement
from trace_gym.errors import ConfigError
from trace_gym.seeding import keyed_rng

__all__ = ["blocks", "write_report"]

MEASURES = ("brier", "ece", "rank_correlation")
PLACES = ("root", "prefix", "expanded")
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
        *_budget(found),
        *_calibration(found),
        *_seconds(found),
        *_final_sets(found),
        *_failed(found),
        *_settings(found),
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
    yield Table(headers, [_row(found, world, name) for name in names])
    looked = 2 * sum(name != suite.baseline for name in names)
    missing = [name for name in suite.algorithms_of(suite.environments[world]) if name not in names]
    more = f" Without a finished run: {', '.join(missing)}." if missing else ""
    yield Text(f"{looked} intervals are shown: one in twenty misses its mark by chance.{more}")


def _row(found: Comparison, world: str, name: str) -> list[str]:
    runs, base = found.of(world, name), found.suite.baseline
    starts = [run.start for run in runs if run.start is not None]
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
        f"{np.mean(starts):.3f}" if starts else NOTHING,
        f"{np.mean([run.final for run in runs]):.3f}",
        "" if name == base else _difference(differences["final"]),
        f"{np.mean([run.area for run in runs]):.3f}",
        "" if name == base else _difference(differences["area"]),
        f"{np.mean([run.mean('effective_ratio', 'prompts') for run in runs]):.2f}",
        _range([run.spent for run in runs]),
        ", ".join(f"{rate:g}" for rate in rates) or "default",
    ]


def _difference(found: Estimate) -> str:
    if found.n == 0:
        return NOTHING
    if found.n < 2:
        return f"{found.value:+.3f}"
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


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
    yield Heading("All environments together")
    yield Text(
        f"Final success over {', '.join(worlds)}, each with seeds {', '.join(map(str, seeds))}: the mean of the middle half of "
        "all runs (interquartile mean), the difference within environment and seed, and the chance that a run beats one of the "
        "baseline's. Seeds are drawn anew within each environment for the intervals (Agarwal et al. 2021, arXiv 2108.13264). "
        "Success is not normalised, so environments where it moves more count for more."
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
                "" if name == base else _difference(pooled),
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


# ---- where it went --------------------------------------------------------------------------------------------------


def _budget(found: Comparison) -> Iterator[Block]:
    yield Heading("Where the budget went")
    yield Text(
        "Of the tokens sampled: rollouts from prompts, and continuations by the turn they start after. Skipped is the share of "
        "a step's pool that got no rollout."
    )
    columns = ["tokens_root", *(f"tokens_prefix_{n}" for n in range(1, DEEPEST + 1))]
    rows = []
    for world in found.environments:
        for name in found.algorithms(world):
            steps = [row for run in found.of(world, name) for row in run.record["spending"]]
            pool, total = sum(s["pool"] for s in steps), sum(s[c] for s in steps for c in columns)
            if pool and total:
                shares = [f"{sum(s[c] for s in steps) / total:.2f}" for c in columns]
                rows.append(
                    [
                        world,
                        name,
                        f"{sum(s['skipped'] for s in steps) / pool:.2f}",
                        f"{pool / len(steps):.0f}",
                        *shares,
                    ]
                )
    yield Table(["environment", "algorithm", "skipped", "pool", *figures.PARTS], rows)
    yield Picture(
        "spending", figures.spending(found), "Shares of the sampled tokens by where their rollout started."
    )


def _calibration(found: Comparison) -> Iterator[Block]:
    svg = figures.calibration(found)
    if svg is None:
        return
    yield Heading("Calibration of the predictors")
    yield Text(
        "Predicted success against what was seen, before the predictor learned from it: of prompts, of prefixes, and of "
        "prefixes that were continued, judged by their continuations alone. First third of training → last third; means over "
        "steps and seeds. Always saying 0.5 has a Brier score of 0.25, the grey line."
    )
    headers = ["environment", "algorithm", *(f"{p} {m.replace('_', ' ')}" for p in PLACES for m in MEASURES)]
    rows = []
    for world in found.environments:
        for name in found.algorithms(world):
            cells = [_thirds(found.of(world, name), f"{p}_{m}") for p in PLACES for m in MEASURES]
            if any(cell != NOTHING for cell in cells):
                rows.append([world, name, *cells])
    yield Table(headers, rows)
    yield Picture("calibration", svg, "Brier score of the predictions against policy tokens.")


def _thirds(runs: Sequence[Run], name: str) -> str:
    """Means of the first and the last third of the runs' tokens."""
    parts: tuple[list[float], list[float]] = ([], [])
    for run in runs:
        end = run.metrics[-1]["policy_tokens"] if run.metrics else 0.0
        for row in run.metrics:
            value = row.get(name, float("nan"))
            if not np.isnan(value):
                for part, inside in zip(
                    parts, (row["policy_tokens"] <= end / 3, row["policy_tokens"] >= 2 * end / 3), strict=True
                ):
                    if inside:
                        part.append(value)
    return " → ".join(f"{np.mean(part):.2f}" for part in parts) if all(parts) else NOTHING


def _seconds(found: Comparison) -> Iterator[Block]:
    yield Heading("Where the seconds went")
    yield Text(
        "Shares of training's seconds by the clock, one thread a cell, evaluations left out. Cells ran side by side, so the "
        "shares say more than the seconds."
    )
    rows = []
    for world in found.environments:
        for name in found.algorithms(world):
            runs = found.of(world, name)
            parts = np.array(
                [sum(figures.seconds_of(run, phase) for run in runs) for phase in figures.PHASES]
            )
            took = np.mean([run.record["seconds"] for run in runs])
            total = parts.sum()
            rows.append(
                [world, name, f"{took:.0f}", *(f"{part / total:.2f}" if total else NOTHING for part in parts)]
            )
    yield Table(["environment", "algorithm", "seconds a cell", *figures.PHASES.values()], rows)
    yield Picture("seconds", figures.wall_clock(found), "Shares of a training step's seconds by phase.")


def _final_sets(found: Comparison) -> Iterator[Block]:
    """Evaluation sets that the final policies were measured on besides the curve's."""
    names = sorted({(run.environment, row["name"]) for run in found.runs for row in run.record["found"]})
    if not names:
        return
    yield Heading("Further evaluation sets, final policies")
    rows = []
    for world, name in names:
        for algorithm in found.algorithms(world):
            values = [
                row["eval_success"]
                for run in found.of(world, algorithm)
                for row in run.record["found"]
                if row["name"] == name
            ]
            if values:
                rows.append(
                    [
                        world,
                        name,
                        algorithm,
                        str(len(values)),
                        f"{np.mean(values):.3f}",
                        f"{min(values):.3f} to {max(values):.3f}",
                    ]
                )
    yield Table(["environment", "set", "algorithm", "seeds", "success", "seeds from … to"], rows)


# ---- what else must be said -----------------------------------------------------------------------------------------


def _failed(found: Comparison) -> Iterator[Block]:
    failed = list(found.failed())
    if failed:
        yield Heading("Failed cells")
        rows = [[r["environment"], r["algorithm"] or r["kind"], str(r["seed"]), r["reason"]] for r in failed]
        yield Table(["environment", "algorithm", "seed", "reason"], rows)


def _settings(found: Comparison) -> Iterator[Block]:
    """The suite, how rates were chosen, and every setting of one cell of each environment and of every algorithm."""
    yield Heading("Settings")
    yield from _tuning(found)
    plain = found.suite.model_dump(mode="json", exclude_defaults=True)
    yield Code(_yaml(plain), "the suite")
    for world in found.environments:
        first = found.of(world, found.algorithms(world)[0])[0]
        config = {k: v for k, v in first.record["config"].items() if k != "algorithm"}
        yield Code(_yaml(config), f"{world}: all settings of {first.algorithm}, seed {first.seed}")
    for name in found.suite.algorithms:
        full = next((run.record["config"]["algorithm"] for run in found.runs if run.algorithm == name), None)
        if full is not None:
            yield Code(_yaml(full), f"{name}: all settings of the algorithm")
    for record in found.records:
        if record["kind"] == "warmup":
            told = {"env": record["config"]["env"], "seed": record["seed"], **record["warmup"]}
            yield Code(
                _yaml(told),
                f"{record['environment']}: policy {record['seed']}, made in {clock(record['seconds'])}",
            )


def _tuning(found: Comparison) -> Iterator[Block]:
    tuned = [r for r in found.records if r["kind"] == "tune"]
    if not tuned:
        return
    yield Text(
        "Learning rates were chosen by the mean area under the curve on other seeds than those reported; where success is "
        "measured on tasks, on the split named."
    )
    rows = []
    places = dict.fromkeys((r["environment"], r["algorithm"]) for r in tuned)
    for world, name in places:
        by_rate: dict[float, list[float]] = {}
        for r in tuned:
            if (r["environment"], r["algorithm"]) == (world, name):
                by_rate.setdefault(r["rate"], []).append(area_of(dict(r)))
        split = found.suite.environments[world].rates
        means = ", ".join(f"{rate:g}: {np.mean(values):.3f}" for rate, values in sorted(by_rate.items()))
        rows.append([world, name, split.split if split else NOTHING, means])
    yield Table(["environment", "algorithm", "split", "learning rate: area"], rows)


def _yaml(plain: Mapping[str, Any]) -> str:
    return yaml.safe_dump(json.loads(json.dumps(plain)), sort_keys=False, allow_unicode=True, width=110)
