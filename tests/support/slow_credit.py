"""Credit written out as in the papers, node by node: recursion and loops, no shared code, and quadratic at best.

A tree is read through its nodes' `parent`, `reward`, `status` alone. nan means "not scored".
"""

import math

import numpy as np
import numpy.typing as npt

from trace_gym.tree import Tree

Floats = npt.NDArray[np.float64]
NAN = float("nan")


def kids(tree: Tree, node: int) -> list[int]:
    return [i for i in range(1, len(tree)) if tree[i].parent == node]


def above(tree: Tree, node: int) -> list[int]:
    """Proper ancestors, the nearest first."""
    return [] if node == 0 else [tree[node].parent, *above(tree, tree[node].parent)]


def outcome(tree: Tree, node: int) -> float:
    """Return of an episode that ended at `node`, else nan."""
    if tree[node].status not in ("done", "truncated"):
        return NAN
    return sum(tree[i].reward for i in reversed([node, *above(tree, node)]))


def scored_leaves(tree: Tree, node: int = 0) -> list[int]:
    """Ended episodes at or below `node`."""
    own = [] if math.isnan(outcome(tree, node)) else [node]
    return own + [leaf for child in kids(tree, node) for leaf in scored_leaves(tree, child)]


def mean(numbers: list[float]) -> float:
    return math.fsum(numbers) / len(numbers) if numbers else NAN


def value(tree: Tree, node: int, weighting: str = "draw") -> float:
    """Back-up, section 2 "Back-up of node values"."""
    if not math.isnan(outcome(tree, node)):
        return outcome(tree, node)
    if weighting == "leaf":
        return mean([outcome(tree, leaf) for leaf in scored_leaves(tree, node)])
    drawn = scored_kids(tree, node)
    if weighting == "fresh" and node != 0:
        # the first child belongs to the rollout because of whose outcome the node was chosen
        original = kids(tree, node)[:1]
        drawn = [c for c in drawn if c not in original] or drawn
    return mean([value(tree, c, weighting) for c in drawn])


def scored_kids(tree: Tree, node: int) -> list[int]:
    return [c for c in kids(tree, node) if scored_leaves(tree, c)]


def others(tree: Tree, child: int, weighting: str) -> list[float]:
    """Values of the siblings."""
    return [value(tree, c, weighting) for c in scored_kids(tree, tree[child].parent) if c != child]


def baseline(tree: Tree, node: int, weighting: str, *, root: bool) -> float:
    """Leave-one-out mean at the nearest ancestor with two draws or more, the node's own branch excluded."""
    for branch in [node, *above(tree, node)]:
        if branch == 0 or (tree[branch].parent == 0 and not root):
            return NAN
        if others(tree, branch, weighting):
            return mean(others(tree, branch, weighting))
    raise AssertionError("unreachable")


def edge(tree: Tree, node: int, weighting: str = "draw") -> float:
    return value(tree, node, weighting) - baseline(tree, node, weighting, root=True)


def sibling(tree: Tree, node: int, weighting: str = "draw") -> float:
    """Only contrast below a fork that is not the prompt; 0 elsewhere."""
    if not scored_leaves(tree, node):
        return NAN
    below = baseline(tree, node, weighting, root=False)
    return 0.0 if math.isnan(below) else value(tree, node, weighting) - below


def own_leaf(tree: Tree, node: int) -> int:
    """The end of the rollout in which this turn was sampled: a rollout is appended whole, so its next turn is the first child
    that was appended."""
    below = kids(tree, node)
    return own_leaf(tree, below[0]) if below else node


def returns(tree: Tree, node: int = 0) -> list[float]:
    return [outcome(tree, leaf) for leaf in scored_leaves(tree, node)]


def group_of_leaf(tree: Tree, leaf: int) -> float:
    return outcome(tree, leaf) - mean(returns(tree))


def group(tree: Tree, node: int, weighting: str = "draw") -> float:
    return group_of_leaf(tree, own_leaf(tree, node))


def loo(tree: Tree, node: int, weighting: str = "draw") -> float:
    own = own_leaf(tree, node)
    rest = [outcome(tree, leaf) for leaf in scored_leaves(tree) if leaf != own]
    return outcome(tree, own) - mean(rest)


def leaf_mean(tree: Tree, node: int, weighting: str = "draw") -> float:
    return mean([group_of_leaf(tree, leaf) for leaf in scored_leaves(tree, node)])


def z_score(x: float, sample: list[float], ddof: int) -> float:
    if math.isnan(x):
        return NAN
    if len(sample) < 2 or max(sample) - min(sample) <= 1e-9:
        return 0.0
    m = mean(sample)
    return (x - m) / (math.sqrt(math.fsum((y - m) ** 2 for y in sample) / (len(sample) - ddof)) + 1e-6)


def tree_grpo_of_leaf(tree: Tree, leaf: int, ddof: int = 1) -> float:
    top = [leaf, *above(tree, leaf)][-2]
    r = outcome(tree, leaf)
    return z_score(r, returns(tree, top), ddof) + z_score(r, returns(tree), ddof)


def treerl(tree: Tree, node: int, weighting: str = "draw") -> float:
    if not scored_leaves(tree, node):
        return NAN
    here, root = value(tree, node, weighting), value(tree, 0, weighting)
    parent = root if node == 0 else value(tree, tree[node].parent, weighting)
    return ((here - root) + (here - parent)) / math.sqrt(len(scored_leaves(tree, node)))


def treepo_of_leaf(tree: Tree, leaf: int) -> float:
    """Subgroups are the leaves below each proper ancestor."""
    r, sizes, gaps = outcome(tree, leaf), [], []
    for ancestor in above(tree, leaf):
        subgroup = returns(tree, ancestor)
        sizes.append(len(subgroup))
        gaps.append(r - mean(subgroup))
    return math.fsum(n * g for n, g in zip(sizes, gaps, strict=True)) / sum(sizes) if any(sizes) else NAN


def treepo_plain_of_leaf(tree: Tree, leaf: int) -> float:
    """Every proper ancestor's subgroup counts alike."""
    r = outcome(tree, leaf)
    return mean([r - mean(returns(tree, ancestor)) for ancestor in above(tree, leaf)])


def treepo_grouped_of_leaf(tree: Tree, leaf: int) -> float:
    """A turn that only this leaf is below has nothing to compare it with; the prompt counts always."""
    r = outcome(tree, leaf)
    groups = [returns(tree, ancestor) for ancestor in above(tree, leaf)]
    return mean([r - mean(g) for place, g in enumerate(reversed(groups)) if len(g) > 1 or place == 0])


def weight(tree: Tree, node: int, kind: str) -> float:
    if not scored_leaves(tree, node):
        return 0.0
    if kind == "turn":
        return 1.0
    if kind == "leaf":
        return float(len(scored_leaves(tree, node)))
    if node == 0:
        return 1.0
    return weight(tree, tree[node].parent, kind) / len(scored_kids(tree, tree[node].parent))
