"""GRPO's credit against a calculation by hand, and its plan."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given

from tests.support.trees import add, prompt_tree, random_trees, star
from trace_gym.algorithm import Branch, Credit, RunContext, StepContext, check_credits
from trace_gym.algorithms.credit import Scaling, credit_trees
from trace_gym.algorithms.grpo import GRPO
from trace_gym.errors import ConfigError, PluginError
from trace_gym.tree import Tree


def group_advantage(tree: Tree, scale: Scaling) -> np.ndarray[Any, np.dtype[np.float64]]:
    """GRPO's credit where rollouts share turns too: the mean over the rollouts through each."""
    trees = {tree.task_id: tree}
    credits = credit_trees(trees, mode="leaf_mean", weights="turn", scale=scale)
    return credits[tree.task_id].advantage if credits else np.full(len(tree), np.nan)


def context(*trees: Tree) -> StepContext:
    return StepContext(run=RunContext(seed=0, tasks=[]), step=0, trees={t.task_id: t for t in trees})


def test_the_group_is_centred_and_scaled_by_its_sample_deviation() -> None:
    advantage = group_advantage(star([1.0, 0.0, 0.0, 0.0]), "group_std")
    deviation = np.sqrt((0.75**2 + 3 * 0.25**2) / 3)
    np.testing.assert_allclose(advantage[1:], np.array([0.75, -0.25, -0.25, -0.25]) / deviation, rtol=1e-5)


def test_without_scaling_it_is_the_reward_less_the_mean() -> None:
    np.testing.assert_allclose(group_advantage(star([1.0, 0.0]), "none")[1:], [0.5, -0.5])


def test_every_turn_of_a_rollout_gets_its_advantage() -> None:
    tree = prompt_tree()
    first = add(tree, 0)
    add(tree, first, reward=1.0, status="done")
    add(tree, 0, reward=0.0, status="done")
    np.testing.assert_allclose(group_advantage(tree, "none"), [0.0, 0.5, 0.5, -0.5])


def test_one_outcome_teaches_nothing() -> None:
    np.testing.assert_allclose(group_advantage(star([1.0, 1.0, 1.0]), "group_std")[1:], 0.0)
    np.testing.assert_allclose(group_advantage(star([1.0]), "group_std")[1:], 0.0)


def test_unscored_rollouts_stay_out_of_the_group() -> None:
    tree = star([1.0, 0.0])
    failed = add(tree, 0, reward=float("nan"), status="failed")
    advantage = group_advantage(tree, "none")
    np.testing.assert_allclose(advantage[1:3], [0.5, -0.5])
    assert np.isnan(advantage[failed])


@given(random_trees())
def test_a_shared_turn_takes_the_mean_over_its_rollouts(tree: Tree) -> None:
    returns = tree.returns()
    scored = [i for i in range(len(tree)) if not np.isnan(returns[i])]
    mean = np.mean([returns[i] for i in scored]) if scored else 0.0
    for index, value in enumerate(group_advantage(tree, "none")):
        through = [returns[i] - mean for i in scored if index in tree.path(i)]
        np.testing.assert_allclose(value, np.mean(through) if through else np.nan, atol=1e-12)


def test_the_plan_is_one_uniform_wave() -> None:
    ctx = context(star([]), Tree("other", star([]).nodes))
    algorithm = GRPO(group=3)
    assert algorithm.plan(ctx) == [Branch("task", count=3), Branch("other", count=3)]
    ctx.idle = ("task",)
    assert algorithm.plan(ctx) == []


def test_trees_without_a_scored_rollout_get_no_credit() -> None:
    tree = prompt_tree()
    add(tree, 0, reward=float("nan"), status="failed")
    assert GRPO().credit(context(tree)) == {}


def test_fields_are_keyword_only() -> None:
    with pytest.raises(TypeError):
        GRPO(8)  # type: ignore[call-arg]


def test_equal_fractional_returns_teach_exactly_nothing() -> None:
    assert (group_advantage(star([0.1, 0.1, 0.1]), "group_std")[1:] == 0.0).all()


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 or more"):
        GRPO(group=1)


@pytest.mark.parametrize(
    ("advantage", "weight", "says"),
    [
        ([0.0, np.inf, 0.0], [1.0, 1.0, 1.0], "infinite"),
        ([0.0, np.nan, 0.0], [1.0, -1.0, 1.0], "negative"),
        ([0.0, 1.0], [1.0, 1.0], "each of the tree's 3 nodes"),
    ],
)
def test_credit_that_must_not_reach_the_loss(advantage: list[float], weight: list[float], says: str) -> None:
    ctx = context(star([1.0, 0.0]))
    with pytest.raises(PluginError, match=says):
        check_credits(ctx, {"task": Credit(np.array(advantage), np.array(weight))}, "Mine")
    with pytest.raises(PluginError, match="Mine"):
        check_credits(ctx, None, "Mine")
    with pytest.raises(PluginError, match="pool"):
        check_credits(ctx, {"other": Credit(np.zeros(3), np.zeros(3))}, "Mine")
