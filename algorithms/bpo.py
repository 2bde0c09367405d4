"""BPO: one backbone per prompt, forked before the turns where the policy was least sure (He et al. 2026, arXiv 2607.14171).

    backbone -> its `forks` turns of highest entropy, the last one excepted -> K - 1 siblings from the state before each;
    1 + M (K-1) leaves in all.   A_sibling = R - mean of the other siblings' R, for the turns below the fork

`group` is that number of leaves; the siblings are spread evenly over the forks, the most uncertain first.

Deviations. The paper carries a sibling's advantage up the shared prefix with a factor 0.95 a turn; the siblings' sum is 0, so
on policy these parts cancel and teach the prefix nothing. Here (rule `edge` of credit.py) a turn without siblings takes the
baseline of the nearest fork above it, the first turns of the backbone have none and are left out, and a backbone turn has the
mean of what lies below it for its value. `advantage` takes any other rule. Entropy is estimated from the sampled tokens (mean
of -log-prob over the turn, or its first `window`). A backbone of one turn is forked at the prompt. Known from notes on the
paper and a third party's code (excluded last turn, 0.95, number of leaves), not from its text.

    trace-gym train policy.path=POLICY algorithm.name=bpo algorithm.group=8 algorithm.forks=2
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trace_gym.algorithm import Algorithm, Branch, Credit, StepContext
from trace_gym.algorithms.credit import CreditMode, NodeWeights, Scaling, credit_trees
from trace_gym.algorithms.waves import at_least_two, grow_to, surprise
from trace_gym.errors import ConfigError
from trace_gym.tree import Tree

__all__ = ["BPO"]


@dataclass(kw_only=True)
class BPO(Algorithm):
    """One backbone, siblings at its most uncertain turns, leave-one-out among them."""

    group: int = 8  # leaves per prompt, the backbone's included
    forks: int = 2  # turns forked at, at most: M
    window: int = 0  # tokens of a turn that its entropy is estimated from; 0 is all
    advantage: CreditMode = "edge"
    weights: NodeWeights = "path"
    scale: Scaling = "none"

    def __post_init__(self) -> None:
        at_least_two(self.group)
        if self.forks < 1 or self.window < 0:
            raise ConfigError("algorithm bpo: forks is at least 1, window at least 0")

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        def wave(task: str, tree: Tree, wanted: int) -> Iterable[int]:
            nodes = self.fork_nodes(tree)
            return [nodes[i % len(nodes)] for i in range(wanted)]

        return grow_to(ctx, self.group, first=1, wave=wave)

    def fork_nodes(self, tree: Tree) -> list[int]:
        """The states before the backbone's most uncertain turns; equals in the order of the turns."""
        turns = [1]  # the first rollout's: it was appended whole
        while turns[-1] + 1 < len(tree) and tree[turns[-1] + 1].parent == turns[-1]:
            turns.append(turns[-1] + 1)
        unsure = {turn: surprise(tree[turn], self.window) for turn in turns[:-1] or turns}
        able = {0, *tree.anchors()}
        ranked = sorted(unsure, key=lambda turn: -np.nan_to_num(unsure[turn], nan=-1.0))
        return [tree[t].parent for t in ranked if tree[t].parent in able][: self.forks] or [0]

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        return credit_trees(ctx.trees, mode=self.advantage, weights=self.weights, scale=self.scale)
