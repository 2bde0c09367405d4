"""RLOO: each rollout judged against the mean of the prompt's others (Ahmadian et al. 2024, arXiv 2402.14740).

    A_i = r_i - 1/(k-1) sum_{j != i} r_j        for the k rollouts i of one prompt; every turn of rollout i gets A_i

The baseline never holds the rollout's own reward, so the gradient is unbiased, and nothing is divided by a deviation.
`normalise="constant"` makes the loss the paper's, mean over rollouts of A_i log pi(rollout i), up to a constant factor.

Deviations: the paper subtracts a KL penalty from the reward; here it is a term of the loss (`kl`, off by default). With
several minibatches the ratio is clipped. Rollouts that failed or were censored do not count; one that is left alone has no
baseline and teaches nothing. The formula was checked against documentation of other implementations, not the paper's own text.

    trace-gym train policy.path=POLICY algorithm.name=rloo algorithm.group=8
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trace_gym.algorithm import Algorithm, Branch, Credit, Normalise, StepContext
from trace_gym.algorithms.credit import credit_trees
from trace_gym.algorithms.waves import at_least_two

__all__ = ["RLOO"]


@dataclass(kw_only=True)
class RLOO(Algorithm):
    """Uniform groups of rollouts, leave-one-out baselines."""

    group: int = 8  # rollouts per prompt
    normalise: Normalise = "constant"

    def __post_init__(self) -> None:
        at_least_two(self.group)

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        return [] if ctx.idle else [Branch(task, count=self.group) for task in ctx.pool]

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        return credit_trees(ctx.trees, mode="loo", weights="turn", scale="none")
