"""RLOO: each rollout judged against the mean of the others (Ahmadian et al. 2024, arXiv 2402.14740).

    A_i = r_i - 1/(k-1) * sum_{j != i} r_j      for the k rollouts i of one prompt; every turn of rollout i gets A_i

`normalise="constant"` makes the loss the paper's, mean over rollouts of A_i * log pi(rollout i), up to a constant factor.
Deviations: a KL term, where wanted, is part of the loss instead of the reward (`kl`); with more than one minibatch the
ratio is clipped. Rollouts that failed or were censored do not count, and a rollout that is left alone has no baseline.

    trace-gym train policy.path=policy algorithm.name=rloo_example algorithm.rollouts=4
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trace_gym.algorithm import Algorithm, Branch, Credit, Normalise, StepContext
from trace_gym.tree import Tree

__all__ = ["RLOO", "leave_one_out"]


def leave_one_out(tree: Tree) -> npt.NDArray[np.float64]:
    """[N] return of the rollout through each node less the mean of the others; nan where either is missing.

    The rollouts share nothing but the prompt, so the value of a turn is its rollout's return, and the prompt's their mean.
    """
    value, k = tree.values(), int(tree.draws()[0])  # k rollouts are scored
    if k < 2:
        return np.full(len(tree), np.nan)
    others = (k * float(value[0]) - value) / (k - 1)
    return value - others


@dataclass(kw_only=True)
class RLOO(Algorithm):
    """Equal numbers of rollouts for all tasks, leave-one-out baselines."""

    rollouts: int = 4  # per task: k
    normalise: Normalise = "constant"

    def __post_init__(self) -> None:
        if self.rollouts < 2:
            raise ValueError(
                f"rollouts must be at least 2, for one has no other to be judged by, not {self.rollouts}"
            )

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        if ctx.idle:  # asked again because trees have ended: there is nothing to add
            return []
        return [Branch(task, count=self.rollouts) for task in ctx.pool]

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        return {task: Credit(leave_one_out(tree), np.ones(len(tree))) for task, tree in ctx.trees.items()}
