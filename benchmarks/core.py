"""What forking costs, measured side by side in one run.

    trace-gym bench speed --only env                                   a table for Math-v0
    python -m trace_gym.benchmarks.core --env trace_gym/SearchQA-v0    costs of forking another environment
    python -m trace_gym.benchmarks.core --json                         the same as JSON

Snapshot and restore stand beside what one would do without them: `copy.deepcopy` of the environment, and replaying
the episode's actions.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

from trace_gym.env import ForkableEnv, Snapshot
from trace_gym.runs import environment_facts

__all__ = ["fork_costs", "main", "measure", "page"]

MATH = "trace_gym/Math-v0"
MOST_S = 5.0


def timed_us(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median and 99th percentile of `work` in microseconds, after a tenth as many warm-up calls; slow work is repeated
    less often, for `MOST_S`."""
    _samples_us(work, repeats // 10)
    samples = _samples_us(work, repeats)
    return statistics.median(samples), float(np.percentile(samples, 99))


def _samples_us(work: Callable[[], object], repeats: int) -> list[float]:
    samples: list[float] = []
    while len(samples) < repeats and sum(samples) < MOST_S * 1e6:
        start = time.perf_counter_ns()
        work()
        samples.append((time.perf_counter_ns() - start) / 1000)
    return samples


def fork_costs(env: ForkableEnv[Any], task: str, *, repeats: int = 2000) -> dict[str, tuple[float, float]]:
    """Microseconds (median, 99th percentile) in the middle of the expert's solution of `task`."""
    actions = _solution(env, task)
    del actions[len(actions) // 2 + 1 :]
    env.reset(seed=0, options={"task": task})
    for action in actions[:-1]:
        env.step(action)
    snapshot = env.snapshot()
    data = snapshot.to_bytes()
    other = env.fork()

    def replay() -> None:
        other.reset(seed=0, options={"task": task})
        for action in actions[:-1]:
            other.step(action)

    return {
        "snapshot": timed_us(env.snapshot, repeats),
        "restore": timed_us(lambda: other.restore(snapshot), repeats),
        "snapshot + restore": timed_us(lambda: other.restore(env.snapshot()), repeats),
        "to_bytes": timed_us(snapshot.to_bytes, repeats),
        "from_bytes + restore": timed_us(lambda: other.restore(Snapshot.from_bytes(data)), repeats),
        "instead: deepcopy of the environment": timed_us(lambda: copy.deepcopy(env), repeats // 10),
        "instead: replay of the actions": timed_us(replay, repeats // 10),
        "one environment step": timed_us(lambda: (other.restore(snapshot), other.step(actions[-1])), repeats),
    }


def _solution(env: ForkableEnv[Any], task: str) -> list[str]:
    env.reset(seed=0, options={"task": task})
    actions, over = [], False
    while not over:
        actions.append(env.expert_action())
        _, _, terminated, truncated, _ = env.step(actions[-1])
        over = terminated or truncated
    return actions


def measure(*, quick: bool = False) -> dict[str, Any]:
    """Costs of forking Math-v0."""
    return {"env": MATH, "fork_us": _forks(MATH, repeats=20 if quick else 2000), "about": environment_facts()}


def _forks(env_id: str, *, repeats: int = 2000) -> dict[str, tuple[float, float]]:
    options: dict[str, Any] = {"difficulty": 4} if env_id == MATH else {}
    env: ForkableEnv[Any] = gymnasium.make(env_id, **options).unwrapped  # type: ignore[assignment]
    return fork_costs(env, env.tasks("test")[0], repeats=repeats)


def page(found: Mapping[str, Any]) -> str:
    """The measurement as Markdown."""
    lines = [f"# What a fork of {found['env']} costs", "", *(__doc__ or "").strip().splitlines(), ""]
    lines += ["| | median µs | 99th percentile µs |", "|---|---|---|"]
    lines += [f"| {name} | {median:.1f} | {high:.1f} |" for name, (median, high) in found["fork_us"].items()]
    lines += ["", "Machine and versions: " + ", ".join(f"{k} {v}" for k, v in found["about"].items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--env", default=MATH, help="the environment that is forked")
    arguments = parser.parse_args()
    found = {
        "env": arguments.env,
        "fork_us": _forks(arguments.env),
        "about": environment_facts(),
    }
    print(json.dumps(found, indent=1) if arguments.json else page(found))


if __name__ == "__main__":
    main()
