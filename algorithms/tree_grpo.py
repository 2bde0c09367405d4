"""Tree-GRPO: chains expanded at random turns, judged within their tree and across trees (Ji et al. 2025, arXiv 2509.21240).

    M = `chains` rollouts of a prompt, each the trunk of a tree; `rounds` times: N = `expand` turns of each tree at random, and
    from each the rest of a rollout.  G = M (1 + L N) leaves, at an expected cost of M + M L N / 2 rollouts

    A(H_i) = z-score of R(H_i) within its tree  +  z-score of R(H_i) within the prompt
    J      = 1/G sum_i 1/|H_i| sum_t min(rho A, clip(rho) A) - beta KL

Each leaf is a sample with its whole path, so a turn that n leaves share counts n times, with the mean of their advantages:
that is `weights="leaf"`. `weights="turn"` counts it once.

Deviations: token-level normalisation and no KL term by default. With `normalise="sequence"`, the paper's, a shared turn takes
the mean of its leaves' advantages times the mean of their 1/|H_i|: the same where these do not vary together. A tree whose
trunk is one turn long has no turn to leave from; its expansions start at the prompt (ours: so every prompt has G rollouts),
and count as trees of their own. Checked against a detailed summary of the paper (its algorithm, both formulas, G); not against
its code.

    trace-gym train policy.path=POLICY algorithm.name=tree_grpo algorithm.chains=2 algorithm.expand=3 algorithm.rounds=1
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from trace_gym.algorithm import Algorithm, Branch, Credit, StepContext
from trace_gym.algorithms.credit import NodeWeights, Scaling, credit_trees
from trace_gym.algorithms.waves import draw_nodes, grow_to
from trace_gym.errors import ConfigError
from trace_gym.tree import Tree

__all__ = ["TreeGRPO"]


@dataclass(kw_only=True)
class TreeGRPO(Algorithm):
    """Random expansion, standard scores within and across the subtrees of first turns."""

    chains: int = 2  # first rollouts per prompt: M
    expand: int = 3  # turns expanded per tree and round: N
    rounds: int = 1  # of expansion: L
    weights: NodeWeights = "leaf"
    scale: Scaling = "none"  # of the sum of scores, further

    def __post_init__(self) -> None:
        if self.chains < 1 or self.expand < 0 or self.rounds < 0 or self.group < 2:
            raise ConfigError(
                f"algorithm tree_grpo: chains * (1 + rounds * expand) = {self.group} rollouts of a prompt;"
                " make it 2 or more, of one chain at least"
            )

    @property
    def group(self) -> int:
        """Rollouts per prompt: G."""
        return self.chains * (1 + self.rounds * self.expand)

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        def wave(task: str, tree: Tree, wanted: int) -> Iterable[int]:
            rng = ctx.rng(task, len(tree))
            for turns in _turns_by_trunk(tree)[: self.chains]:
                yield from draw_nodes(turns, self.expand, rng)

        return grow_to(ctx, self.group, first=self.chains, wave=wave)

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        return credit_trees(ctx.trees, mode="tree_grpo", weights=self.weights, scale=self.scale)


def _turns_by_trunk(tree: Tree) -> list[list[int]]:
    """The anchors below each child of the prompt, itself included, in the order the children came."""
    top = {0: 0}
    for index in range(1, len(tree)):
        parent = tree[index].parent
        top[index] = top[parent] or index
    turns: dict[int, list[int]] = {i: [] for i in range(1, len(tree)) if tree[i].parent == 0}
    for anchor in tree.anchors():
        turns[top[anchor]].append(anchor)
    return list(turns.values())
