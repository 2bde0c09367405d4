"""What each turn of a tree is credited with: backed-up values, advantages, weights.

One function per rule, each over a `Tree`, returning [N] arrays; nan is "unscored, or no baseline" and leaves the turn out
of the loss. Every turn enters the loss once, with its own advantage; a prefix that k leaves share is not trained k times.

Terms. A *draw* of a node is a child with a value: an independent sample of the policy's next turn there. A node's *own* leaf
ends the rollout that sampled it: rollouts are appended whole, so it is reached by first children. Node 0, the prompt, was not
sampled; its entry never reaches the loss.

Rules marked [ours] are this project's; the papers' formulas are named where they stand. Equalities that tests hold fixed: on
a star (all branching at the prompt) `edge` is `loo`, and `group` is `leaf_mean`; `leaf_mean` with `leaf` weights has the
gradient of training every root-to-leaf path separately; `sibling` is 0 before the first fork.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from trace_gym.algorithm import Credit
from trace_gym.tree import Tree

__all__ = [
    "ADVANTAGES",
    "CreditMode",
    "NodeWeights",
    "Scaling",
    "TargetWeighting",
    "credit_trees",
    "edge",
    "group",
    "leaf_counts",
    "leaf_mean",
    "loo",
    "node_values",
    "node_weights",
    "own_returns",
    "sibling",
    "tree_grpo",
    "treepo",
    "treepo_grouped",
    "treepo_plain",
    "treerl",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
TargetWeighting = Literal["draw", "leaf", "fresh"]
CreditMode = Literal[
    "edge",
    "group",
    "loo",
    "leaf_mean",
    "tree_grpo",
    "treerl",
    "treepo",
    "treepo_plain",
    "treepo_grouped",
    "sibling",
]
NodeWeights = Literal["path", "turn", "leaf"]
Scaling = Literal["none", "batch_std", "group_std"]

SAME = 1e-9  # a difference or a spread below this is rounding: one outcome
EPSILON = 1e-6  # keeps a group with a tiny spread finite; the spread of 0/1 rewards is far larger


# ---- sweeps over a tree, a level at a time --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Shape:
    """A tree's links as arrays."""

    parent: Ints  # [N], -1 for the prompt
    levels: tuple[Ints, ...]  # nodes by depth, the prompt's level first
    first: npt.NDArray[np.bool_]  # [N] is the node its parent's first child?

    @classmethod
    def of(cls, tree: Tree) -> _Shape:
        parent, depth = tree.parents().astype(np.int64), tree.depths()
        order = np.argsort(depth, kind="stable")
        levels = np.split(order, np.cumsum(np.bincount(depth))[:-1])
        first = np.zeros(len(tree), dtype=bool)
        first[np.unique(parent, return_index=True)[1]] = (
            True  # indices grow in the order children were appended
        )
        return cls(parent, tuple(levels), first)

    def summed_up(self, leaf_values: Floats) -> Floats:
        """[N] sum of `leaf_values` over each node and all below it."""
        total = leaf_values.copy()
        for level in self.levels[:0:-1]:
            np.add.at(total, self.parent[level], total[level])
        return total

    def of_own_leaf(self, leaf_values: Floats) -> Floats:
        """[N] the value at the end of the rollout that sampled each node; nan for the prompt."""
        out = leaf_values.copy()
        for level in self.levels[:1:-1]:
            own = level[self.first[level]]
            out[self.parent[own]] = out[own]
        out[0] = np.nan
        return out

    def passed_down(self, start: float, step: Callable[[Ints, Floats], Floats]) -> Floats:
        """[N] `start` at the prompt; below it `step(nodes, what their parents got)`, a level at a time."""
        out = np.full(len(self.parent), start)
        for level in self.levels[1:]:
            out[level] = step(level, out[self.parent[level]])
        return out


def _leaf_sums(tree: Tree) -> tuple[_Shape, Floats, Floats, Floats]:
    """Shape, [N] returns, [N] scored leaves at or below each node, [N] sum of their returns."""
    shape, returns = _Shape.of(tree), tree.returns()
    return shape, returns, shape.summed_up(1.0 * ~np.isnan(returns)), shape.summed_up(np.nan_to_num(returns))


def _ratio(total: Floats, count: Floats) -> Floats:
    return np.where(count > 0, total / np.maximum(count, 1.0), np.nan)


