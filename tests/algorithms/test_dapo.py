"""DAPO opens prompts until enough groups are mixed, and no more than that."""

import numpy as np
import pytest

from tests.algorithms.test_grpo import context
from tests.support.growing import credits_of, grow, sizes
from tests.support.trees import star
from trace_gym.algorithm import Branch
from trace_gym.algorithms.dapo import DAPO
from trace_gym.ledger import Budget
from trace_gym.tree import Tree

ALL = "123456789"


def pool(*rewards: list[float]) -> list[Tree]:
    return [Tree(str(i), star(r).nodes) for i, r in enumerate(rewards)]


def test_a_group_of_one_outcome_is_replaced_by_the_next_prompt() -> None:
    ctx = context(*pool([1, 1], [0, 1], [], [], []))
    ctx.idle = ("0", "1")
    assert DAPO(prompts=2, group=4).plan(ctx) == [Branch("2", count=4)]
    ctx.idle = ("1",)  # and 0 was replaced before
    assert DAPO(prompts=2, group=4).plan(ctx) == []


def test_two_at_once_are_replaced_by_two() -> None:
    ctx = context(*pool([1, 1], [0, 0], [0, 0], [], [], []))
    ctx.idle = ("1", "2")  # 0 ended before them and was replaced: by 3, still on its way
    assert [b.task for b in DAPO(prompts=3).plan(ctx)] == ["4", "5"]


def test_the_pool_may_be_too_small() -> None:
    ctx = context(*pool([1, 1], [0, 0]))
    assert [b.task for b in DAPO(prompts=5).plan(ctx)] == ["0", "1"]
    ctx.idle = ("0", "1")
    assert DAPO(prompts=5).plan(ctx) == []


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("order", [None, 7])
def test_it_opens_the_shortest_beginning_of_the_pool_that_has_enough(seed: int, order: int | None) -> None:
    algorithm = DAPO(prompts=3, group=4)
    ctx = grow(algorithm, seed=seed, pool=ALL, order=order)
    opened = [n > 0 for n in sizes(ctx)]
    mixed = [tree.mixed() for tree in ctx.trees.values()]
    last = sum(opened)
    assert opened == [True] * last + [False] * (9 - last)
    assert sum(mixed) == 3 if last < 9 else sum(mixed) <= 3
    assert mixed[last - 1] or last == 9
    assert set(credits_of(algorithm, ctx)) == {t for t, tree in ctx.trees.items() if tree.mixed()}
    assert ctx.purse.spent.rollout_units == 4 * last  # dropped groups are paid for


def test_a_spent_budget_ends_the_search() -> None:
    ctx = grow(DAPO(prompts=3, group=4), pool=ALL, choose=lambda rng: "stop", budget=Budget(rollout_units=18))
    assert sizes(ctx) == [4, 4, 4, 4, 2, 0, 0, 0, 0] and ctx.refused > 0


def test_credit_is_the_groups_standard_score() -> None:
    ctx = context(*pool([1, 0, 0, 0], [1, 1, 1, 1]))
    credits = DAPO().credit(ctx)
    assert set(credits) == {"0"}
    np.testing.assert_allclose(credits["0"].advantage[1:], [1.5, -0.5, -0.5, -0.5], rtol=1e-5)


def test_the_papers_clip_and_normaliser() -> None:
    algorithm = DAPO()
    assert (algorithm.clip_low, algorithm.clip_high, algorithm.normalise) == (0.2, 0.28, "token")
