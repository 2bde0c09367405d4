"""GRPO: groups of rollouts from the prompt, each judged against its group (DeepSeekMath, arXiv 2402.03300, section 4.1).

    A_i = (r_i - mean(r)) / (std(r) + eps)      for the rollouts i of one prompt; every turn of rollout i gets A_i

Deviations from the paper: one optimiser epoch and no KL term by default, token-level normalisation by default
(`normalise="sequence"` is the paper's), and `scale="none"` gives the unscaled advantage of Dr. GRPO (arXiv 2503.20783).
Rollouts that failed or were censored are left out of the group. `advantage` takes any other rule of `credit.py`, so that a
rule can be compared without its allocation.

    trace-gym train policy.path=POLICY algorithm.name=grpo algorithm.group=8
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trace_gym.algorithm import Algorithm, Branch, Credit, StepContext
from trace_gym.algorithms.credit import CreditMode, NodeWeights, Scaling, credit_trees
from trace_gym.errors import ConfigError

__all__ = ["GRPO"]


@dataclass(kw_only=True)
class GRPO(Algorithm):
    """Uniform groups of rollouts, group-normalised advantages."""

    group: int = 8  # rollouts per prompt
    advantage: CreditMode = "group"
    weights: NodeWeights = "turn"
    scale: Scaling = "group_std"

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
        return credit_trees(ctx.trees, mode=self.advantage, weights=self.weights, scale=self.scale)
