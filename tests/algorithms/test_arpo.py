"""ARPO: where it branches follows from the log-probs it saw, and shared turns take the mean of their leaves."""

import numpy as np
import pytest

from tests.algorithms.test_grpo import context
from tests.algorithms.test_tree_grpo import walk_on
from tests.support.growing import credits_of, forked, grow, sizes
from tests.support.trees import add, prompt_tree, star
from trace_gym.algorithms.arpo import ARPO
from trace_gym.algorithms.waves import surprise
from trace_gym.tree import Tree


def rollout(tree: Tree, *logprobs: float) -> None:
    parent = 0
    for turn, logprob in enumerate(logprobs):
        last = turn == len(logprobs) - 1
        parent = add(tree, parent, logprob=logprob, status="done" if last else "running")


def anchored(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """Trees made by hand hold no snapshots: every running turn is an anchor."""
    running = [i for i, n in enumerate(tree.nodes) if i and n.status == "running"]
    monkeypatch.setattr(Tree, "anchors", lambda self: running)
    return tree


def test_the_chance_to_branch_follows_the_rise_against_the_first_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tree = prompt_tree()
    rollout(tree, -1.0, -2.0, -0.5, -9.0)
    rollout(tree, -3.0, -3.0)
    chances = ARPO(base=0.5, slope=0.2).chances(anchored(tree, monkeypatch))
    assert list(chances) == [1, 5, 2, 3]  # as they are met: shallow answers first
    assert chances == pytest.approx({1: 0.7, 5: 0.5, 2: 0.4, 3: 1.0})


def test_an_answer_branches_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = prompt_tree()
    rollout(tree, -1.0, -2.0, -0.5)
    add(tree, 1, status="done")
    assert list(ARPO().chances(anchored(tree, monkeypatch))) == [2]


def test_only_the_window_is_looked_at() -> None:
    tree = prompt_tree()
    node = tree[add(tree, 0, range(4), logprob=-1.0)]
    node.logprobs[:] = [-1.0, -2.0, -6.0, -7.0]
    assert (surprise(node, 2), surprise(node), surprise(node, 9)) == (1.5, 4.0, 4.0)
    assert np.isnan(surprise(tree[0]))


def test_certain_branching_takes_one_from_each_answer_until_the_group_is_full() -> None:
    ctx = grow(ARPO(group=6, first=2, base=1.0, slope=0.0), choose=walk_on)
    assert set(sizes(ctx)) == {6}
    for task, tree in ctx.trees.items():
        assert forked(ctx, task) == [
            1,
            2,
            9,
            10,
        ]  # two trunks of eight turns: their two shallowest answers each
        assert len(tree.children()[0]) == 2


def test_without_a_chance_everything_starts_at_the_prompt() -> None:
    ctx = grow(ARPO(group=6, first=2, base=0.0, slope=0.0), choose=walk_on)
    assert set(sizes(ctx)) == {6} and not any(forked(ctx, task) for task in ctx.pool)


def test_branches_leave_where_certainty_fell() -> None:
    """With a steep slope a branch means that the next turn was less certain than the rollout's first."""
    algorithm = ARPO(group=6, first=3, base=0.0, slope=1e6)
    ctx = grow(algorithm, choose=walk_on)
    seen = 0
    for task, tree in ctx.trees.items():
        for node in forked(ctx, task):
            seen += 1
            first = tree[tree.path(node)[1]]
            assert surprise(tree[tree.children()[node][0]], 20) > surprise(first, 20)
    assert seen >= 8
    credits_of(algorithm, ctx)


def test_a_shared_turn_takes_the_mean_of_its_leaves_once_for_each() -> None:
    tree = prompt_tree()
    shared = add(tree, 0)
    add(tree, shared, reward=1.0, status="done")
    add(tree, 0, reward=0.0, status="done")
    add(tree, shared, reward=0.0, status="done")
    credit = ARPO().credit(context(tree))["task"]
    won, lost = np.array([2 / 3, -1 / 3]) / np.sqrt(1 / 3)
    np.testing.assert_allclose(credit.advantage[1:], [(won + lost) / 2, won, lost, lost], rtol=1e-5)
    np.testing.assert_array_equal(credit.weight[1:], [2, 1, 1, 1])


def test_on_a_star_it_is_grpo() -> None:
    advantage = ARPO().credit(context(star([1.0, 0.0])))["task"].advantage[1:]
    np.testing.assert_allclose(advantage, [0.5 / np.sqrt(0.5), -0.5 / np.sqrt(0.5)], rtol=1e-5)
