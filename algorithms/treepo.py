"""TreePO-style: random branching in waves, leaves judged against each subtree they are in (Li et al. 2025, arXiv 2508.17445).

    A_i = 1/|J| sum_j (R_i - mean of R over the leaves below the j-th turn on i's path) / std(A over the step)     (equation 5)

j runs over the prompt and all turns of the path but the last. Plain averaging is the paper's choice; weighting by subgroup
size (equation 6) it tried and dropped: `average="size"`. The published code averages over the prompt and those turns that have
two leaves or more below them: `average="grouped"`; by the equation as printed a turn with one leaf counts, with a gap of 0. As
in the paper single-outcome trees teach nothing: there A is 0.

Deviations, hence "style": the paper's nodes are segments of a fixed number of tokens in a single answer, branched in step as
they are generated, 2^d paths at depth d; here a node is a turn, and since trees grow by whole rollouts, a wave adds as many
leaves as the tree has (`first`, then twice as many, ... up to `group`), each from another turn of the tree at random, which is
the paper's fallback, or from the prompt where every rollout was one turn. Repetition stops, heuristic budgets and
over-sampling of prompts are left out (`dapo` has the last). Equation 5 divides by a std over the subgroup terms, which its
text calls the global normalisation of REINFORCE++ (arXiv 2501.03262): the step's deviation here, without centring. Clip 0.28
and token-level loss are DAPO's, as in the paper. Read in full text.

    trace-gym train policy.path=POLICY algorithm.name=treepo algorithm.group=8 algorithm.first=2
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trace_gym.algorithm import Algorithm, Branch, Credit, StepContext
from trace_gym.algorithms.credit import (
    EPSILON,
    SAME,
    NodeWeights,
    node_weights,
    treepo,
    treepo_grouped,
    treepo_plain,
)
from trace_gym.algorithms.waves import at_least_two, draw_nodes, grow_to
from trace_gym.errors import ConfigError
from trace_gym.tree import Tree

__all__ = ["TreePO"]

AVERAGES = {"plain": treepo_plain, "grouped": treepo_grouped, "size": treepo}


@dataclass(kw_only=True)
class TreePO(Algorithm):
    """Random branching in waves, advantages averaged over subgroups."""

    group: int = 8  # leaves per prompt
    first: int = 2  # of them rollouts from the prompt, before any branching
    average: Literal["plain", "grouped", "size"] = "plain"
    weights: NodeWeights = "leaf"  # each leaf is a sample with its whole path
    scale: Literal["none", "batch_std"] = "batch_std"
    clip_high: float = 0.28

    def __post_init__(self) -> None:
        at_least_two(self.group)
        if self.first < 1:
            raise ConfigError(f"algorithm.first={self.first}: a tree begins with one rollout or more")

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        def wave(task: str, tree: Tree, wanted: int) -> Iterable[int]:
            return draw_nodes(tree.anchors(), len(tree.leaves()), ctx.rng(task, len(tree)))

        return grow_to(ctx, self.group, first=self.first, wave=wave)

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        trees = {task: tree for task, tree in ctx.trees.items() if tree.outcomes()}
        rule = AVERAGES[self.average]
        credits = {
            task: Credit(rule(tree) if tree.mixed() else 0.0 * rule(tree), node_weights(tree, self.weights))
            for task, tree in trees.items()
        }
        return credits if self.scale == "none" else _divided_by_deviation(credits)


def _divided_by_deviation(credits: Mapping[str, Credit]) -> dict[str, Credit]:
    """Advantages over the deviation of all of the step's turns, weighted as they are in the loss."""
    a = np.concatenate([np.zeros(0), *(c.advantage[1:] for c in credits.values())])
    w = np.concatenate([np.zeros(0), *(c.weight[1:] for c in credits.values())])
    w = np.where(np.isnan(a), 0.0, w)
    a = np.nan_to_num(a)
    total = max(float(w.sum()), EPSILON)
    deviation = float(np.sqrt(w @ (a - w @ a / total) ** 2 / total))
    divisor = deviation + EPSILON if deviation > SAME else 1.0
    return {task: Credit(c.advantage / divisor, c.weight) for task, c in credits.items()}
