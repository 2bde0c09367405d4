"""GiGPO: returns, groups of equal states and their sum by hand."""

from dataclasses import replace

import numpy as np
import pytest

from tests.algorithms.test_grpo import context
from tests.support.growing import credits_of, grow, sizes
from tests.support.trees import add, prompt_tree, star
from trace_gym.algorithms.gigpo import GiGPO, discounted_returns, step_advantages
from trace_gym.tree import Status, Tree


def rollout(tree: Tree, *turns: tuple[str, float], status: Status = "done") -> None:
    """Turns given by the state that each leads to and its reward."""
    parent = 0
    for number, (state, reward) in enumerate(turns):
        ended = number == len(turns) - 1
        parent = add(tree, parent, reward=reward, status=status if ended else "running")
        tree.nodes[parent] = replace(tree[parent], state_key=state)


def three() -> Tree:
    """Start -> a -> end, won in two turns; start -> b -> a -> end, lost; start -> b -> end, won, with a reward on the way."""
    tree = prompt_tree()
    tree.nodes[0] = replace(tree[0], state_key="start")
    rollout(tree, ("a", 0.0), ("", 1.0))
    rollout(tree, ("b", 0.0), ("a", 0.0), ("", 0.0))
    rollout(tree, ("b", 0.5), ("", 1.0))
    return tree


def test_rewards_are_discounted_to_the_turn() -> None:
    np.testing.assert_allclose(discounted_returns(three(), 0.5)[1:], [0.5, 1, 0, 0, 0, 1, 1])


def test_turns_from_equal_states_are_compared() -> None:
    """From start: 1/2, 0, 1. From a: 1 and 0. From b: 0 and 1."""
    advantage = step_advantages(three(), 0.5, deviation=False)
    np.testing.assert_allclose(advantage[1:], [0, 0.5, -0.5, -0.5, -0.5, 0.5, 0.5])
    scaled = step_advantages(three(), 0.5, deviation=True)
    two = 0.5 / np.sqrt(0.5)
    np.testing.assert_allclose(scaled[1:], [0, two, -1, -two, -two, 1, two], rtol=1e-5)


def test_episode_and_step_advantage_are_added() -> None:
    tree = three()  # returns 1, 0, 1.5
    credit = GiGPO(omega=2.0, gamma=0.5, scale="none").credit(context(tree))["task"]
    step = step_advantages(tree, 0.5, deviation=False)[1:]
    episode = np.repeat(np.array([1.0, 0.0, 1.5]) - 2.5 / 3, [2, 3, 2])
    np.testing.assert_allclose(credit.advantage[1:], episode + 2.0 * step)
    assert (credit.weight == 1.0).all()


def test_without_the_step_part_it_is_grpo() -> None:
    tree = three()
    credit = GiGPO(omega=0.0).credit(context(tree))["task"]
    deviation = np.std([1.0, 0.0, 1.5], ddof=1)
    np.testing.assert_allclose(
        credit.advantage[1:], np.repeat(np.array([1.0, 0.0, 1.5]) - 2.5 / 3, [2, 3, 2]) / deviation, rtol=1e-5
    )


def test_a_state_met_once_adds_nothing() -> None:
    tree = prompt_tree()
    rollout(tree, ("a", 0.0), ("", 1.0))
    rollout(tree, ("b", 0.0), ("", 0.0))
    np.testing.assert_allclose(step_advantages(tree, 1.0, deviation=False)[1:], [0.5, 0.0, -0.5, 0.0])


def test_a_state_seen_twice_in_one_rollout_counts_twice() -> None:
    """Start, a loop back to a, then the end: the two turns from a have returns 1/2 and 1."""
    tree = prompt_tree()
    rollout(tree, ("a", 0.0), ("a", 0.0), ("", 1.0))
    np.testing.assert_allclose(step_advantages(tree, 0.5, deviation=False)[1:], [0.0, -0.25, 0.25])


def test_a_rollout_that_failed_is_in_no_group() -> None:
    tree = three()
    before = GiGPO().credit(context(three()))["task"].advantage
    rollout(tree, ("a", 0.0), ("", float("nan")), status="failed")
    advantage = GiGPO().credit(context(tree))["task"].advantage
    np.testing.assert_allclose(advantage[: len(before)], before)
    assert np.isnan(advantage[len(before) :]).all()


def test_one_outcome_in_one_turn_teaches_exactly_nothing() -> None:
    assert (GiGPO().credit(context(star([0.1, 0.1, 0.1])))["task"].advantage[1:] == 0.0).all()


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_on_grown_trees_each_state_is_centred(gamma: float) -> None:
    algorithm = GiGPO(group=8, gamma=gamma)
    ctx = grow(algorithm, pool=["1", "2"], seed=1)
    assert sizes(ctx) == [8, 8]
    credits_of(algorithm, ctx)
    for tree in ctx.trees.values():
        advantage = step_advantages(tree, gamma, deviation=False)
        states = np.array(["", *(tree[tree[i].parent].state_key for i in range(1, len(tree)))])
        assert len(set(states)) < len(states) - 8  # there are equal states to compare
        for state in set(states[1:]):
            assert advantage[states == state].sum() == pytest.approx(0.0, abs=1e-9)
