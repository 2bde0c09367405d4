"""What a step costs beside the engine, the environment and the update; and a whole step of TRACE beside one of GRPO.

    trace-gym bench speed --only loop

*The loop alone.* Rollouts of Math-v0 whose policy is a script that answers at once, so that what is left is the loop and the
environment; the same environment steps are timed without the loop too. Once as a pool of small trees, once as one tree that is
forked from many of its nodes, each in two sizes.

*A whole step.* SmolLM2-135M with adapters, four groups of four rollouts of Math-v0, by `train` itself; seconds by phase from
its ledger. As it comes the model solves nothing, and a step without contrast has no update, so after two turns an episode here
ends by lot: success is drawn from what was written. Every rollout has two turns and nearly every turn its full length,
so that the algorithms sample equally many tokens. `trace` chooses its prompts from a pool of 64; `trace, forking` has eight
rollouts and two continuations of one turn for each.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np

from trace_gym.algorithm import Algorithm, Branch, Credit, RunContext, StepContext
from trace_gym.benchmarks.smollm2 import BASE
from trace_gym.benchmarks.smollm2 import SETTINGS as SMOLLM2
from trace_gym.config import load_config
from trace_gym.engine import Request, ScriptedEngine
from trace_gym.env import ForkableEnv, Turn
from trace_gym.envs.math.env import MathEnv, MathState
from trace_gym.ledger import Budget, Ledger
from trace_gym.observer import Silent
from trace_gym.render import PlainRenderer
from trace_gym.rollout import RolloutSettings, grow_trees, plant_trees
from trace_gym.runs import environment_facts
from trace_gym.tiny import make_model, make_tokenizer, save
from trace_gym.train import train

__all__ = ["SETTING", "LotteryEnv", "measure", "page", "untrained"]

# ---- the loop alone -------------------------------------------------------------------------------------------------

RENDERER = PlainRenderer()
CALL = RENDERER.encode('<tool_call>{"name":"calculator","arguments":{"expression":"1+2"}}</tool_call>')
ANSWER = RENDERER.encode("<answer>3</answer>")
GROUP = 8


def _script(request: Request, rng: np.random.Generator) -> list[int]:
    return ANSWER if rng.random() < 0.3 else CALL


class _Pool(Algorithm):
    """A group for every task."""

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        return [] if ctx.idle else [Branch(task, count=GROUP) for task in ctx.pool]

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        return {}


class _OneTree(_Pool):
    """Half of the rollouts from one prompt, then a continuation from each anchor until there are as many."""

    def __init__(self, rollouts: int) -> None:
        super().__init__()
        self.rollouts = rollouts

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        (task,) = ctx.pool
        if not ctx.idle:
            return [Branch(task, count=self.rollouts // 2)]
        left = self.rollouts - len(ctx.trees[task].leaves())
        return [Branch(task, node) for node in ctx.trees[task].anchors()[:left]]


def scripted(tasks: int, *, one_tree: bool = False) -> dict[str, float]:
    """One step of `tasks` x `GROUP` rollouts: turns, turns per second, CPU microseconds per turn with and without the loop."""
    env: ForkableEnv[Any] = gymnasium.make("trace_gym/Math-v0").unwrapped  # type: ignore[assignment]
    pool = env.tasks("train")[: 1 if one_tree else tasks]
    ctx = plant_trees(env, pool, RENDERER, RunContext(seed=0, tasks=()), 0, Budget())
    wall, cpu = time.perf_counter(), time.process_time()
    grow_trees(
        _OneTree(tasks * GROUP) if one_tree else _Pool(),
        ctx,
        engine=ScriptedEngine(_script),
        renderer=RENDERER,
        env=env,
        settings=RolloutSettings(max_tokens=128),
        ledger=Ledger(),
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    turns = sum(len(tree) - 1 for tree in ctx.trees.values())
    return {
        "turns": float(turns),
        "turns per second": turns / wall,
        "CPU µs per turn": 1e6 * cpu / turns,
        "of that the environment": 1e6 * _environment_alone(env, ctx) / turns,
    }


def _environment_alone(env: ForkableEnv[Any], ctx: StepContext) -> float:
    """CPU seconds for the very actions of the step's trees, in one thread: step, snapshot and state key, as the loop does."""
    start = time.process_time()
    for tree in ctx.trees.values():
        for index, node in enumerate(tree.nodes[1:], 1):
            if index == 1 or node.parent != index - 1:  # a rollout's turns follow one another
                begins_at = tree[node.parent].snapshot
                assert begins_at is not None
                env.restore(begins_at, seed=index)
            env.step(node.action)
            env.state_key()
            if node.status == "running":
                env.snapshot()
    return time.process_time() - start


