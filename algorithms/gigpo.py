"""GiGPO: rollouts judged against their group, turns against others from the same state (Feng et al. 2025, arXiv 2505.10978).

    A_E(i)    = (R_i - mean R) / F            over the prompt's rollouts                                (equation 3)
    R_(i,t)   = sum_{k >= t} gamma^(k-t) r_(i,k)                                                        (equation 5)
    A_S(i,t)  = (R_(i,t) - mean) / F          over the turns of the prompt's rollouts taken in one state (equations 6, 7)
    A(i,t)    = A_E(i) + omega A_S(i,t)                                                                 (equation 8)

F is the group's standard deviation, or 1 (`scale`). Equal states are equal `state_key`s of the nodes that turns left from; a
state that was met once gives 0. So a success that came sooner, from the same state, counts for more, without a critic.

Deviations: the authors' code takes mean and deviation of the episodes over all of their *turns*, so that long ones weigh more,
and F = 1 by default; here they are the paper's. It also offers grouping of similar, unequal states: left out. A turn of a
rollout that failed or was censored is in no group. Formulas and the handling of single states were checked in that code.

    trace-gym train policy.path=POLICY algorithm.name=gigpo algorithm.group=8 algorithm.omega=1
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from trace_gym.algorithm import Algorithm, Branch, Credit, StepContext
from trace_gym.algorithms.credit import EPSILON, SAME, credit_trees
from trace_gym.algorithms.waves import at_least_two
from trace_gym.errors import ConfigError
from trace_gym.tree import Tree

__all__ = ["GiGPO", "discounted_returns", "step_advantages"]

Floats = npt.NDArray[np.float64]


def discounted_returns(tree: Tree, gamma: float) -> Floats:
    """[N] discounted rewards from each turn to the end of the rollout that sampled it; nan where that was not scored."""
    returns = np.full(len(tree), np.nan)
    for index in range(len(tree) - 1, 0, -1):
        node = tree[index]
        if node.scored:
            returns[index] = node.reward
        if node.parent > 0:  # first children come last here, and those sampled their parent's rollout
            returns[node.parent] = tree[node.parent].reward + gamma * returns[index]
    return returns


def step_advantages(tree: Tree, gamma: float, *, deviation: bool) -> Floats:
    """[N] a turn's discounted return against those of the other turns taken in equal states; nan where not scored."""
    returns = discounted_returns(tree, gamma)
    groups: dict[str, list[int]] = defaultdict(list)
    for index in np.flatnonzero(~np.isnan(returns)):
        groups[tree[tree[int(index)].parent].state_key].append(int(index))
    advantage = 0.0 * returns
    for turns in groups.values():
        values = returns[turns]
        if np.ptp(values) > SAME:
            spread = float(values.std(ddof=1)) + EPSILON if deviation else 1.0
            advantage[turns] = (values - values.mean()) / spread
    return advantage


@dataclass(kw_only=True)
class GiGPO(Algorithm):
    """Groups of rollouts, and groups of turns from equal states."""

    group: int = 8  # rollouts per prompt
    omega: float = 1.0  # weight of the step advantage
    gamma: float = 0.95  # discount per turn, of the step returns
    scale: Literal["none", "group_std"] = "group_std"

    def __post_init__(self) -> None:
        at_least_two(self.group)
        if not 0 <= self.gamma <= 1:
            raise ConfigError(f"algorithm.gamma={self.gamma}: a discount is from 0 to 1")

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        return [] if ctx.idle else [Branch(task, count=self.group) for task in ctx.pool]

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        episode = credit_trees(ctx.trees, mode="group", weights="turn", scale=self.scale)
        scaled = self.scale == "group_std"
        return {
            task: Credit(
                c.advantage + self.omega * step_advantages(ctx.trees[task], self.gamma, deviation=scaled),
                c.weight,
            )
            for task, c in episode.items()
        }
