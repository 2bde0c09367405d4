"""One budget for roots and prefixes: what it opens, what it goes on with, when it stops, and what it spends over many steps."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.support.growing import grow
from tests.support.trees import add_rollout, prompt_tree, star
from trace_gym.algorithm import Branch, RunContext, StepContext
from trace_gym.algorithms.joint import LEAST_COST, OPENING, SHARES, JointRule, _seen
from trace_gym.algorithms.trace import TRACE
from trace_gym.ledger import Cost
from trace_gym.tree import Tree

POOL = tuple("123456789")
PRICE = 0.55


def context(*trees: Tree, step: int = 5) -> StepContext:
    tasks = [tree.task_id for tree in trees]
    run = RunContext(seed=0, tasks=tasks)
    return StepContext(run=run, step=step, trees=dict(zip(tasks, trees, strict=True)), idle=tuple(tasks))


def opened(tree: Tree, *, units: float = 50.0, **fields: Any) -> JointRule:
    """A rule that has opened the tree, at `PRICE`."""
    rule = JointRule(price=PRICE, coverage=0.2, **fields)
    assert rule.open(context(tree), np.array([0.5]), units) == [Branch(tree.task_id, count=OPENING)]
    return rule


def deepen(rule: JointRule, tree: Tree, v: Sequence[float], nodes: Sequence[int] = (0,)) -> dict[int, int]:
    branches = rule.deepen(context(tree), [(tree.task_id, node) for node in nodes], np.array(v))
    assert all(branch.task == tree.task_id for branch in branches)
    return {branch.node: branch.count for branch in branches}


# ---- opening --------------------------------------------------------------------------------------------------------


def test_it_opens_pairs_by_worth_and_the_first_price_is_that_of_the_last() -> None:
    rule = JointRule()
    ctx = context(*(prompt_tree(name) for name in "abcdef"))
    v = np.array([0.0, 0.5, 0.9, 0.4, 1.0, 0.2])
    assert rule.open(ctx, v, 12.0) == [Branch(task, count=2) for task in "bdf"]  # half of 12 units, in pairs
    assert rule.price == pytest.approx(2 * 0.2 * 0.8 + 0.05)


def test_a_price_above_every_worth_still_opens_the_better_ones() -> None:
    """Worth 0.05 + 0.18, 0.42, 0.32, 0.0: those of half of the best."""
    rule = JointRule(price=3.0)
    ctx = context(*(prompt_tree(name) for name in "abcd"))
    found = rule.open(ctx, np.array([0.1, 0.3, 0.2, 0.0]), 60.0)
    assert [branch.task for branch in found] == ["b", "c"]


def test_equal_prompts_are_opened_at_random() -> None:
    first = {
        JointRule()
        .open(context(*(prompt_tree(n) for n in "abcdef"), step=step), np.full(6, 0.3), 4.0)[0]
        .task
        for step in range(40)
    }
    assert first == set("abcdef")


def test_coverage_opens_what_a_sure_prediction_would_not() -> None:
    ctx = context(*(prompt_tree(name) for name in "abcd"))
    v = np.array([1.0, 1.0, 1.0, 0.5])
    assert len(JointRule(price=0.05, coverage=0.0).open(ctx, v, 60.0)) == 1
    assert len(JointRule(price=0.05, coverage=0.2).open(ctx, v, 60.0)) == 4


# ---- going on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("enough", "waves"), [(8, [4, 2, 0]), (4, [2, 0]), (2, [0])])
def test_a_prompt_with_both_outcomes_is_deepened_to_a_group(enough: int, waves: list[int]) -> None:
    tree = star([0.0, 1.0])
    rule = opened(tree, enough=enough)
    for wave in waves:
        assert deepen(rule, tree, [0.5]) == ({0: wave} if wave else {})
        for _ in range(wave):
            add_rollout(tree, 0, 1, reward=1.0)


def test_the_group_of_trace_is_what_is_enough() -> None:
    assert TRACE(budget_rule="joint", group=4, predictor="constant")._joint.enough == 4


@pytest.mark.parametrize(("reward", "predicted"), [(0.0, 0.9), (1.0, 0.1)])
def test_a_prompt_with_one_outcome_is_forked_where_it_may_flip(reward: float, predicted: float) -> None:
    """Prior 4 and one draw: f = 4 x 0.9 / 5 = 0.72. Gains 2f = 1.44, 3f(1-f) = 0.60, 4f(1-f)^2 = 0.23; elsewhere f = 0."""
    tree = prompt_tree()
    leaf = add_rollout(tree, 0, 3, reward=reward)
    add_rollout(tree, 0, 3, reward=reward)
    _, first, second, _ = tree.path(leaf)
    sure = reward  # predicted to end as they did
    rule = opened(tree)
    assert deepen(rule, tree, [sure, sure, predicted], [0, first, second]) == {second: 2}


def test_every_contrast_makes_the_next_one_in_the_tree_worth_less() -> None:
    tree = prompt_tree()
    leaf = add_rollout(tree, 0, 2, reward=0.0)
    add_rollout(tree, 0, 2, reward=1.0)
    anchor = tree.path(leaf)[1]
    assert set(deepen(opened(tree, enough=2), tree, [0.5, 0.9], [0, anchor])) == {anchor}  # 1.44 / 2 > PRICE
    assert deepen(opened(tree, enough=2, discount=0.3), tree, [0.5, 0.9], [0, anchor]) == {}


def test_a_place_where_nothing_was_scored_offers_nothing() -> None:
    tree = prompt_tree()
    leaf = add_rollout(tree, 0, 2, status="failed", reward=float("nan"))
    add_rollout(tree, 0, 1, status="censored", reward=float("nan"))
    assert deepen(opened(tree), tree, [0.5, 0.5], [0, tree.path(leaf)[1]]) == {}


def test_a_tree_is_planned_for_a_limited_number_of_times() -> None:
    tree = star([0.0, 1.0])
    rule = opened(tree, waves=2, enough=100)
    assert deepen(rule, tree, [0.5]) == {0: 4}
    assert deepen(rule, tree, [0.5]) == {}


def test_a_tree_spends_no_more_than_its_shares_whatever_the_price() -> None:
    tree = star([0.0, 1.0])
    rule = JointRule(price=1e-9, enough=1000, waves=1000)
    rule.open(context(tree), np.array([0.5]), 5.0)  # 4 x (5 - 2) rollouts of one turn, four a plan
    plans = [deepen(rule, tree, [0.5]).get(0, 0) for _ in range(6)]
    assert plans == [4, 4, 4, 0, 0, 0]


def test_costs_are_the_share_of_a_rollout_that_is_left_and_broken_ones_count() -> None:
    tree = prompt_tree()
    leaf = add_rollout(tree, 0, 4, reward=1.0)
    add_rollout(tree, 0, 2, status="failed", reward=float("nan"))
    draws, mixed, mean, costs = _seen(tree)
    path = tree.path(leaf)
    assert draws[0] == 1 and not mixed.any() and mean[0] == 1.0
    np.testing.assert_allclose(costs[path], np.array([3, 3, 2, 1, 0]) / 3)  # of (4 + 2) / 2 turns


# ---- the price ------------------------------------------------------------------------------------------------------


def guess(places: Sequence[tuple[str, int]]) -> Any:
    return np.array([np.random.default_rng([int(task), node]).uniform(0.05, 0.95) for task, node in places])


@pytest.mark.parametrize("start", [None, 5.0])
def test_steps_spend_about_their_budget_and_no_tree_too_much(start: float | None) -> None:
    """Also from a price that is far off. The budget is in whole rollouts' worth of tokens."""
    algorithm = TRACE(budget_rule="joint", predictor="oracle", rollouts=16, warmup_steps=0, discount=0.5)
    if start is not None:
        algorithm._joint.price = start
    waves: Counter[str] = Counter()
    plan = algorithm.plan

    def counting(ctx: StepContext) -> Sequence[Branch]:
        branches = plan(ctx)
        waves.update({branch.task for branch in branches})
        return branches

    algorithm.plan = counting  # type: ignore[method-assign]
    shares, units = [], algorithm.units
    for step in range(16):
        waves.clear()
        ctx = grow(algorithm, pool=POOL, step=step, oracle=guess, started=step > 0)
        assert max(waves.values()) <= algorithm.waves
        grown = [tree for tree in ctx.trees.values() if len(tree) > 1]
        for tree in grown:
            spent = sum((node.cost for node in tree.nodes), Cost())
            further = sum(node.cost.rollout_units > 0 for node in tree.nodes) - OPENING
            assert further * LEAST_COST <= SHARES * (units / len(grown) - OPENING) and spent.rollout_units > 0
        mean = np.mean([np.mean([_turns(tree, leaf) for leaf in tree.leaves()]) for tree in grown])
        shares.append(ctx.purse.spent.policy_tokens / (mean * units))
        assert algorithm.observe(ctx)["price"] == algorithm._joint.price
    assert 0.75 < np.mean(shares[-8:]) < 1.25 and np.std(shares[-8:]) < 0.4


def _turns(tree: Tree, leaf: int) -> int:
    return sum(tree[i].n_action for i in tree.path(leaf))


def test_a_step_that_it_did_not_rule_leaves_the_price_alone() -> None:
    algorithm = TRACE(budget_rule="joint", predictor="oracle", rollouts=16, warmup_steps=1)
    ctx = grow(algorithm, pool=POOL, step=0, oracle=guess)
    assert "price" not in algorithm.observe(ctx) and np.isnan(algorithm._joint.price)
    ctx = grow(algorithm, pool=POOL, step=1, oracle=guess, started=True)
    assert algorithm.observe(ctx)["price"] > 0
    price = algorithm._joint.price
    algorithm.observe(ctx)  # the step's plans are forgotten: nothing moves twice
    assert algorithm._joint.price == price
    again = JointRule()
    again.load_state_dict(algorithm._joint.state_dict())
    assert again.price == price
