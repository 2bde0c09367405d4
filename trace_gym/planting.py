"""How a step's trees begin: one per task, holding its prompt alone.

Every rollout of a task starts from its prompt's snapshot, so all of them see the same prompt. A task whose `reset` breaks is
left out of the step, and told.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from trace_gym.algorithm import RunContext, StepContext
from trace_gym.env import ForkableEnv
from trace_gym.errors import EnvironmentContractError, PluginError, TraceGymError
from trace_gym.guard import said
from trace_gym.ledger import Budget, Purse
from trace_gym.render import Renderer
from trace_gym.seeding import derive_seed
from trace_gym.tree import Node, Tree
from trace_gym.workers import Workers

__all__ = ["plant_trees"]

RESET_DEADLINE_S = 300.0  # for beginning a task: an environment may load its data in its first reset


def plant_trees(
    env: ForkableEnv[Any],
    tasks: Sequence[str],
    renderer: Renderer,
    run: RunContext,
    step: int,
    budget: Budget,
) -> StepContext:
    """The step's pool: one tree per task. Raises `TaskError` for an unknown task.

    A task whose `reset` breaks stands in `unplanted`; where none is left, or `reset` does not answer,
    `EnvironmentContractError`.
    """
    ctx = StepContext(run=run, step=step, trees={}, purse=Purse(budget))
    workers: Workers[Tree] = Workers(1)
    try:
        for number, task in enumerate(tasks):
            if task in ctx.trees or task in ctx.unplanted:
                raise PluginError(f"task {task!r} stands twice in one pool; a step grows one tree per task")
            seed = derive_seed(run.seed, "reset", step, task)
            workers.put(number, partial(_plant, env, task, renderer, seed))
            done = next(iter(workers.take(RESET_DEADLINE_S)), None)
            if done is None:
                raise EnvironmentContractError(
                    f"reset of task {task!r} gave no answer within {RESET_DEADLINE_S:g} s"
                )
            if done.result is not None:
                ctx.trees[task] = done.result
            elif isinstance(done.error, TraceGymError):
                raise done.error
            else:
                ctx.unplanted[task] = f"environment: {said(done.error)}"
    finally:
        workers.close()
    if ctx.unplanted and not ctx.trees:
        raise EnvironmentContractError(f"no task could begin ({next(iter(ctx.unplanted.values()))})")
    return ctx


def _plant(env: ForkableEnv[Any], task: str, renderer: Renderer, seed: int) -> Tree:
    observation, info = env.reset(seed=seed, options={"task": task})
    tokens = renderer.prompt(observation, system=info["system"], tools=info["tools"])
    prompt = Node.prompt(tokens, observation, env.snapshot(), state_key=env.state_key())
    return Tree(task, [prompt])
