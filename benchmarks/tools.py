"""What forks and turns of ToolAPI-v0 cost, each source beside deepcopy and replay in the same run.

trace-gym data get bfcl
python -m trace_gym.benchmarks.tools
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import gymnasium

from trace_gym.benchmarks.core import fork_costs
from trace_gym.env import ForkableEnv
from trace_gym.runs import environment_facts

__all__ = ["main", "steps_per_second"]

SOURCES = {
    "builtin": "office/test/4/0",
    "bfcl:base": "multi_turn_base_3",
    "bfcl:long_context": "multi_turn_long_context_3",
}
TASKS = 40


def steps_per_second(env: ForkableEnv[Any], tasks: Sequence[str]) -> tuple[float, float]:
    """Turns a second of the expert's episodes, and state keys a second beside them; tasks are made before the clock runs."""
    solutions = []
    for task in tasks:
        env.reset(seed=0, options={"task": task})
        actions: list[str] = []
        over = False
        while not over:
            actions.append(env.expert_action())
            _, _, terminated, truncated, _ = env.step(actions[-1])
            over = terminated or truncated
        solutions.append(actions)
    start = time.perf_counter()
    for task, actions in zip(tasks, solutions, strict=True):
        env.reset(seed=0, options={"task": task})
        for action in actions:
            env.step(action)
    middle = time.perf_counter()
    for task, actions in zip(tasks, solutions, strict=True):
        env.reset(seed=0, options={"task": task})
        for _ in actions:
            env.state_key()
    turns = sum(map(len, solutions))
    return turns / (middle - start), turns / (time.perf_counter() - middle)


def main() -> None:
    columns: dict[str, dict[str, tuple[float, float]]] = {}
    rates: dict[str, tuple[float, float]] = {}
    for source, task in SOURCES.items():
        env: ForkableEnv[Any] = gymnasium.make("trace_gym/ToolAPI-v0", source=source, difficulty=4).unwrapped  # type: ignore[assignment]
        columns[source] = fork_costs(env, task)
        rates[source] = steps_per_second(env, env.tasks("test")[:TASKS])
    print(f"| median (99th percentile) µs | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for name in next(iter(columns.values())):
        cells = [f"{column[name][0]:.1f} ({column[name][1]:.1f})" for column in columns.values()]
        print(f"| {name} | {' | '.join(cells)} |")
    print(
        "| turns per second, with `reset` | "
        + " | ".join(f"{turns:,.0f}" for turns, _ in rates.values())
        + " |"
    )
    print("| state keys per second | " + " | ".join(f"{keys:,.0f}" for _, keys in rates.values()) + " |")
    print("\n" + ", ".join(f"{k} {v}" for k, v in environment_facts().items()))


if __name__ == "__main__":
    main()
