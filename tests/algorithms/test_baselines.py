"""What every baseline owes: its budget, the same trees in any order, sense under faults, and credit fit for the loss."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.support.growing import credits_of, grow, sizes, stroll
from trace_gym.algorithm import Algorithm
from trace_gym.algorithms.arpo import ARPO
from trace_gym.algorithms.bpo import BPO
from trace_gym.algorithms.dapo import DAPO
from trace_gym.algorithms.gigpo import GiGPO
from trace_gym.algorithms.pcl import PCL
from trace_gym.algorithms.rloo import RLOO
from trace_gym.algorithms.tree_grpo import TreeGRPO
from trace_gym.algorithms.treepo import TreePO
from trace_gym.errors import ConfigError
from trace_gym.ledger import Budget
from trace_gym.pack import flatten, token_weights
from trace_gym.plugins import algorithm_fields, make_algorithm
from trace_gym.tree import same_tree

GROUP = 6
EVERY: dict[str, Callable[[], Algorithm]] = {
    "rloo": lambda: RLOO(group=GROUP),
    "dapo": lambda: DAPO(group=GROUP, prompts=2),
    "pcl": lambda: PCL(group=GROUP, prompts=2, predictor="beta"),
    "tree_grpo": lambda: TreeGRPO(chains=2, expand=1, rounds=2),
    "treepo": lambda: TreePO(group=GROUP),
    "arpo": lambda: ARPO(group=GROUP, first=3),
    "bpo": lambda: BPO(group=GROUP),
    "gigpo": lambda: GiGPO(group=GROUP),
}
every = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())


@every
def test_a_prompt_that_is_opened_gets_its_whole_group(make: Callable[[], Algorithm]) -> None:
    ctx = grow(make())
    assert set(sizes(ctx)) <= {0, GROUP} and sum(sizes(ctx)) >= 2 * GROUP and ctx.refused == 0


@every
def test_the_order_of_completions_changes_nothing(make: Callable[[], Algorithm]) -> None:
    one, *others = (grow(make(), order=order, seed=4) for order in (None, 1))
    for other in others:
        for task, tree in one.trees.items():
            assert same_tree(tree, other.trees[task])
        for task, credit in credits_of(make(), one).items():
            np.testing.assert_array_equal(credit.advantage, credits_of(make(), other)[task].advantage)


@every
@pytest.mark.parametrize(
    "budget", [Budget(rollout_units=7.5), Budget(policy_tokens=150), Budget(env_steps=25)]
)
def test_a_budget_that_refuses_is_kept_and_still_teaches(
    make: Callable[[], Algorithm], budget: Budget
) -> None:
    algorithm = make()
    ctx = grow(algorithm, budget=budget)
    assert ctx.refused > 0 and budget.covers(ctx.purse.spent) and sum(sizes(ctx)) >= 2
    assert max(sizes(ctx)) <= GROUP
    credits_of(algorithm, ctx)


@every
def test_no_budget_no_rollout_no_credit(make: Callable[[], Algorithm]) -> None:
    algorithm = make()
    ctx = grow(algorithm, budget=Budget(rollout_units=0))
    assert sum(sizes(ctx)) == 0 and credits_of(algorithm, ctx) == {}


@every
def test_episodes_of_one_turn_have_no_anchor(make: Callable[[], Algorithm]) -> None:
    """All rollouts then start at the prompt, and there are as many as ever."""
    algorithm = make()
    ctx = grow(algorithm, choose=lambda rng: "stop")
    assert set(sizes(ctx)) <= {0, GROUP} and sum(sizes(ctx)) >= 2 * GROUP
    assert {node.origin for tree in ctx.trees.values() for node in tree.nodes} == {"prompt", "root"}
    for credit in credits_of(
        algorithm, ctx
    ).values():  # one outcome a task: who never walks is at the goal, or never will be
        assert (credit.advantage[1:] == 0.0).all()


@every
def test_rollouts_that_break_are_counted_but_teach_nothing(make: Callable[[], Algorithm]) -> None:
    algorithm = make()
    ctx = grow(algorithm, choose=lambda rng: "raise" if rng.random() < 0.3 else stroll(rng))
    assert set(sizes(ctx)) <= {0, GROUP}
    credits = credits_of(algorithm, ctx)
    for task, credit in credits.items():
        tree = ctx.trees[task]
        lost = [leaf for leaf in tree.leaves() if not tree[leaf].scored]
        assert np.isnan(credit.advantage[lost]).all()
    weights = token_weights(ctx.trees, credits, algorithm.normalise)
    assert all(np.isfinite(row.weight).all() for row in flatten(ctx.trees, credits, weights))


@every
def test_nothing_but_broken_rollouts_ends_the_step(make: Callable[[], Algorithm]) -> None:
    algorithm = make()
    ctx = grow(algorithm, choose=lambda rng: "raise")
    assert max(sizes(ctx)) <= GROUP and credits_of(algorithm, ctx) == {}


@every
def test_a_pool_of_one(make: Callable[[], Algorithm]) -> None:
    algorithm = make()
    ctx = grow(algorithm, pool=["1"])
    assert sizes(ctx) == [GROUP]
    credits_of(algorithm, ctx)


@every
def test_the_next_seed_gives_other_trees(make: Callable[[], Algorithm]) -> None:
    one, other = grow(make(), seed=1), grow(make(), seed=2)
    assert not all(same_tree(tree, other.trees[task]) for task, tree in one.trees.items())


@every
def test_it_can_be_named_and_written_down(make: Callable[[], Algorithm]) -> None:
    algorithm = make()
    name = f"{type(algorithm).__module__}:{type(algorithm).__name__}"
    fields = algorithm_fields(algorithm)
    assert algorithm_fields(make_algorithm(name, fields)) == fields
    assert not any(field.startswith("_") for field in fields)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: RLOO(group=1), "group=1.*2 or more"),
        (lambda: DAPO(prompts=0), "prompts=0"),
        (lambda: PCL(warmup_steps=-1), "warmup_steps"),
        (lambda: TreeGRPO(chains=1, expand=0), r"= 1 rollouts"),
        (lambda: TreePO(first=0), "first=0"),
        (lambda: ARPO(window=0), "window"),
        (lambda: BPO(forks=0), "forks"),
        (lambda: GiGPO(gamma=1.5), "gamma=1.5"),
    ],
)
def test_what_cannot_work_is_refused(make: Callable[[], Algorithm], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()
