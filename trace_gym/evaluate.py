"""How often a policy succeeds on tasks: rollouts from the prompt, nothing learned, nothing billed to a training budget."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trace_gym.actor import Actor, build_actor
from trace_gym.algorithm import Algorithm, Branch, Credit, Metrics, RunContext, StepContext
from trace_gym.config import TrainConfig
from trace_gym.engine import Engine
from trace_gym.env import ForkableEnv
from trace_gym.ledger import Budget, Cost, Ledger
from trace_gym.observer import Observer, Silent
from trace_gym.render import Renderer
from trace_gym.rollout import RolloutSettings, grow_trees, plant_trees
from trace_gym.seeding import derive_seed
from trace_gym.tree import Node, Tree

__all__ = [
    "Evaluation",
    "evaluate",
    "evaluate_actor",
    "evaluate_policy",
    "evaluation_row",
    "summarise",
    "wilson",
]

WAVE = 256  # tasks grown at a time: bounds what waits in the engine


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Success over tasks. Rollouts that could not be scored are counted apart, not as failures."""

    tasks: int
    rollouts: int
    unscored: int
    success: float  # mean over tasks of the mean over draws; nan when nothing was scored
    low: float  # 95 % Wilson interval with one observation a task
    high: float
    format_error_rate: float  # share of turns that the environment could not parse
    mean_turns: float
    groups: dict[str, tuple[int, float]] = field(
        default_factory=dict
    )  # (tasks, success) by the task id up to its last "/"
    cost: Cost = field(default_factory=Cost)


@dataclass(kw_only=True)
class _Draws(Algorithm):
    """`draws` rollouts of every task."""

    draws: int = 1

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        return [] if ctx.idle else [Branch(task, count=self.draws) for task in ctx.pool]

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        return {}


def evaluate(
    env: ForkableEnv[Any],
    tasks: Sequence[str],
    *,
    engine: Engine,
    renderer: Renderer,
    settings: RolloutSettings,
    draws: int = 1,
    greedy: bool = False,
    seed: int = 0,
    observer: Observer | None = None,
) -> Evaluation:
    """Roll every task out `draws` times at the settings' temperature, or once greedily."""
    observer = observer or Silent()
    if greedy:
        settings, draws = replace(settings, temperature=0.0), 1
    run = RunContext(seed=seed, tasks=tasks)
    ledger = Ledger()
    trees: list[Tree] = []
    unplanted = 0
    for wave, first in enumerate(range(0, len(tasks), WAVE)):
        ctx = plant_trees(env, tasks[first : first + WAVE], renderer, run, wave, Budget())
        algorithm = _Draws(draws=draws)
        grow_trees(
            algorithm,
            ctx,
            engine=engine,
            renderer=renderer,
            env=env,
            settings=settings,
            ledger=ledger,
            progress=lambda ctx: observer.progress(ctx, ledger),
        )
        trees += ctx.trees.values()
        unplanted += len(ctx.unplanted)
        for task, reason in ctx.unplanted.items():
            observer.note(f"task {task} left out: {reason}")
    found, lost = summarise(trees), unplanted * draws
    return replace(
        found,
        tasks=found.tasks + unplanted,
        rollouts=found.rollouts + lost,
        unscored=found.unscored + lost,
        cost=ledger.total,
    )


def evaluate_actor(
    actor: Actor, config: TrainConfig, *, greedy: bool, observer: Observer | None = None
) -> Evaluation:
    """The evaluation that `config.eval` asks for: the same tasks and seeds every time it is called."""
    return evaluate(
        actor.env,
        actor.eval_tasks(config.eval.split, config.eval.tasks),
        engine=actor.engine,
        renderer=actor.renderer,
        settings=actor.settings,
        draws=config.eval.draws,
        greedy=greedy,
        seed=derive_seed(config.seed, "evaluation"),  # never a stream of training's
        observer=observer,
    )


def evaluate_policy(
    config: TrainConfig, *, greedy: bool = False, observer: Observer | None = None
) -> Evaluation:
    """Load `config.policy` and evaluate it. Raises `ConfigError` for a policy or an environment that cannot be had."""
    actor = build_actor(config)
    for notice in actor.env.notices():
        (observer or Silent()).note(notice)
    try:
        return evaluate_actor(actor, config, greedy=greedy, observer=observer)
    finally:
        actor.engine.close()


def evaluation_row(prefix: str, evaluation: Evaluation) -> Metrics:
    """The evaluation's numbers as metrics whose names begin with `prefix`."""
    names = ("success", "low", "high", "format_error_rate", "mean_turns", "unscored")
    return {f"{prefix}_{name}": float(getattr(evaluation, name)) for name in names}


def summarise(trees: Sequence[Tree]) -> Evaluation:
    """The evaluation that finished trees amount to."""
    means: list[float] = []
    groups: dict[str, list[float]] = defaultdict(list)
    turns = errors = leaves = scored = 0
    for tree in trees:
        ends = [tree[leaf] for leaf in tree.leaves()]
        outcomes = [float(_solved(node)) for node in ends if node.scored]
        leaves += len(ends)
        scored += len(outcomes)
        turns += len(tree) - 1
        errors += sum(node.format_error for node in tree.nodes)
        if outcomes:
            means.append(sum(outcomes) / len(outcomes))
            groups[tree.task_id.rpartition("/")[0]].append(means[-1])
    success = sum(means) / len(means) if means else math.nan
    low, high = wilson(success, len(means))
    return Evaluation(
        tasks=len(trees),
        rollouts=leaves,
        unscored=leaves - scored,
        success=success,
        low=low,
        high=high,
        format_error_rate=errors / turns if turns else math.nan,
        mean_turns=turns / leaves if leaves else math.nan,
        groups={name: (len(g), sum(g) / len(g)) for name, g in sorted(groups.items())},
    )


def _solved(node: Node) -> bool:
    """What the environment says; where it says nothing, whether the last reward is positive."""
    return node.reward > 0 if node.success is None else node.success


def wilson(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval for a share of `n` (E. B. Wilson 1927); (nan, nan) when n is 0.

    With several draws a task, `n` is the number of tasks: means of draws vary less than single draws, so the interval is
    wider than needed, never narrower.
    """
    if n == 0:
        return math.nan, math.nan
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)
