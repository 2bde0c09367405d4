"""Trees: paths, values and costs against independent, recursive calculations."""

import numpy as np
import pytest
from hypothesis import given

from tests.support.trees import add, prompt_tree, random_trees, star
from trace_gym.ledger import Cost
from trace_gym.tree import NO_PARENT, Tree, same_tree


def recursive_value(tree: Tree, index: int) -> float:
    node = tree[index]
    if node.scored:
        return sum(tree[i].reward for i in tree.path(index))
    below = [recursive_value(tree, i) for i, n in enumerate(tree.nodes) if n.parent == index]
    known = [v for v in below if not np.isnan(v)]
    return sum(known) / len(known) if known else float("nan")


@given(random_trees())
def test_values_are_means_over_draws(tree: Tree) -> None:
    expected = [recursive_value(tree, i) for i in range(len(tree))]
    np.testing.assert_allclose(tree.values(), expected, equal_nan=True)


@given(random_trees())
def test_draws_count_children_with_a_value(tree: Tree) -> None:
    values = tree.values()
    expected = [sum(not np.isnan(values[c]) for c in children) for children in tree.children()]
    assert tree.draws().tolist() == expected


@given(random_trees())
def test_views_agree_with_each_other(tree: Tree) -> None:
    assert sorted(tree.walk()) == list(range(len(tree)))
    for index in range(len(tree)):
        path = tree.path(index)
        assert path[0] == 0 and path[-1] == index
        assert len(path) == tree.depths()[index] + 1
        assert tree.tokens(index).tolist() == [t for i in path for t in tree[i].tokens.tolist()]
    childless = [i for i, c in enumerate(tree.children()) if not c and i > 0]
    assert tree.leaves() == childless
    assert tree.cost() == Cost(policy_tokens=sum(n.n_action for n in tree.nodes))


def test_walk_goes_depth_first_in_order() -> None:
    tree = prompt_tree()
    a, b = add(tree, 0), add(tree, 0)
    c = add(tree, a)
    assert list(tree.walk()) == [0, a, c, b]


def test_a_failed_leaf_is_unscored_not_zero() -> None:
    tree = star([1.0, 1.0])
    add(tree, 0, reward=float("nan"), status="failed")
    assert tree.values()[0] == 1.0
    assert tree.outcomes() == [1.0, 1.0]
    assert not tree.mixed()
    assert np.isnan(tree.values()[3])


def test_the_example_of_a_fork_after_the_first_turn() -> None:
    """Root draws a, b with r(a)=0, r(b)=1; a fork after a's first turn adds two successes: V(a)=2/3."""
    tree = prompt_tree()
    a = add(tree, 0)
    add(tree, a, reward=0.0, status="done")
    b = add(tree, 0, reward=1.0, status="done")
    for _ in range(2):
        add(tree, a, reward=1.0, status="done")
    values = tree.values()
    assert values[a] == pytest.approx(2 / 3)
    assert values[b] == 1.0
    assert values[0] == pytest.approx(5 / 6)
    assert tree.mixed()


def test_rewards_along_the_way_add_up() -> None:
    tree = prompt_tree()
    a = add(tree, 0, reward=0.25)
    leaf = add(tree, a, reward=0.5, status="done")
    assert tree.returns()[leaf] == 0.75


def test_a_tree_refuses_what_would_break_its_invariant() -> None:
    tree = star([1.0])
    with pytest.raises(AssertionError, match="ended episode"):
        add(tree, 1)
    with pytest.raises(AssertionError, match="not in the tree"):
        add(tree, 7)
    with pytest.raises(AssertionError, match="one prompt"):
        tree.append(tree[0])
    assert tree[0].parent == NO_PARENT


def test_same_tree_sees_every_difference() -> None:
    assert same_tree(star([1.0, 0.0]), star([1.0, 0.0]))
    assert not same_tree(star([1.0, 0.0]), star([0.0, 1.0]))
    assert not same_tree(star([1.0]), star([1.0, 1.0]))
    assert not same_tree(star([1.0], [2]), star([1.0], [3]))