def _mean_below(shape: _Shape, leaf_values: Floats) -> Floats:
    """[N] mean of the leaves' values over the scored rollouts through each node."""
    return _ratio(shape.summed_up(np.nan_to_num(leaf_values)), shape.summed_up(1.0 * ~np.isnan(leaf_values)))


# ---- values ---------------------------------------------------------------------------------------------------------


def node_values(tree: Tree, weighting: TargetWeighting = "draw") -> Floats:
    """[N] backed-up success of each node; nan where nothing below is scored.

    `draw` [ours]: mean over a node's draws, each a sample of the policy there. `leaf` (TRACE, arXiv 2606.11119): mean over the
    leaves below, which over-counts the subtrees that were expanded. `fresh` [ours]: as `draw`, but where continuations were
    added to a rollout's turn, its own next turn is left out: the node was chosen after seeing how that one ended.
    """
    shape, returns, count, total = _leaf_sums(tree)
    if weighting == "leaf":
        return _ratio(total, count)
    values, total, count = returns.copy(), np.zeros(len(tree)), np.zeros(len(tree))
    original = shape.first & (shape.parent > 0)
    forked = np.zeros(len(tree), dtype=bool)  # has a scored draw besides the original
    for level in shape.levels[::-1]:
        known = count[level] > 0
        values[level[known]] = total[level[known]] / count[level[known]]
        level = level[(level > 0) & ~np.isnan(values[level])]
        fresh = level[~original[level]] if weighting == "fresh" else level
        forked[shape.parent[fresh]] = True
        if weighting == "fresh":
            level = level[~original[level] | ~forked[shape.parent[level]]]
        np.add.at(total, shape.parent[level], values[level])
        np.add.at(count, shape.parent[level], 1.0)
    return values


def _baselines(tree: Tree, values: Floats) -> tuple[_Shape, Floats]:
    """[N] mean value of a node's scored siblings; under a parent with one draw, the parent's own baseline; nan at the top."""
    shape = _Shape.of(tree)
    scored = np.flatnonzero(~np.isnan(values[1:])) + 1
    total, count = np.zeros(len(tree)), np.zeros(len(tree))
    np.add.at(total, shape.parent[scored], values[scored])
    np.add.at(count, shape.parent[scored], 1.0)

    def step(nodes: Ints, inherited: Floats) -> Floats:
        parent, value = shape.parent[nodes], np.nan_to_num(values[nodes])
        others = count[parent] - ~np.isnan(values[nodes])
        return np.where(others > 0, (total[parent] - value) / np.maximum(others, 1.0), inherited)

    return shape, shape.passed_down(np.nan, step)


def leaf_counts(tree: Tree) -> Floats:
    """[N] scored rollouts through each node."""
    return _leaf_sums(tree)[2]


def own_returns(tree: Tree) -> Floats:
    """[N] return of the rollout that sampled each turn; nan for the prompt and where that rollout was not scored."""
    return _Shape.of(tree).of_own_leaf(tree.returns())


# ---- advantages -----------------------------------------------------------------------------------------------------


def edge(tree: Tree, weighting: TargetWeighting = "draw") -> Floats:
    """[N] value of a turn less the mean of its siblings' [ours; TRACE's default here].

    Leave-one-out, so the baseline never holds the turn's own outcome. A turn without siblings takes the baseline of the nearest
    turn above it that has some; nan where there is none, as with a single rollout.
    """
    values = node_values(tree, weighting)
    return values - _baselines(tree, values)[1]


def sibling(tree: Tree, weighting: TargetWeighting = "draw") -> Floats:
    """[N] as `edge` below the first fork, 0 above it: nothing comes from the prompt [ours, a control that must fail]."""
    values = node_values(tree, weighting)
    shape, base = _baselines(tree, values)
    forks = _forks(shape, values)
    below = shape.passed_down(0.0, lambda nodes, above: np.where(forks[nodes], 1.0, above))
    return np.where(np.isnan(values), np.nan, np.where(below > 0, values - base, 0.0))


def _forks(shape: _Shape, values: Floats) -> npt.NDArray[np.bool_]:
    """[N] has the node a scored sibling, at a parent other than the prompt?"""
    count = np.zeros(len(values))
    scored = np.flatnonzero(~np.isnan(values[1:])) + 1
    np.add.at(count, shape.parent[scored], 1.0)
    return (shape.parent > 0) & (count[shape.parent] > 1)


