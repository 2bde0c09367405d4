"""Finished cells as what a report compares: per environment and algorithm, one `Run` a seed, at equal budget.

Success at a budget is read off a run's curve: between two measurements the straight line, after the last one its value. A
budget is never exceeded, so the last measurement lies at it or a little before; how far before is told with every table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trace_gym.benchmarks.cells import Floats, area, curve
from trace_gym.benchmarks.records import read_table, result_of
from trace_gym.benchmarks.suite import Suite
from trace_gym.errors import ConfigError

__all__ = ["CALIBRATION", "Comparison", "Run", "read_comparison"]

CALIBRATION = ("brier", "ece", "rank_correlation")
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Run:
    """One finished training cell."""

    environment: str
    algorithm: str
    seed: int
    rate: float | None
    budget: float  # in the suite's unit
    at: Floats = field(repr=False)  # [n] what had been spent of the budget's unit
    tokens: Floats = field(repr=False)  # [n] policy tokens sampled by then
    success: Floats = field(repr=False)  # [n]
    start: float | None  # success before training
    area: float  # nan where other seeds tell their start and this one does not
    record: Mapping[str, Any] = field(repr=False)

    def success_at(self, budget: float) -> float:
        """By the straight line between measurements; nan without any."""
        return float(np.interp(budget, self.at, self.success)) if len(self.at) else float("nan")

    @property
    def final(self) -> float:
        """Success at the cell's budget."""
        return self.success_at(self.budget)

    @property
    def metrics(self) -> Rows:
        rows: Rows = self.record["metrics"]
        return rows

    @property
    def spent(self) -> float:
        """Of the budget's unit, in the end."""
        return float(self.at[-1]) if len(self.at) else float("nan")

    def mean(self, name: str, weight: str = "") -> float:
        """Mean of a metric over steps, weighted by another metric where one is named; nan where it is nowhere."""
        found = [(row[name], row[weight] if weight else 1.0) for row in self.metrics if name in row]
        values, weights = np.array(found, dtype=np.float64).reshape(-1, 2).T
        kept = ~np.isnan(values)
        return (
            float(np.average(values[kept], weights=weights[kept]))
            if weights[kept].sum() > 0
            else float("nan")
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """A suite's runs and what went wrong."""

    suite: Suite
    runs: Sequence[Run]
    records: Rows = field(repr=False)

    @property
    def environments(self) -> tuple[str, ...]:
        """Those with a finished run, in the suite's order."""
        have = {run.environment for run in self.runs}
        return tuple(name for name in self.suite.environments if name in have)

    def algorithms(self, environment: str) -> tuple[str, ...]:
        """Those with a finished run there, in the suite's order."""
        have = {run.algorithm for run in self.runs if run.environment == environment}
        return tuple(name for name in self.suite.algorithms if name in have)

    def of(self, environment: str, algorithm: str) -> list[Run]:
        """By seed."""
        mine = [r for r in self.runs if (r.environment, r.algorithm) == (environment, algorithm)]
        return sorted(mine, key=lambda run: run.seed)

    def by_seed(self, environment: str, algorithm: str, what: str = "final") -> dict[int, float]:
        """`final`, `area` or another number of each run."""
        return {run.seed: float(getattr(run, what)) for run in self.of(environment, algorithm)}

    def failed(self) -> Iterator[Mapping[str, Any]]:
        return (record for record in self.records if record["status"] == "failed")

    def common(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]]:
        """Environments, algorithms and seeds that form a full block: every algorithm that has runs in all environments, and
        the seeds that all of these have everywhere."""
        worlds = self.environments
        names = tuple(a for a in self.suite.algorithms if all(self.of(e, a) for e in worlds))
        have = [{run.seed for run in self.of(e, a)} for e in worlds for a in names]
        return worlds, names, tuple(sorted(set.intersection(*have))) if have else ()

    def matrix(self, algorithm: str, worlds: Sequence[str], seeds: Sequence[int]) -> Floats:
        """[S, E] final success."""
        columns = [self.by_seed(world, algorithm) for world in worlds]
        return np.array([[column[seed] for column in columns] for seed in seeds])


def read_comparison(path: Path) -> Comparison:
    """From a suite's output folder or its table, with `suite.json` beside it. Raises `ConfigError`, `RunError`."""
    records = read_table(path)
    beside = (path if path.is_dir() else path.parent) / "suite.json"
    try:
        suite = Suite.model_validate(json.loads(beside.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{beside} does not say which suite this is: {str(error).splitlines()[0]}"
        ) from error
    trained = [r for r in records if r["kind"] == "train" and r["status"] == "done"]
    starts = {
        (r["environment"], r["seed"]): float(row["eval_success"])
        for r in trained
        for row in r["evals"]
        if row["policy_tokens"] == 0 and not np.isnan(row["eval_success"])
    }
    runs = [_run(suite, r, starts) for r in trained]
    return Comparison(suite, runs, records)


def _run(suite: Suite, record: Mapping[str, Any], starts: Mapping[tuple[str, int], float]) -> Run:
    """The baseline measures the start for all of its seed. Where that run failed the others' areas would begin with their first
    value, too high beside those of other seeds: they are not known. Where nobody measures it, all begin like that."""
    start = starts.get((record["environment"], record["seed"]))
    told = any(world == record["environment"] for world, _ in starts)
    record = {**record, "metrics": [_of_prompts(row) for row in record["metrics"]]}
    result = result_of(record)
    tokens, success = curve(result)
    if start is not None and len(tokens) and tokens[0] > 0:
        tokens, success = np.insert(tokens, 0, 0.0), np.insert(success, 0, start)
    return Run(
        record["environment"],
        record["algorithm"],
        record["seed"],
        record["rate"],
        float(record["budget"]),
        _spent(record["metrics"], tokens, suite.unit),
        tokens,
        success,
        start,
        area(result, _tokens(suite, record), start=float("nan") if told and start is None else start),
        record,
    )


def _of_prompts(row: Mapping[str, Any]) -> dict[str, Any]:
    """A predictor that sees prompts alone reports its calibration under plain names."""
    alone = {f"root_{name}": row[name] for name in CALIBRATION if name in row and f"root_{name}" not in row}
    return {**row, **alone}


def _tokens(suite: Suite, record: Mapping[str, Any]) -> float:
    """The budget in policy tokens: where it is in another unit, what the run sampled."""
    if suite.unit == "policy_tokens":
        return float(record["budget"])
    return float(record["metrics"][-1]["policy_tokens"]) if record["metrics"] else float("nan")


def _spent(metrics: Rows, tokens: Floats, unit: str) -> Floats:
    """The unit's count where so many tokens had been sampled."""
    if unit == "policy_tokens":
        return tokens
    sampled = [0.0, *(row["policy_tokens"] for row in metrics)]
    return np.asarray(np.interp(tokens, sampled, [0.0, *(row[unit] for row in metrics)]))
