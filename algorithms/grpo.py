"""GRPO: groups of rollouts from the prompt, each judged against its group (DeepSeekMath, arXiv 2402.03300, section 4.1).

    A_i = (r_i - mean(r)) / (std(r) + eps)      for the rollouts i of one prompt; every turn of rollout i gets A_i

Deviations from the paper: one optimiser epoch and no KL term by default, token-level normalisation by default
(`normalise="sequence"` is the paper's), and `scale="none"` gives the unscaled advantage of Dr. GRPO (arXiv 2503.20783).
Rollouts that failed or were censored are left out of the group. On a tree that branches below the prompt every node takes
the mean over the rollouts through it.

    trace-gym train policy.path=POLICY algorithm.name=grpo algorithm.group=8
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from trace_gym.algorithm import Algorithm, Branch, Credit, StepContext
from trace_gym.errors import ConfigError
from trace_gym.tree import Tree

__all__ = ["GRPO", "group_advantage"]

Scale = Literal["group_std", "none"]
SAME = 1e-9  # a spread below this is rounding: the group has one outcome
EPSILON = 1e-6  # keeps a group with a tiny spread finite; the spread of 0/1 rewards is far larger


def group_advantage(tree: Tree, scale: Scale) -> npt.NDArray[np.float64]:
    """[N] group-normalised return of each leaf, averaged over the leaves below each node; nan where none is scored.

    The standard deviation is the group's sample deviation (n - 1), as in the trainers in use; 0 for a single rollout.
    """
    returns = tree.returns()
    scored = ~np.isnan(returns)
    spread = float(returns[scored].std(ddof=1)) if scored.sum() > 1 else 0.0
    centred = returns - returns[scored].mean() if scored.any() else returns
    if spread < SAME:
        centred = 0.0 * centred  # exactly 0: rounding must not pass for a lesson
    return _mean_over_rollouts(tree, centred / (spread + EPSILON if scale == "group_std" else 1.0))


def _mean_over_rollouts(tree: Tree, leaf_values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[N] mean of the leaves' values over the scored rollouts through each node; nan where there is none."""
    count = (~np.isnan(leaf_values)).astype(np.float64)
    total = np.nan_to_num(leaf_values, nan=0.0)
    for index in range(len(tree) - 1, 0, -1):
        parent = tree[index].parent
        total[parent] += total[index]
        count[parent] += count[index]
    return np.where(count > 0, total / np.maximum(count, 1.0), np.nan)


@dataclass(kw_only=True)
class GRPO(Algorithm):
    """Uniform groups of rollouts, group-normalised advantages."""

    group: int = 8  # rollouts per prompt
    scale: Scale = "group_std"

    def __post_init__(self) -> None:
        if self.group < 2:
            raise ConfigError(
                f"algorithm.group={self.group}: a group of one has nothing to compare with; use 2 or more"
            )

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        if ctx.idle:
            return []
        return [Branch(task, count=self.group) for task in ctx.pool]

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        return {
            task: Credit(group_advantage(tree, self.scale), np.ones(len(tree)))
            for task, tree in ctx.trees.items()
            if tree.outcomes()
        }