def loo(tree: Tree, weighting: TargetWeighting = "draw") -> Floats:
    """[N] return of the rollout that sampled a turn, less the mean of the prompt's other rollouts (RLOO, arXiv 2402.14740)."""
    shape, returns, count, total = _leaf_sums(tree)
    others = (total[0] - returns) / max(count[0] - 1.0, 1.0)
    return shape.of_own_leaf(returns - others if count[0] > 1 else np.full(len(tree), np.nan))


def group(tree: Tree, weighting: TargetWeighting = "draw") -> Floats:
    """[N] return of the rollout that sampled a turn, less the mean of the prompt's rollouts (GRPO, arXiv 2402.03300, 4.1).

    GRPO divides by the group's standard deviation: scale `group_std`.
    """
    shape, returns, count, total = _leaf_sums(tree)
    return shape.of_own_leaf(returns - total[0] / max(count[0], 1.0))


def leaf_mean(tree: Tree, weighting: TargetWeighting = "draw") -> Floats:
    """[N] mean, over the rollouts through a turn, of their return less the mean of the prompt's rollouts."""
    shape, returns, count, total = _leaf_sums(tree)
    return _mean_below(shape, returns - total[0] / max(count[0], 1.0))


def tree_grpo(tree: Tree, weighting: TargetWeighting = "draw") -> Floats:
    """[N] standard score within the rollouts that share the first turn, plus that within the prompt's (Tree-GRPO, arXiv
    2509.21240: intra-tree and inter-tree advantage; its trees are the subtrees of the prompt's children here). A turn takes the
    mean over the rollouts through it."""
    shape, returns, _, _ = _leaf_sums(tree)
    top = shape.passed_down(0.0, lambda nodes, above: np.where(shape.parent[nodes] == 0, 1.0 * nodes, above))
    leaves = np.flatnonzero(~np.isnan(returns))
    inside, within = returns.copy(), top[leaves].astype(np.int64)
    inside[leaves] = _standard_scores(returns[leaves], within, len(tree))
    across = returns.copy()
    across[leaves] = _standard_scores(returns[leaves], np.zeros_like(within), 1)
    return _mean_below(shape, inside + across)


def _standard_scores(values: Floats, label: Ints, labels: int) -> Floats:
    """(value - mean) / sample deviation within each label; 0 where a label has one value or no spread."""
    count = np.maximum(np.bincount(label, minlength=labels), 1.0)
    mean = np.bincount(label, weights=values, minlength=labels) / count
    off = values - mean[label]
    deviation = np.sqrt(np.bincount(label, weights=off**2, minlength=labels) / np.maximum(count - 1.0, 1.0))
    return np.where(deviation[label] < SAME, 0.0, off / (deviation[label] + EPSILON))


def treerl(tree: Tree, weighting: TargetWeighting = "draw") -> Floats:
    """[N] ([V(c) - V(prompt)] + [V(c) - V(parent)]) / sqrt(leaves below c) (TreeRL, arXiv 2506.11902: global plus local
    advantage; its values are means over leaves, `weighting="leaf"`)."""
    values = node_values(tree, weighting)
    shape, _, count, _ = _leaf_sums(tree)
    parent = np.maximum(shape.parent, 0)
    return np.asarray((2.0 * values - values[0] - values[parent]) / np.sqrt(np.maximum(count, 1.0)))


def treepo(tree: Tree, weighting: TargetWeighting = "draw") -> Floats:
    """[N] return of a leaf less the mean over the leaves below each of its ancestors, averaged over them with the sizes
    of these subgroups as weights (TreePO, arXiv 2508.17445, equation 6). A turn takes the mean over the rollouts through it.

    The paper prefers the plain average over ancestors, its equation 5: `treepo_plain`, `treepo_grouped`.
    """
    shape, returns, count, total = _leaf_sums(tree)
    parent = np.maximum(shape.parent, 0)
    sizes = shape.passed_down(0.0, lambda nodes, above: above + count[parent[nodes]])
    sums = shape.passed_down(0.0, lambda nodes, above: above + total[parent[nodes]])
    return _mean_below(shape, returns - sums / np.maximum(sizes, 1.0))


def treepo_plain(tree: Tree, weighting: TargetWeighting = "draw") -> Floats:
    """[N] return of a leaf less the plain average, over its ancestors, of the mean over the leaves below each (TreePO, arXiv
    2508.17445, the numerator of equation 5): a small subgroup counts as much as the prompt's. A turn takes the mean over the
    rollouts through it.

    An ancestor with this leaf alone adds nothing to the sum and 1 to the count, so what a leaf is compared with shrinks by the
    share of its path that it shares with nobody: on a star it is `group` divided by the number of turns.
    """
    return _against_ancestors(tree, least=1)


