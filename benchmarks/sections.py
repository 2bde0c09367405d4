"""The sections of a report below its comparisons: where the budget and the seconds went, calibration, failures, settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from trace_gym.benchmarks import figures
from trace_gym.benchmarks.comparison import CALIBRATION, Comparison, Run
from trace_gym.benchmarks.display import clock
from trace_gym.benchmarks.page import Block, Code, Heading, Picture, Table, Text
from trace_gym.benchmarks.records import area_of
from trace_gym.benchmarks.spending import DEEPEST

__all__ = ["budget", "calibration", "failed_cells", "final_sets", "seconds", "settings"]

PLACES = ("root", "prefix", "expanded")
NOTHING = "–"


def budget(found: Comparison) -> Iterator[Block]:
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


def calibration(found: Comparison) -> Iterator[Block]:
    svg = figures.calibration(found)
    if svg is None:
        return
    yield Heading("Calibration of the predictors")
    yield Text(
        "Predicted success against what was seen, before the predictor learned from it: of prompts, of prefixes, and of "
        "prefixes that were continued, judged by their continuations alone. First third of training → last third; means over "
        "steps and seeds. Always saying 0.5 has a Brier score of 0.25, the grey line."
    )
    headers = [
        "environment",
        "algorithm",
        *(f"{p} {m.replace('_', ' ')}" for p in PLACES for m in CALIBRATION),
    ]
    rows = []
    for world in found.environments:
        for name in found.algorithms(world):
            cells = [_thirds(found.of(world, name), f"{p}_{m}") for p in PLACES for m in CALIBRATION]
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


def seconds(found: Comparison) -> Iterator[Block]:
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


def final_sets(found: Comparison) -> Iterator[Block]:
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


def failed_cells(found: Comparison) -> Iterator[Block]:
    failed = list(found.failed())
    if failed:
        yield Heading("Failed cells")
        rows = [[r["environment"], r["algorithm"] or r["kind"], str(r["seed"]), r["reason"]] for r in failed]
        yield Table(["environment", "algorithm", "seed", "reason"], rows)


def settings(found: Comparison) -> Iterator[Block]:
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
