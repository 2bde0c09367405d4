"""Algorithms at work on the noisy walk: whole steps by `grow_trees`, with a scripted policy of varying certainty."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.support.walk import RENDERER, Walk, WalkEnv, walker
from trace_gym.algorithm import Algorithm, Credit, RunContext, StepContext, check_credits
from trace_gym.engine import Completion, Engine, ScriptedEngine
from trace_gym.env import Opening
from trace_gym.ledger import Budget, Ledger
from trace_gym.rollout import RolloutSettings, grow_trees, plant_trees

SETTINGS = RolloutSettings(max_tokens=16, threads=1)
Choose = Callable[[np.random.Generator], str]


class Moody(ScriptedEngine):
    """Log-probs differ from token to token, by the request's seed."""

    def _complete(self, request_id: int) -> Completion:
        seed = self._waiting[request_id].seed
        done = super()._complete(request_id)
        done.logprobs[:] = -np.random.default_rng(seed).exponential(size=len(done.logprobs))
        return done


class WideWalk(WalkEnv):
    """Nine tasks, none of them far: the goal is the task's number modulo 3."""

    def tasks(self, split: str) -> Sequence[str]:
        super().tasks(split)
        return tuple("123456789")

    def begin(self, task_id: str, rng: np.random.Generator) -> Opening[Walk]:
        goal = int(task_id) % 3
        return Opening(Walk(0, goal), f"walk to {goal}", turn_limit=self.turn_limit)


def stroll(rng: np.random.Generator) -> str:
    """Stops in time often enough to show both outcomes."""
    return str(rng.choice(["+", "+", "-", "stop", "stop", "what?"]))


def grow(
    algorithm: Algorithm,
    *,
    choose: Choose = stroll,
    order: int | None = None,
    seed: int = 0,
    step: int = 0,
    budget: Budget | None = None,
    env: WalkEnv | None = None,
    pool: Sequence[str] | None = None,
    oracle: Any = None,
    started: bool = False,
    engine: Engine | None = None,
) -> StepContext:
    """One step. `order` seeds the order of completions, two at a time; None is first come first served."""
    env = env or WideWalk()
    run = RunContext(seed=seed, tasks=env.tasks("train"))
    shuffle = None if order is None else np.random.default_rng(order)
    engine = engine or Moody(walker(choose), shuffle=shuffle, burst=None if order is None else 2)
    if not started:
        algorithm.start(run)
    ctx = plant_trees(env, pool or run.tasks[:4], RENDERER, run, step, budget or Budget())
    ctx.oracle = oracle
    ledger = Ledger()
    grow_trees(algorithm, ctx, engine=engine, renderer=RENDERER, env=env, settings=SETTINGS, ledger=ledger)
    assert ledger.total == ctx.purse.spent
    return ctx


def credits_of(algorithm: Algorithm, ctx: StepContext) -> dict[str, Credit]:
    """What the step teaches, once it has passed the check that the trainer makes."""
    algorithm.observe(ctx)
    credits = dict(algorithm.credit(ctx))
    check_credits(ctx, credits, type(algorithm).__name__)
    return credits


def sizes(ctx: StepContext) -> list[int]:
    """Rollouts of each task, in pool order."""
    return [len(tree.leaves()) for tree in ctx.trees.values()]


def forked(ctx: StepContext, task: str) -> list[int]:
    """The nodes other than the prompt that have several children."""
    return [i for i, below in enumerate(ctx.trees[task].children()) if i and len(below) > 1]
