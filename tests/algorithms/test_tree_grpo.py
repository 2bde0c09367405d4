"""Tree-GRPO: the trees it promises, and its two standard scores by hand."""

import numpy as np
import pytest

from tests.algorithms.test_grpo import context
from tests.support.growing import credits_of, grow, sizes
from tests.support.trees import add, prompt_tree
from trace_gym.algorithm import Branch
from trace_gym.algorithms.tree_grpo import TreeGRPO
from trace_gym.tree import Tree


def walk_on(rng: np.random.Generator) -> str:
    """Long rollouts: there is always a turn to expand."""
    return str(rng.choice(["+", "-"]))


def two_trees() -> Tree:
    """Trunk 1-2-3 (won) with a branch 5 from turn 1 (lost); trunk 4 (lost)."""
    tree = prompt_tree()
    trunk = add(tree, 0)
    add(tree, add(tree, trunk), reward=1.0, status="done")
    add(tree, 0, reward=0.0, status="done")
    add(tree, trunk, reward=0.0, status="done")
    return tree


@pytest.mark.parametrize(("chains", "expand", "rounds"), [(2, 3, 1), (1, 2, 3), (3, 1, 2), (4, 0, 0)])
def test_each_tree_is_expanded_equally_often(chains: int, expand: int, rounds: int) -> None:
    algorithm = TreeGRPO(chains=chains, expand=expand, rounds=rounds)
    ctx = grow(algorithm, choose=walk_on)
    for tree in ctx.trees.values():
        trunks = tree.children()[0]
        assert len(trunks) == chains
        leaves = [tree.path(leaf)[1] for leaf in tree.leaves()]
        assert [leaves.count(trunk) for trunk in trunks] == [1 + expand * rounds] * chains
    assert set(sizes(ctx)) == {algorithm.group}
    units = chains + 0.5 * chains * expand * rounds
    assert ctx.purse.spent.rollout_units == units * len(ctx.trees)


def test_a_round_expands_different_turns() -> None:
    ctx = grow(TreeGRPO(chains=1, expand=7, rounds=1), choose=walk_on)  # trunks of 8 turns have 7 anchors
    for tree in ctx.trees.values():
        assert [len(below) for below in tree.children()[1:8]] == [2] * 7


def test_a_trunk_of_one_turn_is_expanded_at_the_prompt() -> None:
    tree = prompt_tree()
    add(tree, 0, reward=0.0, status="done")
    ctx = context(tree)
    ctx.idle = ("task",)
    assert TreeGRPO(chains=1, expand=3).plan(ctx) == [Branch("task", node=0, count=3)]
    tree = two_trees()
    assert sum(b.count for b in TreeGRPO(chains=2, expand=3).plan(context(tree))) == 2  # the first wave


def test_scores_within_the_tree_and_across_trees() -> None:
    """Within trunk 1: 1 and 0, mean 1/2, sample deviation sqrt(1/2); across: 1, 0, 0, mean 1/3, deviation sqrt(1/3)."""
    credit = TreeGRPO().credit(context(two_trees()))["task"]
    inside, across = 0.5 / np.sqrt(0.5), np.array([2 / 3, -1 / 3]) / np.sqrt(1 / 3)
    won, lost, alone = inside + across[0], -inside + across[1], across[1]
    np.testing.assert_allclose(
        credit.advantage[1:], [(won + lost) / 2, won, won, alone, lost], rtol=1e-5, atol=1e-12
    )
    np.testing.assert_allclose(credit.weight[1:], [2, 1, 1, 1, 1])


def test_leaf_weights_give_the_sum_over_whole_paths() -> None:
    """Weight times advantage of every turn is the sum, over the leaves that share it, of their advantages."""
    algorithm = TreeGRPO(chains=2, expand=3)
    ctx = grow(algorithm, pool=["1", "2"], seed=3)
    credits = credits_of(algorithm, ctx)
    assert any(tree.mixed() for tree in ctx.trees.values())
    for task, credit in credits.items():
        tree, total = ctx.trees[task], np.zeros(len(ctx.trees[task]))
        for leaf in tree.leaves():
            total[tree.path(leaf)] += credit.advantage[leaf]
        np.testing.assert_allclose((credit.weight * credit.advantage)[1:], total[1:], atol=1e-9)