def treepo_grouped(tree: Tree, weighting: TargetWeighting = "draw") -> Floats:
    """[N] as `treepo_plain`, over the prompt and those ancestors that have two scored leaves or more below them, as TreePO's
    published code does: a private tail does not count, and on a star it is `group`."""
    return _against_ancestors(tree, least=2)


def _against_ancestors(tree: Tree, least: int) -> Floats:
    """Equation 5 over the prompt and the ancestors with at least `least` scored leaves."""
    shape, returns, count, total = _leaf_sums(tree)
    parent, mean = np.maximum(shape.parent, 0), np.nan_to_num(_ratio(total, count))
    counted = 1.0 * (count >= least)
    counted[0] = 1.0
    means = shape.passed_down(0.0, lambda nodes, above: above + (counted * mean)[parent[nodes]])
    ancestors = shape.passed_down(0.0, lambda nodes, above: above + counted[parent[nodes]])
    return _mean_below(shape, returns - means / np.maximum(ancestors, 1.0))


ADVANTAGES: dict[CreditMode, Callable[[Tree, TargetWeighting], Floats]] = {
    "edge": edge,
    "group": group,
    "loo": loo,
    "leaf_mean": leaf_mean,
    "tree_grpo": tree_grpo,
    "treerl": treerl,
    "treepo": treepo,
    "treepo_plain": treepo_plain,
    "treepo_grouped": treepo_grouped,
    "sibling": sibling,
}


# ---- weights, scaling -----------------------------------------------------------------------------------------------


def node_weights(tree: Tree, kind: NodeWeights = "path") -> Floats:
    """[N] what a turn counts in the loss.

    `path` [ours, default]: product of 1 / draws over the turns that lead to it, so that a state is not trained more because
    more continuations left from it. `turn`: 1. `leaf`: scored rollouts through it.
    """
    shape, _, count, _ = _leaf_sums(tree)
    if kind == "turn":
        return np.ones(len(tree))
    if kind == "leaf":
        return count
    draws = tree.draws().astype(np.float64)
    return shape.passed_down(1.0, lambda nodes, above: above / np.maximum(draws[shape.parent[nodes]], 1.0))


def credit_trees(
    trees: Mapping[str, Tree],
    *,
    mode: CreditMode,
    weights: NodeWeights,
    scale: Scaling,
    target: TargetWeighting = "draw",
) -> dict[str, Credit]:
    """Advantages by `mode`, then scaled, and weights, for the trees that hold a scored rollout.

    What rounding left of equal outcomes becomes exactly 0, whatever the rule: it must not pass for a lesson. `scale` divides by
    a standard deviation: `group_std` by that of the tree's returns (the sample's), `batch_std` by that of the advantages of all
    of the step's turns (about their mean, by the turns' weights). A deviation of 0 means that there is nothing to scale.
    """
    scored = {task: tree for task, tree in trees.items() if len(tree) > 1 and tree.outcomes()}
    advantage = {task: _without_rounding(ADVANTAGES[mode](tree, target)) for task, tree in scored.items()}
    weight = {task: node_weights(tree, weights) for task, tree in scored.items()}
    if scale == "group_std":
        spread = {task: _deviation(np.array(tree.outcomes())) for task, tree in scored.items()}
    else:
        every = _batch_deviation(advantage, weight) if scale == "batch_std" else 1.0
        spread = dict.fromkeys(scored, every)
    return {
        task: Credit(
            a / (spread[task] + EPSILON) if spread[task] > SAME and scale != "none" else a, weight[task]
        )
        for task, a in advantage.items()
    }


def _without_rounding(advantage: Floats) -> Floats:
    return np.where(np.abs(advantage) < SAME, 0.0, advantage)


def _deviation(values: Floats) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _batch_deviation(advantage: Mapping[str, Floats], weight: Mapping[str, Floats]) -> float:
    if not advantage:
        return 0.0
    a = np.concatenate([x[1:] for x in advantage.values()])
    w = np.concatenate([x[1:] for x in weight.values()])
    a, w = a[~np.isnan(a)], w[~np.isnan(a)]
    if len(a) < 2 or w.sum() == 0:
        return 0.0
    mean = float(np.average(a, weights=w))
    return float(np.sqrt(np.average((a - mean) ** 2, weights=w)))
