"""TreePO: waves that double, and equation 5 by hand."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from tests.algorithms.test_grpo import context
from tests.algorithms.test_tree_grpo import walk_on
from tests.support.growing import credits_of, grow, sizes
from tests.support.trees import add, add_rollout, prompt_tree
from trace_gym.algorithm import Branch, StepContext
from trace_gym.algorithms.credit import group, treepo_grouped, treepo_plain
from trace_gym.algorithms.treepo import TreePO
from trace_gym.tree import Tree


def forked() -> Tree:
    """Turn 1 leads to 2 (won) and, over turn 3, to 4 (won) and 5 (lost); 6 is a rollout of its own (lost)."""
    tree = prompt_tree()
    first = add(tree, 0)
    add(tree, first, reward=1.0, status="done")
    second = add(tree, first)
    add(tree, second, reward=1.0, status="done")
    add(tree, second, reward=0.0, status="done")
    add(tree, 0, reward=0.0, status="done")
    return tree


def test_a_leaf_is_compared_with_the_mean_below_each_turn_above_it() -> None:
    """Means: prompt 1/2, turn 1 2/3, turn 3 1/2. Leaf 2: (1/2 + 1/3)/2; 4: (1/2 + 1/3 + 1/2)/3; 5 likewise; 6: -1/2."""
    two, four, five, six = 5 / 12, 4 / 9, (-1 / 2 - 2 / 3 - 1 / 2) / 3, -1 / 2
    wanted = [(two + four + five) / 3, two, (four + five) / 2, four, five, six]
    np.testing.assert_allclose(treepo_plain(forked())[1:], wanted)


def test_a_private_tail_damps_the_plain_average_and_not_the_grouped_one() -> None:
    """A success of five turns, a failure of seven, only the prompt is shared: the gap of 1/2 over 5 and over 7 ancestors."""
    tree = prompt_tree()
    add_rollout(tree, 0, 5, reward=1.0)
    add_rollout(tree, 0, 7, reward=0.0)
    won, lost = slice(1, 6), slice(6, 13)
    np.testing.assert_allclose(treepo_plain(tree)[won], 0.1)
    np.testing.assert_allclose(treepo_plain(tree)[lost], -0.5 / 7)
    np.testing.assert_allclose(treepo_grouped(tree)[won], 0.5)
    np.testing.assert_allclose(treepo_grouped(tree)[lost], -0.5)
    np.testing.assert_allclose(treepo_grouped(tree)[1:], group(tree)[1:])
    spread = TreePO(average="grouped", scale="none").credit(context(tree))["task"]
    np.testing.assert_allclose(spread.advantage[won], 0.5)


def test_a_turn_with_two_leaves_counts_in_both() -> None:
    """In `forked` every turn above a leaf has two leaves or more: one rule."""
    np.testing.assert_allclose(treepo_grouped(forked())[1:], treepo_plain(forked())[1:])


def test_an_unscored_leaf_is_in_no_subgroup() -> None:
    tree = forked()
    lost = add(tree, 3, reward=float("nan"), status="failed")
    advantage = treepo_plain(tree)
    np.testing.assert_allclose(advantage[:lost], treepo_plain(forked()))
    assert np.isnan(advantage[lost])


def test_the_steps_deviation_divides() -> None:
    ctx = context(forked())
    plain, scaled = (TreePO(scale=s).credit(ctx)["task"] for s in ("none", "batch_std"))
    a, w = plain.advantage[1:], plain.weight[1:]
    np.testing.assert_array_equal(w, [3, 1, 2, 1, 1, 1])
    deviation = np.sqrt(np.average((a - np.average(a, weights=w)) ** 2, weights=w))
    np.testing.assert_allclose(scaled.advantage[1:], a / deviation, rtol=1e-5)


def test_size_weights_are_the_other_rule() -> None:
    """Leaf 4: ancestors of 4, 3 and 2 leaves: (4/2 + 3/3 + 2/2) / 9."""
    credit = TreePO(average="size", scale="none").credit(context(forked()))["task"]
    assert credit.advantage[4] == pytest.approx(4 / 9)
    assert credit.advantage[2] == pytest.approx((4 / 2 + 3 / 3) / 7)


def test_one_outcome_teaches_exactly_nothing() -> None:
    tree = prompt_tree()
    for _ in range(3):
        add(tree, 0, reward=0.1, status="done")
    assert (TreePO().credit(context(tree))["task"].advantage[1:] == 0.0).all()


def test_waves_double_the_leaves() -> None:
    """From two trunks of eight turns: two branches from different turns, then four."""
    ctx = grow(TreePO(group=8, first=2), choose=walk_on)
    assert set(sizes(ctx)) == {8}
    for tree in ctx.trees.values():
        starts = Counter(n.parent for n in tree.nodes if n.origin == "continuation" and n.cost.restores)
        assert sum(starts.values()) == 6 and 0 not in starts
        trunks = len([n for n in tree.nodes if n.origin == "root"])
        assert len([p for p in starts if p <= trunks]) >= 2  # the first wave's two
        assert max(starts.values()) <= 2  # no turn twice within a wave


def test_each_wave_is_as_large_as_the_tree() -> None:
    """Two rollouts, then two branches, then four."""
    waves: dict[str, list[int]] = {}

    class Watched(TreePO):
        def plan(self, ctx: StepContext) -> Sequence[Branch]:
            branches = super().plan(ctx)
            for task in dict.fromkeys(branch.task for branch in branches):
                waves.setdefault(task, []).append(sum(b.count for b in branches if b.task == task))
            return branches

    grow(Watched(group=8, first=2), choose=walk_on)
    assert waves and all(sizes == [2, 2, 4] for sizes in waves.values())


def test_a_group_that_is_no_power_of_two_is_met() -> None:
    algorithm = TreePO(group=7, first=3)
    ctx = grow(algorithm, choose=walk_on)
    assert set(sizes(ctx)) == {7}
    credits_of(algorithm, ctx)