def loop_alone(*, quick: bool) -> dict[str, dict[str, float]]:
    """Medians of three (quick: one), shape by shape and size by size."""
    sizes, repeats = ((8, 16), 1) if quick else ((128, 1024), 3)
    cases = {
        f"{'one forked tree' if one_tree else 'pool of trees'}, {tasks * GROUP:,} rollouts": (tasks, one_tree)
        for one_tree in (False, True)
        for tasks in sizes
    }
    runs = [
        {name: scripted(tasks, one_tree=one_tree) for name, (tasks, one_tree) in cases.items()}
        for _ in range(repeats)
    ]
    return {
        name: {key: statistics.median(run[name][key] for run in runs) for key in runs[0][name]}
        for name in cases
    }


# ---- a whole step ---------------------------------------------------------------------------------------------------

ENV_ID = "trace_gym_bench/Lottery-v0"
STEPS = 2  # of each algorithm
SETTING = (
    *SMOLLM2,
    f"env.id={ENV_ID}",
    "env.options.max_turns=2",
    "rollout.max_tokens=32",
    "eval.tasks=0",
    "log.checkpoint_every_steps=0",
    "log.trees_every_steps=1",
)
TRACE = ("algorithm.name=trace", "algorithm.pool=64", "algorithm.warmup_steps=0")
ARMS = {
    "grpo": ("algorithm.name=grpo",),
    "trace": (*TRACE, "algorithm.rollouts=16"),
    "trace, forking": (
        *TRACE,
        "algorithm.rollouts=8",
        "algorithm.prefix_stage=active",
        "algorithm.continuations=2",
    ),
}
ENGINE, TRAINING = ("engine", "env_wait"), ("update",)
PHASES = ("plant", "plan", *ENGINE, "algorithm", *TRAINING, "load", "log")


class LotteryEnv(MathEnv):
    """Math-v0 that never ends before its turn limit, and then by lot."""

    env_id: ClassVar[str] = ENV_ID

    def advance(self, state: MathState, action: str, rng: np.random.Generator) -> Turn[MathState]:
        turn = super().advance(state, action, rng)
        if self._turns_left > 1:
            return Turn.go(turn.state, turn.observation, extra=turn.extra)
        won = bool(zlib.crc32(action.encode()) & 1)
        return Turn.end(turn.state, turn.observation, success=won, extra=turn.extra)


gymnasium.register(
    ENV_ID, entry_point=f"{__name__}:LotteryEnv", order_enforce=False, disable_env_checker=True
)


