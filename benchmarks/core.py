"""What forking and the loop cost, measured side by side in one run.

    python -m trace_gym.benchmarks.core                                a table for Math-v0
    python -m trace_gym.benchmarks.core --env trace_gym/SearchQA-v0    costs of forking another environment
    python -m trace_gym.benchmarks.core --json                         the same as JSON

Snapshot and restore stand beside what one would do without them: `copy.deepcopy` of the environment, and replaying
the episode's actions. The loop is timed with a scripted engine that answers at once, so what is left is the loop itself and
the environment.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from trace_gym.algorithm import Algorithm, Branch, Credit, RunContext, StepContext
from trace_gym.engine import Request, ScriptedEngine
from trace_gym.env import ForkableEnv, Snapshot
from trace_gym.ledger import Budget, Ledger
from trace_gym.render import PlainRenderer
from trace_gym.rollout import RolloutSettings, grow_trees, plant_trees
from trace_gym.runs import environment_facts

__all__ = ["fork_costs", "loop_costs", "main"]

RENDERER = PlainRenderer()
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


class _Uniform(Algorithm):
    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        return [] if ctx.idle else [Branch(task, count=8) for task in ctx.pool]

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        return {}


def loop_costs(tasks: int = 256) -> dict[str, float]:
    """One step of `tasks` x 8 rollouts with an engine that answers at once."""
    env: ForkableEnv[Any] = gymnasium.make(MATH).unwrapped  # type: ignore[assignment]
    replies = [
        RENDERER.encode(a)
        for a in ('<tool_call>{"name":"calculator","arguments":{"expression":"1+2"}}</tool_call>',)
    ]
    answer = RENDERER.encode("<answer>3</answer>")

    def reply(request: Request, rng: np.random.Generator) -> list[int]:
        return answer if rng.random() < 0.3 else replies[0]

    run = RunContext(seed=0, tasks=())
    ctx = plant_trees(env, env.tasks("train")[:tasks], RENDERER, run, 0, Budget())
    start = time.perf_counter()
    grow_trees(
        _Uniform(),
        ctx,
        engine=ScriptedEngine(reply),
        renderer=RENDERER,
        env=env,
        settings=RolloutSettings(max_tokens=128),
        ledger=Ledger(),
    )
    wall = time.perf_counter() - start
    turns = sum(len(tree) - 1 for tree in ctx.trees.values())
    alone = _environment_alone(env, ctx)
    return {
        "turns": float(turns),
        "turns per second": turns / wall,
        "loop and environment, µs per turn": 1e6 * wall / turns,
        "the same environment steps without the loop, µs per turn": 1e6 * alone / turns,
        "loop overhead, µs per turn": 1e6 * (wall - alone) / turns,
    }


def _environment_alone(env: ForkableEnv[Any], ctx: StepContext) -> float:
    """Seconds for the very actions of the step's trees, in one thread: step, snapshot and state key, as the loop does."""
    start = time.perf_counter()
    for tree in ctx.trees.values():
        for leaf in tree.leaves():
            path = tree.path(leaf)
            assert tree[0].snapshot is not None
            env.restore(tree[0].snapshot, seed=leaf)
            for node in (tree[i] for i in path[1:]):
                env.step(node.action)
                env.state_key()
                if node.status == "running":
                    env.snapshot()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--env", default=MATH, help="the environment that is forked")
    arguments = parser.parse_args()
    options: dict[str, Any] = {"difficulty": 4} if arguments.env == MATH else {}
    env: ForkableEnv[Any] = gymnasium.make(arguments.env, **options).unwrapped  # type: ignore[assignment]
    forks, about = fork_costs(env, env.tasks("test")[0]), environment_facts()
    loop = loop_costs() if arguments.env == MATH else {}  # its scripted policy speaks of mathematics
    if arguments.json:
        print(json.dumps({"about": about, "fork_us": forks, "loop": loop}, indent=1))
        return
    print("| | median µs | 99th percentile µs |\n|---|---|---|")
    for name, (median, high) in forks.items():
        print(f"| {name} | {median:.1f} | {high:.1f} |")
    if loop:
        print("\n| loop with a scripted engine | |\n|---|---|")
    for name, value in loop.items():
        print(f"| {name} | {value:,.1f} |")
    print("\n" + ", ".join(f"{k} {v}" for k, v in about.items()))


if __name__ == "__main__":
    main()
