"""Costs, budgets and reservations."""

import time
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_gym.errors import BudgetError
from trace_gym.ledger import Budget, Cost, Ledger, Purse


def test_costs_add_and_subtract_field_by_field() -> None:
    one, two = Cost(1, 2, 3, 4, 5, 0.5), Cost(10, 20, 30, 40, 50, 1.0)
    assert one + two == Cost(11, 22, 33, 44, 55, 1.5)
    assert two - one == Cost(9, 18, 27, 36, 45, 0.5)
    assert len(fields(Cost)) == 6  # sums are written out: a new field belongs into them


def test_a_budget_covers_every_limit_it_names_and_no_other() -> None:
    budget = Budget(policy_tokens=10, rollout_units=1.5)
    assert budget.covers(Cost(policy_tokens=10, rollout_units=1.5, env_steps=1000))
    assert not budget.covers(Cost(policy_tokens=11))
    assert not budget.covers(Cost(rollout_units=2.0))
    assert budget.minus(Cost(policy_tokens=4)) == Budget(policy_tokens=6, rollout_units=1.5)
    assert budget.minus(Cost(policy_tokens=40)).policy_tokens == 0


def test_negative_budgets_are_refused() -> None:
    with pytest.raises(BudgetError, match="policy_tokens"):
        Budget(policy_tokens=-1)
    with pytest.raises(BudgetError, match="rollout_units"):
        Budget(rollout_units=float("nan"))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=30), st.integers(0, 300))
def test_spent_and_reserved_never_exceed_the_budget(jobs: list[tuple[int, int]], limit: int) -> None:
    purse = Purse(Budget(policy_tokens=limit))
    running: list[tuple[Cost, Cost]] = []
    for worst, actual in jobs:
        need = Cost(policy_tokens=max(worst, actual))
        if purse.reserve(need):
            running.append((need, Cost(policy_tokens=actual)))
        elif running:
            purse.settle(*running.pop(0))
        assert (purse.spent + purse.reserved).policy_tokens <= limit
    for need, done in running:
        purse.settle(need, done)
    assert purse.reserved == Cost()
    left = purse.left.policy_tokens
    assert left is not None and left == limit - purse.spent.policy_tokens


def test_phases_are_timed() -> None:
    ledger = Ledger()
    for _ in range(2):
        with ledger.timed("engine"):
            pass
    assert ledger.seconds["engine"] > 0


def test_a_block_inside_another_is_counted_once() -> None:
    ledger = Ledger()
    start = time.perf_counter()
    with ledger.timed("plan"):
        with ledger.timed("oracle"):
            time.sleep(0.05)
        with ledger.timed("oracle"), ledger.timed("engine"):
            time.sleep(0.05)
    whole = time.perf_counter() - start
    assert ledger.seconds["oracle"] >= 0.05 and ledger.seconds["engine"] >= 0.05
    assert sum(ledger.seconds.values()) <= whole
