"""What growing the next step's trees during the update gains: `rollout.ahead=1` beside the exact default.

    trace-gym bench speed --only ahead

Whole steps of GRPO by `train` itself, with SmolLM2-135M and adapters on `speed_loop`'s environment, where every rollout has
two turns of nearly full length. Wall seconds from the end of one step to the end of the next, for a CPU's seconds are the same
either way; the machine must have a core to spare. Rollouts and update have one of torch's threads each. On a GPU both share the
device, so these figures say nothing of it. A run of each; medians over all steps but the first and the last.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trace_gym.benchmarks.smollm2 import BASE
from trace_gym.benchmarks.speed_loop import SETTING, untrained
from trace_gym.config import load_config
from trace_gym.observer import Silent
from trace_gym.runs import environment_facts
from trace_gym.train import train

__all__ = ["measure", "page"]

STEPS = 5
ARMS = {"rollout.ahead=0": 0, "rollout.ahead=1": 1}
PHASES = ("engine", "update", "wait")


class _Clock(Silent):
    """When each step was over, and its row."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.rows: list[Mapping[str, float]] = []

    def step(self, metrics: Mapping[str, float]) -> None:
        self.ends.append(time.perf_counter())
        self.rows.append(metrics)


def measure(*, quick: bool = False) -> dict[str, Any]:
    """Medians over steps of each arm."""
    steps = 3 if quick else STEPS
    rows: dict[str, list[dict[str, float]]] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            policy = untrained(Path(folder) / "policy") if quick else (f"policy.path={BASE}",)
            for name, ahead in ARMS.items():
                clock = _Clock()
                words = (*policy, f"rollout.ahead={ahead}", f"budget.steps={steps}", f"out={folder}/runs")
                train(load_config(None, [*SETTING, "log.trees_every_steps=0", *words]), clock)
                rows[name] = _steps(clock)
    finally:
        torch.set_num_threads(threads)
    return {
        "policy": "an untrained tiny one" if quick else BASE,
        "arms": {
            name: {key: statistics.median(row[key] for row in found) for key in found[0]}
            | {"steps": len(found)}
            for name, found in rows.items()
        },
        "about": environment_facts() | {"load_average": round(os.getloadavg()[0], 1)},
    }


def _steps(clock: _Clock) -> list[dict[str, float]]:
    """Every step but the first, which begins with nothing grown, and the last, beside which nothing grows."""
    numbers = range(1, len(clock.rows) - 1)
    keys = {"policy tokens": "policy_tokens", **{name: f"seconds_{name}" for name in PHASES}}
    return [
        {
            "seconds": clock.ends[n] - clock.ends[n - 1],
            **{k: clock.rows[n].get(v, 0.0) - clock.rows[n - 1].get(v, 0.0) for k, v in keys.items()},
        }
        for n in numbers  # a row's figures are the run's so far
    ]


def page(found: Mapping[str, Any]) -> str:
    """The measurement as Markdown."""
    arms = found["arms"]
    lines = ["# Rollouts beside the update", "", *(__doc__ or "").strip().splitlines(), ""]
    lines += [f"## {found['policy']}", ""]
    keys = ("steps", "seconds", *PHASES, "policy tokens")
    lines += ["| | " + " | ".join(keys) + " | seconds per 1,000 tokens |", "|---|" + "---|" * (len(keys) + 1)]
    for name, row in arms.items():
        cells = [
            f"{row[key]:,.0f}" if key in ("steps", "policy tokens") else f"{row[key]:.2f}" for key in keys
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {_cost(row):.2f} |")
    exact, ahead = (_cost(arms[name]) for name in ARMS)
    lines += ["", f"Faster by {exact / ahead:.2f} times, per sampled token.", ""]
    lines += ["Machine and versions: " + ", ".join(f"{k} {v}" for k, v in found["about"].items())]
    return "\n".join(lines) + "\n"


def _cost(row: Mapping[str, float]) -> float:
    return 1000 * row["seconds"] / row["policy tokens"]
