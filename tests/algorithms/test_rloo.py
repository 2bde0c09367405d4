"""RLOO by hand."""

import numpy as np

from tests.algorithms.test_grpo import context
from tests.support.trees import add, prompt_tree, star
from trace_gym.algorithm import Branch
from trace_gym.algorithms.rloo import RLOO
from trace_gym.pack import flatten, token_weights


def test_a_rollout_is_judged_against_the_mean_of_the_others() -> None:
    tree = prompt_tree()
    first = add(tree, 0)
    add(tree, first, reward=1.0, status="done")
    add(tree, 0, reward=0.0, status="done")
    add(tree, 0, reward=0.0, status="truncated")
    credit = RLOO().credit(context(tree))["task"]
    np.testing.assert_allclose(credit.advantage[1:], [1.0, 1.0, -0.5, -0.5])
    assert (credit.weight == 1.0).all()


def test_a_rollout_left_alone_teaches_nothing() -> None:
    tree = star([1.0])
    add(tree, 0, reward=float("nan"), status="failed")
    assert np.isnan(RLOO().credit(context(tree))["task"].advantage).all()


def test_a_token_counts_the_same_in_short_and_long_rollouts() -> None:
    """The loss is the paper's times 1/256: the mean over rollouts of A times the sum of its tokens' log-probs."""
    tree, algorithm = star([1.0, 0.0], lengths=[1, 5]), RLOO(group=2)
    credits, trees = algorithm.credit(context(tree)), {"task": tree}
    rows = flatten(trees, credits, token_weights(trees, credits, algorithm.normalise))
    per_token = [set((row.advantage * row.weight)[row.weight > 0]) for row in rows]
    assert per_token == [{1 / (2 * 256)}, {-1 / (2 * 256)}]


def test_the_plan_is_one_wave() -> None:
    ctx = context(star([]))
    assert RLOO(group=3).plan(ctx) == [Branch("task", count=3)]
    ctx.idle = ("task",)
    assert RLOO(group=3).plan(ctx) == []
