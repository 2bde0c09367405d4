"""DAPO: groups of a single outcome are replaced until enough can teach (Yu et al. 2025, arXiv 2503.14476).

    A_i = (r_i - mean(r)) / std(r)                                    every token of rollout i
    J   = 1 / sum_i |o_i|  sum_i sum_t  min(rho A, clip(rho, 1 - 0.2, 1 + 0.28) A)
          subject to 0 < |{i: rollout i is right}| < G                dynamic sampling

Prompts are opened in pool order (the pool is a random draw of the split): `prompts` groups at the start, then one more for
every group that has ended with one outcome, until `prompts` groups hold both, or the pool or the budget is used up. Dropped
groups were paid for and are billed; only mixed ones get credit. Which prompts are opened does not depend on the order in which
groups end, for each one that fails opens exactly one.

Deviations: the published code samples batches of a fixed number of prompts and throws the surplus of mixed groups away; here
none is made. Overlong reward shaping is left out. No KL term, as in the paper. The objective, its constraint and 0.28 were
checked against TreePO's restatement (arXiv 2508.17445, equation 1) and public implementations, not the paper's own text. The
pool has to be larger than `prompts`, or there is nothing to replace with.

    trace-gym train policy.path=POLICY algorithm.name=dapo algorithm.prompts=8 algorithm.pool=24
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trace_gym.algorithm import Algorithm, Branch, Credit, StepContext
from trace_gym.algorithms.credit import Scaling, credit_trees
from trace_gym.algorithms.waves import at_least_two
from trace_gym.errors import ConfigError

__all__ = ["DAPO"]


@dataclass(kw_only=True)
class DAPO(Algorithm):
    """Groups until enough of them are mixed, asymmetric clipping, token-level loss."""

    pool: int = 24  # tasks that may be opened in a step
    prompts: int = 8  # mixed groups wanted per step
    group: int = 8  # rollouts per prompt
    clip_high: float = 0.28
    scale: Scaling = "group_std"

    def __post_init__(self) -> None:
        at_least_two(self.group)
        if self.prompts < 1:
            raise ConfigError(f"algorithm.prompts={self.prompts}: ask for one mixed group or more")

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        poor = {task for task, tree in ctx.trees.items() if len(tree) > 1 and not tree.mixed()}
        before = self.prompts + len(poor.difference(ctx.idle)) if ctx.idle else 0
        return [Branch(task, count=self.group) for task in ctx.pool[before : self.prompts + len(poor)]]

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        mixed = {task: tree for task, tree in ctx.trees.items() if tree.mixed()}
        return credit_trees(mixed, mode="group", weights="turn", scale=self.scale)
