"""BPO: forks stand before the backbone's most uncertain turns; siblings are judged against each other."""

import numpy as np
import pytest

from tests.algorithms.test_arpo import anchored, rollout
from tests.algorithms.test_grpo import context
from tests.algorithms.test_tree_grpo import walk_on
from tests.support.growing import credits_of, forked, grow, sizes
from tests.support.trees import add, prompt_tree
from trace_gym.algorithm import Branch
from trace_gym.algorithms.bpo import BPO
from trace_gym.algorithms.waves import surprise


def test_forks_stand_before_the_most_uncertain_turns_but_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = prompt_tree()
    rollout(tree, -1.0, -3.0, -0.5, -2.0, -9.0)  # turns 1 to 5
    ctx = context(anchored(tree, monkeypatch))
    assert BPO(forks=2).fork_nodes(tree) == [1, 3]
    assert BPO(forks=9).fork_nodes(tree) == [1, 3, 0, 2]
    ctx.idle = ("task",)
    assert BPO(forks=2, group=6).plan(ctx) == [
        Branch("task", node=1, count=3),
        Branch("task", node=3, count=2),
    ]


def test_a_backbone_of_one_turn_is_forked_at_the_prompt() -> None:
    tree = prompt_tree()
    rollout(tree, -1.0)
    assert BPO().fork_nodes(tree) == [0]


def test_the_backbone_is_the_first_rollout_whatever_came_later(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = prompt_tree()
    rollout(tree, -1.0, -2.0, -1.0)
    add(tree, 1, logprob=-50.0, status="done")
    rollout(tree, -50.0, -50.0, -50.0)
    assert BPO(forks=1).fork_nodes(anchored(tree, monkeypatch)) == [1]


@pytest.mark.parametrize("forks", [1, 2, 3])
def test_one_backbone_and_its_siblings(forks: int) -> None:
    algorithm = BPO(group=7, forks=forks)
    ctx = grow(algorithm, choose=walk_on)
    assert set(sizes(ctx)) == {7}
    for task, tree in ctx.trees.items():
        unsure = sorted(range(1, 8), key=lambda turn: -surprise(tree[turn]))[:forks]
        nodes = [tree[turn].parent for turn in unsure]
        assert sorted(node for node in nodes if node) == forked(ctx, task)
        for rank, node in enumerate(nodes):
            assert len(tree.children()[node]) == 1 + len(range(rank, 6, forks))
    credits_of(algorithm, ctx)


def test_siblings_are_judged_against_each_other_and_the_prefix_is_left_out() -> None:
    """Backbone 1-2-3 lost; two siblings from turn 1, one of them won."""
    tree = prompt_tree()
    rollout(tree, -1.0, -1.0, -1.0)
    add(tree, 1, reward=1.0, status="done")
    add(tree, 1, reward=0.0, status="done")
    credit = BPO().credit(context(tree))["task"]
    np.testing.assert_allclose(credit.advantage[1:], [np.nan, -0.5, -0.5, 1.0, -0.5])
    np.testing.assert_allclose(credit.weight[1:], [1, 1 / 3, 1 / 3, 1 / 3, 1 / 3])