class _Stopwatch(Silent):
    """Watches `train`: a row of seconds and tokens per step. `stop` is asked just before each step, so it starts the clock."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.rows: list[dict[str, float]] = []
        self._ledger, self._before = Ledger(), Ledger()
        self._start = 0.0

    def stop(self) -> bool:
        self._start = time.perf_counter()
        self._before = copy.deepcopy(self._ledger)
        return len(self.rows) == self.steps

    def progress(self, ctx: StepContext, ledger: Ledger) -> None:
        self._ledger = ledger

    def step(self, metrics: Mapping[str, float]) -> None:
        wall = time.perf_counter() - self._start
        before = self._before.seconds
        phases = {name: self._ledger.seconds.get(name, 0.0) - before.get(name, 0.0) for name in PHASES}
        spent = self._ledger.total - self._before.total
        row = {"step": wall, **phases, "the rest": wall - sum(phases.values())}
        self.rows.append(row | {"policy tokens": float(spent.policy_tokens), "turns": float(spent.env_steps)})


def whole_steps(*, quick: bool) -> dict[str, Any]:
    """Steps of each algorithm, one run after another; rows of seconds by phase."""
    steps = 1 if quick else STEPS
    rows: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        policy = untrained(Path(folder) / "policy") if quick else (f"policy.path={BASE}",)
        for name, words in ARMS.items():
            watch = _Stopwatch(steps)
            own = (*policy, *words, f"budget.steps={steps + 1}", f"out={folder}/runs")
            train(load_config(None, [*SETTING, *own]), watch, stop=watch.stop)
            rows[name] = watch.rows
    return {
        "policy": "an untrained tiny one" if quick else BASE,
        "arms": {k: _summary(v) for k, v in rows.items()},
    }


def untrained(folder: Path) -> tuple[str, ...]:
    """Settings of a policy that is there at once, for a quick look at the machinery."""
    tokenizer = make_tokenizer(["What is 1 + 2 ?"])
    save(folder, make_model(tokenizer, d=32, layers=1, heads=2, seed=0), tokenizer)
    return (f"policy.path={folder}", "policy.lora.rank=0", "policy.dtype=float32")


def _summary(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Medians over steps, and shares of the whole: what engine, environment and training leave, and what TRACE adds."""
    out = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    wall = sum(row["step"] for row in rows)
    used = sum(row[name] for row in rows for name in (*ENGINE, *TRAINING))
    own = sum(row["plan"] + row["algorithm"] for row in rows)
    return out | {"steps": float(len(rows)), "overhead": 1.0 - used / wall, "plan and algorithm": own / wall}


# ---- both -----------------------------------------------------------------------------------------------------------


def measure(*, quick: bool = False) -> dict[str, Any]:
    """The loop alone, and whole steps."""
    return {"loop": loop_alone(quick=quick), "steps": whole_steps(quick=quick), "about": environment_facts()}


def page(found: Mapping[str, Any]) -> str:
    """The measurement as Markdown."""
    lines = ["# What a step costs", "", *(__doc__ or "").strip().splitlines(), "", "## The loop alone", ""]
    columns = list(next(iter(found["loop"].values())))
    lines += ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name, row in found["loop"].items():
        lines.append(f"| {name} | " + " | ".join(f"{row[key]:,.0f}" for key in columns) + " |")
    arms = found["steps"]["arms"]
    grpo = arms["grpo"]
    others = [name for name in arms if name != "grpo"]
    lines += ["", f"## A whole step: {found['steps']['policy']}", ""]
    lines += [f"Medians of {grpo['steps']:.0f} steps each, in seconds; in brackets the ratio to GRPO.", ""]
    lines += ["| | grpo | " + " | ".join(others) + " |", "|---|" + "---|" * len(arms)]
    for key in ("policy tokens", "turns", "step", *PHASES, "the rest"):
        digits = 0 if key in ("policy tokens", "turns") else 3
        cells = [f"{grpo[key]:,.{digits}f}"]
        for name in others:
            ratio = f" ({arms[name][key] / grpo[key]:.2f})" if grpo[key] > 0.01 else ""
            cells.append(f"{arms[name][key]:,.{digits}f}{ratio}")
        lines.append(f"| {key} | {' | '.join(cells)} |")
    for key, title in SHARES.items():
        lines.append(f"| *{title}* | " + " | ".join(f"{arms[name][key]:.2%}" for name in arms) + " |")
    lines += ["", "Machine and versions: " + ", ".join(f"{k} {v}" for k, v in found["about"].items())]
    return "\n".join(lines) + "\n"


SHARES = {
    "overhead": "share of the step outside engine, environment and update",
    "plan and algorithm": "share of plan and algorithm: predict, solve, learn, and credit and packing besides",
}
