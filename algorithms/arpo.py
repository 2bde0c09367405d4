"""ARPO-style: branch where the policy is less sure after a tool has answered (Dong et al. 2025, arXiv 2507.19849).

    H(turn)  = entropy over its first `window` tokens      dH = H(turn after a tool's answer) - H(the rollout's first turn)
    P(branch from that answer) = clip(base + slope dH, 0, 1)
    A of a turn = mean over the leaves that share it of (r - mean(r)) / std(r)       "soft": GRPO on every path

`first` rollouts of a prompt, then one branch from each turn's answer that draws it, until `group` leaves; what is still
missing starts again from the prompt, as in the published code. GRPO on every path counts a turn once for each leaf:
`weights="leaf"`.

Deviations. The paper decides while it generates; here rollouts are whole, so the turn after the answer is there to be measured
and the branch leaves from the answer before it, whoever gave it (the published code branches one turn later than the paper's
text). The entropy is estimated from sampled tokens in nats (mean of -log-prob), where the published code bags the ten
likeliest tokens of 20 positions and divides by log of the vocabulary; so `slope` is not on its scale. The paper writes alpha +
beta dH against a threshold tau; the clip form with 0.5 and 0.2 is the published code's, as analysed by others, and its
published half of the group is `first`. A branch's own turns can branch in turn. Extra reward for several tools: left out.

    trace-gym train policy.path=POLICY algorithm.name=arpo algorithm.group=8 algorithm.first=4
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trace_gym.algorithm import Algorithm, Branch, Credit, StepContext
from trace_gym.algorithms.credit import NodeWeights, Scaling, credit_trees
from trace_gym.algorithms.waves import at_least_two, grow_to, surprise
from trace_gym.errors import ConfigError
from trace_gym.tree import Tree

__all__ = ["ARPO"]


@dataclass(kw_only=True)
class ARPO(Algorithm):
    """Branches at answers after which the policy is less sure than at the start."""

    group: int = 8  # leaves per prompt
    first: int = 4  # of them rollouts from the prompt, before any branching
    base: float = 0.5  # branch probability where nothing changed
    slope: float = 0.2  # its rise per nat
    window: int = 20  # tokens of a turn that are looked at
    weights: NodeWeights = "leaf"
    scale: Scaling = "group_std"

    def __post_init__(self) -> None:
        at_least_two(self.group)
        if self.first < 1 or self.window < 1:
            raise ConfigError("algorithm arpo: first and window are at least 1")

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        def wave(task: str, tree: Tree, wanted: int) -> Iterable[int]:
            drawn = [
                node
                for node, chance in self.chances(tree).items()
                if ctx.rng(task, node).random() < chance  # keyed by node: asked again, the answer stays
            ]
            return drawn or [0] * wanted

        return grow_to(ctx, self.group, first=self.first, wave=wave)

    def chances(self, tree: Tree) -> dict[int, float]:
        """Branch probability of the answers that were not branched from yet, shallow ones first."""
        children, depth = tree.children(), tree.depths()
        chances: dict[int, float] = {}
        for node in sorted(tree.anchors(), key=lambda i: (depth[i], i)):
            if len(children[node]) == 1:
                first = surprise(tree[tree.path(node)[1]], self.window)
                rise = surprise(tree[children[node][0]], self.window) - first
                chances[node] = 0.0 if np.isnan(rise) else float(np.clip(self.base + self.slope * rise, 0, 1))
        return chances

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        return credit_trees(ctx.trees, mode="leaf_mean", weights=self.weights, scale=self.scale)
