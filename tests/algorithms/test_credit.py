"""Credit rules against formulas written out node by node, hand-made numbers, and gradients of a small network."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import slow_credit as slow
from tests.support.trees import add, add_rollout, any_trees, grown_trees, prompt_tree, star
from trace_gym.algorithm import RunContext, StepContext, check_credits
from trace_gym.algorithms.credit import (
    ADVANTAGES,
    CreditMode,
    NodeWeights,
    Scaling,
    TargetWeighting,
    credit_trees,
    edge,
    group,
    leaf_counts,
    leaf_mean,
    loo,
    node_values,
    node_weights,
    own_returns,
    sibling,
    treerl,
)
from trace_gym.tree import Tree

Floats = npt.NDArray[np.float64]
NAN = float("nan")
MODES: tuple[CreditMode, ...] = get_args(CreditMode)
TARGETS: tuple[TargetWeighting, ...] = get_args(TargetWeighting)
WEIGHTS: tuple[NodeWeights, ...] = get_args(NodeWeights)
SCALES: tuple[Scaling, ...] = get_args(Scaling)

numbers = st.one_of(st.sampled_from([0.1, 0.5, -1.0, 0.0]), st.floats(-3.0, 3.0))
fractional = any_trees(numbers)
binary = any_trees()


def by_node(rule: Callable[[Tree, int], float], tree: Tree) -> Floats:
    return np.array([rule(tree, node) for node in range(len(tree))])


def of_leaves(rule: Callable[[Tree, int], float]) -> Callable[[Tree, int], float]:
    """A rule for leaves, carried to a turn as the mean over the rollouts through it."""
    return lambda tree, node: slow.mean([rule(tree, leaf) for leaf in slow.scored_leaves(tree, node)])


def same(got: Floats, expected: Floats) -> None:
    """The prompt was not sampled: what a rule says there never reaches the loss."""
    np.testing.assert_allclose(got[1:], expected[1:], atol=1e-9, rtol=1e-9)


# ---- values and weights ---------------------------------------------------------------------------------------------


@given(st.one_of(binary, fractional), st.sampled_from(TARGETS))
def test_values_equal_the_slow_back_up(tree: Tree, target: TargetWeighting) -> None:
    expected = by_node(lambda t, n: slow.value(t, n, target), tree)
    np.testing.assert_allclose(node_values(tree, target), expected, atol=1e-12)


@given(fractional)
def test_draw_values_are_the_trees(tree: Tree) -> None:
    np.testing.assert_allclose(node_values(tree, "draw"), tree.values(), atol=1e-12)


@given(binary)
def test_counts_and_own_returns(tree: Tree) -> None:
    counts = [len(slow.scored_leaves(tree, n)) for n in range(len(tree))]
    assert leaf_counts(tree).tolist() == counts
    same(own_returns(tree), by_node(lambda t, n: slow.outcome(t, slow.own_leaf(t, n)), tree))


@given(binary, st.sampled_from(WEIGHTS))
def test_weights_equal_the_slow_ones(tree: Tree, kind: NodeWeights) -> None:
    got, expected = node_weights(tree, kind), by_node(lambda t, n: slow.weight(t, n, kind), tree)
    assert (np.isfinite(got) & (got >= 0)).all()
    known = leaf_counts(tree) > 0  # an unscored turn has no advantage, so its weight means nothing
    same(np.where(known, got, 0.0), expected)


@given(binary)
def test_path_weights_of_scored_leaves_sum_to_one(tree: Tree) -> None:
    """They are the probabilities of reaching each leaf by choosing among draws at random."""
    ends = slow.scored_leaves(tree)
    assert not ends or node_weights(tree, "path")[ends].sum() == pytest.approx(1.0)


def test_fresh_leaves_out_the_child_that_made_the_node_an_anchor() -> None:
    tree = prompt_tree()
    failed = add_rollout(tree, 0, 3, reward=0.0)
    anchor = tree.path(failed)[1]
    add_rollout(tree, anchor, 2, reward=1.0)
    add_rollout(tree, anchor, 1, reward=1.0)
    assert node_values(tree, "draw")[anchor] == pytest.approx(2 / 3)
    assert node_values(tree, "fresh")[anchor] == 1.0
    add_rollout(tree, 0, 1, reward=0.0)  # the prompt was not chosen by an outcome: all its draws count
    assert node_values(tree, "fresh")[0] == 0.5


def test_fresh_keeps_the_only_draw_there_is() -> None:
    tree = prompt_tree()
    leaf = add_rollout(tree, 0, 2, reward=1.0)
    add_rollout(tree, tree.path(leaf)[1], 2, status="failed", reward=NAN)
    assert node_values(tree, "fresh")[:2].tolist() == [1.0, 1.0]


def test_leaf_weighting_counts_leaves() -> None:
    tree = prompt_tree()
    leaf = add_rollout(tree, 0, 2, reward=1.0)
    add_rollout(tree, 0, 1, reward=0.0)
    add_rollout(tree, tree.path(leaf)[1], 1, reward=1.0)
    assert node_values(tree, "leaf")[0] == pytest.approx(2 / 3)
    assert node_values(tree, "draw")[0] == 0.5


# ---- advantages -----------------------------------------------------------------------------------------------------

SLOW: dict[CreditMode, Callable[[Tree, int], float]] = {
    "group": slow.group,
    "loo": slow.loo,
    "leaf_mean": slow.leaf_mean,
    "tree_grpo": of_leaves(slow.tree_grpo_of_leaf),
    "treepo": of_leaves(slow.treepo_of_leaf),
    "treepo_plain": of_leaves(slow.treepo_plain_of_leaf),
    "treepo_grouped": of_leaves(slow.treepo_grouped_of_leaf),
}


@pytest.mark.parametrize("mode", sorted(SLOW))
@settings(max_examples=60)
@given(tree=st.one_of(binary, fractional))
def test_leaf_rules_equal_the_slow_ones(mode: CreditMode, tree: Tree) -> None:
    same(ADVANTAGES[mode](tree, "draw"), by_node(SLOW[mode], tree))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("mode", ["edge", "sibling", "treerl"])
@settings(max_examples=60)
@given(tree=st.one_of(binary, fractional))
def test_value_rules_equal_the_slow_ones(mode: CreditMode, target: TargetWeighting, tree: Tree) -> None:
    rule = {"edge": slow.edge, "sibling": slow.sibling, "treerl": slow.treerl}[mode]
    same(ADVANTAGES[mode](tree, target), by_node(lambda t, n: rule(t, n, target), tree))


def test_every_mode_is_judged() -> None:
    assert set(SLOW) | {"edge", "sibling", "treerl"} == set(MODES) == set(ADVANTAGES)


def worked_example() -> Tree:
    """Two root draws a (fails) and b (succeeds), two turns each; then a fork after a's first turn adds two successes."""
    tree = prompt_tree()
    add_rollout(tree, 0, 2, reward=0.0)  # nodes 1, 2
    add_rollout(tree, 0, 2, reward=1.0)  # nodes 3, 4
    add_rollout(tree, 1, 1, reward=1.0)  # node 5
    add_rollout(tree, 1, 1, reward=1.0)  # node 6
    return tree


def test_the_worked_example() -> None:
    tree = worked_example()
    assert node_values(tree)[1] == pytest.approx(2 / 3)
    np.testing.assert_allclose(edge(tree)[1:], [-1 / 3, -1, 1 / 3, 1 / 3, 1 / 2, 1 / 2])
    np.testing.assert_allclose(sibling(tree)[1:], [0, -1, 0, 0, 1 / 2, 1 / 2])
    np.testing.assert_allclose(group(tree)[1:], [-3 / 4, -3 / 4, 1 / 4, 1 / 4, 1 / 4, 1 / 4])
    np.testing.assert_allclose(loo(tree)[1:], [-1, -1, 1 / 3, 1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(leaf_mean(tree)[1:], [-1 / 12, -3 / 4, 1 / 4, 1 / 4, 1 / 4, 1 / 4])
    root, a = 5 / 6, 2 / 3
    np.testing.assert_allclose(
        treerl(tree)[1:],
        [2 * (a - root) / 3**0.5, -root - a, 2 * (1 - root), 1 - root, 2 - root - a, 2 - root - a],
    )
    np.testing.assert_allclose(node_weights(tree, "path")[1:], [1 / 2, 1 / 6, 1 / 2, 1 / 2, 1 / 6, 1 / 6])
    np.testing.assert_allclose(node_weights(tree, "leaf")[1:], [3, 1, 1, 1, 1, 1])


def chains(rewards: list[float], turns: list[int], status: list[str]) -> Tree:
    tree = prompt_tree()
    for reward, n, end in zip(rewards, turns, status, strict=True):
        lost = end == "failed"
        add_rollout(tree, 0, n, status="failed" if lost else "done", reward=NAN if lost else reward)
    return tree


@given(
    st.lists(st.tuples(numbers, st.integers(1, 4), st.sampled_from(["done", "done", "failed"])), min_size=1)
)
def test_without_forks_edge_is_loo_and_group_is_leaf_mean(rollouts: list[tuple[float, int, str]]) -> None:
    tree = chains(*map(list, zip(*rollouts, strict=True)))
    for target in TARGETS:
        same(edge(tree, target), loo(tree))
    same(group(tree), leaf_mean(tree))
    # and leave-one-out is the group's advantage times G / (G - 1)
    size = int(leaf_counts(tree)[0])
    if size > 1:
        same(loo(tree), group(tree) * size / (size - 1))
    assert (np.nan_to_num(sibling(tree)) == 0.0).all()


@given(st.one_of(binary, fractional))
def test_sibling_is_zero_before_the_first_fork(tree: Tree) -> None:
    advantage = sibling(tree)
    for node in range(1, len(tree)):
        forks = [p for p in slow.above(tree, node) if p != 0 and len(slow.scored_kids(tree, p)) > 1]
        if not forks and slow.scored_leaves(tree, node):
            assert advantage[node] == 0.0


@given(binary)
def test_edge_sums_to_zero_over_siblings(tree: Tree) -> None:
    """Leave-one-out over a fork's draws is contrast alone."""
    advantage = edge(tree)
    for node in range(len(tree)):
        drawn = slow.scored_kids(tree, node)
        if len(drawn) > 1:
            assert sum(advantage[drawn]) == pytest.approx(0.0, abs=1e-9)


# ---- nan, single rollouts, single outcomes --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@given(tree=st.one_of(binary, fractional), target=st.sampled_from(TARGETS))
def test_unscored_turns_are_nan(mode: CreditMode, tree: Tree, target: TargetWeighting) -> None:
    advantage = ADVANTAGES[mode](tree, target)
    assert np.isnan(advantage[1:][leaf_counts(tree)[1:] == 0]).all()
    assert not np.isinf(advantage).any()


def test_a_single_rollout_has_no_baseline() -> None:
    tree = chains([1.0], [3], ["done"])
    assert np.isnan(edge(tree)[1:]).all() and np.isnan(loo(tree)[1:]).all()
    for mode in set(MODES) - {"edge", "loo"}:
        assert (ADVANTAGES[mode](tree, "draw")[1:] == 0.0).all()


def test_a_single_rollout_with_a_fork_has_one_below_it() -> None:
    tree = chains([1.0], [3], ["done"])
    add_rollout(tree, 1, 1, reward=0.0)
    assert np.isnan(edge(tree)[1]) and edge(tree)[2:].tolist() == [1.0, 1.0, -1.0]


def test_a_lost_rollout_through_a_scored_turn() -> None:
    """The turn's own rollout failed, a continuation from it was scored: rules over own leaves are silent, others speak."""
    tree = chains([0.0, 0.0], [2, 1], ["failed", "done"])
    add_rollout(tree, 1, 1, reward=1.0)
    silent: tuple[CreditMode, ...] = ("group", "loo")
    speaking: tuple[CreditMode, ...] = (
        "edge",
        "leaf_mean",
        "treepo",
        "treepo_plain",
        "treepo_grouped",
        "treerl",
    )
    for mode in silent:
        assert np.isnan(ADVANTAGES[mode](tree, "draw")[[1, 2]]).all()
    for mode in speaking:
        advantage = ADVANTAGES[mode](tree, "draw")
        assert advantage[1] > 0 and np.isnan(advantage[2])


@given(
    grown_trees(st.just(0.1)),
    st.sampled_from(MODES),
    st.sampled_from(SCALES),
    st.sampled_from(WEIGHTS),
    st.sampled_from(TARGETS),
)
def test_one_outcome_teaches_exactly_nothing(
    tree: Tree, mode: CreditMode, scale: Scaling, weights: NodeWeights, target: TargetWeighting
) -> None:
    """Also where a mean of tenths is no tenth: what rounding leaves must not be scaled up to a lesson."""
    outcomes = tree.outcomes()
    if outcomes and max(outcomes) - min(outcomes) < 1e-12:
        credits = credit_trees({"task": tree}, mode=mode, weights=weights, scale=scale, target=target)
        advantage = credits["task"].advantage[1:]
        assert (advantage[~np.isnan(advantage)] == 0.0).all()


@pytest.mark.parametrize("mode", MODES)
def test_one_outcome_below_a_fork_leaves_no_rounding(mode: CreditMode) -> None:
    """Three draws of 0.1 under one turn: their mean is not 0.1 in floating point."""
    tree = prompt_tree()
    add_rollout(tree, 0, 2, reward=0.1)
    for _ in range(2):
        add_rollout(tree, 1, 1, reward=0.1)
    add_rollout(tree, 0, 1, reward=0.9)
    advantage = credit_trees({"task": tree}, mode=mode, weights="path", scale="none")["task"].advantage
    small = np.abs(advantage[1:]) < 1e-6
    assert (advantage[1:][small] == 0.0).all()


# ---- scaling and the whole ------------------------------------------------------------------------------------------


@given(
    st.lists(grown_trees(numbers), min_size=1, max_size=3), st.sampled_from(MODES), st.sampled_from(WEIGHTS)
)
def test_scaling_divides_by_the_stated_deviation(
    forest: list[Tree], mode: CreditMode, weights: NodeWeights
) -> None:
    trees = {str(i): tree for i, tree in enumerate(forest)}
    plain, by_group, by_batch = (
        credit_trees(trees, mode=mode, weights=weights, scale=scale) for scale in SCALES
    )
    by_group, by_batch = by_batch, by_group
    assert set(plain) == {task for task, tree in trees.items() if slow.scored_leaves(tree)}
    entries = [
        (float(a), float(w))
        for c in plain.values()
        for a, w in zip(c.advantage[1:], c.weight[1:], strict=True)
        if not math.isnan(a)
    ]
    mass = math.fsum(w for _, w in entries)
    centre = math.fsum(w * a for a, w in entries) / mass if mass else 0.0
    batch = math.sqrt(math.fsum(w * (a - centre) ** 2 for a, w in entries) / mass) if mass else 0.0
    for task, credit in plain.items():
        outcomes = slow.returns(trees[task])
        centre = slow.mean(outcomes)
        sample = math.sqrt(math.fsum((r - centre) ** 2 for r in outcomes) / max(len(outcomes) - 1, 1))
        for scaled, deviation in ((by_group, sample), (by_batch, batch)):
            if deviation > 1e-7:
                expected = credit.advantage / (deviation + 1e-6)
                np.testing.assert_allclose(scaled[task].advantage, expected, rtol=1e-6, atol=1e-9)
            assert (scaled[task].weight == credit.weight).all()


@given(st.lists(st.one_of(binary, fractional), min_size=1, max_size=3), st.sampled_from(MODES), st.data())
def test_what_reaches_the_loss_passes_the_check(
    forest: list[Tree], mode: CreditMode, data: st.DataObject
) -> None:
    trees = {str(i): tree for i, tree in enumerate(forest)}
    ctx = StepContext(run=RunContext(seed=0, tasks=[]), step=0, trees=trees)
    credits = credit_trees(
        trees,
        mode=mode,
        weights=data.draw(st.sampled_from(WEIGHTS)),
        scale=data.draw(st.sampled_from(SCALES)),
        target=data.draw(st.sampled_from(TARGETS)),
    )
    check_credits(ctx, credits, mode)


def test_group_std_is_grpos_formula() -> None:
    tree = star([1.0, 0.0, 0.0, 1.0, 1.0])
    credit = credit_trees({"task": tree}, mode="group", weights="turn", scale="group_std")["task"]
    r = np.array([1.0, 0.0, 0.0, 1.0, 1.0])
    np.testing.assert_allclose(credit.advantage[1:], (r - r.mean()) / r.std(ddof=1), rtol=1e-5)


def test_trees_without_a_scored_rollout_are_left_out() -> None:
    lost = prompt_tree("lost")
    add(lost, 0, reward=NAN, status="failed")
    trees = {"lost": lost, "bare": prompt_tree("bare"), "good": star([1.0, 0.0])}
    assert set(credit_trees(trees, mode="edge", weights="path", scale="none")) == {"good"}


# ---- unbiasedness and gradients -------------------------------------------------------------------------------------


def test_path_weights_give_every_turn_the_sum_that_its_draws_represent() -> None:
    """A two-turn tree expanded evenly: each level's weights sum to 1, however many nodes it holds."""
    tree = prompt_tree()
    for _ in range(3):
        leaf = add_rollout(tree, 0, 2, reward=0.0)
        for _ in range(3):
            add_rollout(tree, tree.path(leaf)[1], 1, reward=1.0)
    weight, depth = node_weights(tree, "path"), tree.depths()
    assert weight[depth == 1].sum() == pytest.approx(1.0) and weight[depth == 2].sum() == pytest.approx(1.0)


def random_forest(seed: int) -> dict[str, Tree]:
    """Two grown trees with distinct tokens, rewards that are not 0/1, deep forks and a lost rollout."""
    rng = np.random.default_rng(seed)
    trees = {}
    for task in ("one", "two"):
        tree = trees[task] = prompt_tree(task, tokens=[3, 1])
        for number in range(6):
            anchors = [i for i, n in enumerate(tree.nodes) if i > 0 and n.status == "running"]
            node = 0 if number < 2 else int(rng.choice(anchors))
            turns = int(rng.integers(1, 4)) if number >= 2 else 3
            words = rng.integers(1, 40, size=(turns, 2)).tolist()
            lost = number == 4
            reward = NAN if lost else float(rng.choice([0.0, 1.0, 0.3]))
            add_rollout(tree, node, turns, status="failed" if lost else "done", reward=reward, sampled=words)
    return trees


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("moved", [False, True])
def test_leaf_mean_with_leaf_weights_is_training_every_path_separately(seed: int, moved: bool) -> None:
    """Unclipped, with a constant normaliser: the gradient that shared turns get is the sum over the rollouts through them."""
    torch = pytest.importorskip("torch")
    from trace_gym.algorithms.grpo import GRPO
    from trace_gym.pack import flatten, token_weights
    from trace_gym.policy import Policy, TensorBatch

    trees = random_forest(seed)
    algorithm = GRPO(
        advantage="leaf_mean",
        weights="leaf",
        scale="none",
        normalise="constant",
        constant_tokens=7,
        clip_low=1e9,
        clip_high=1e9,
        mismatch_cap=0.0,
    )
    start, now = small_network(0), small_network(5 if moved else 0)
    ctx = StepContext(run=RunContext(seed=0, tasks=[]), step=0, trees=trees)
    credits = algorithm.credit(ctx)
    weights = token_weights(trees, credits, algorithm.normalise, algorithm.constant_tokens)
    batch = TensorBatch.of(flatten(trees, credits, weights), torch.device("cpu"))
    with torch.no_grad():
        batch.old = Policy(start).logprobs(batch.tokens, batch.weight > 0)
    loss, _ = algorithm.loss(Policy(now).logprobs(batch.tokens, batch.weight > 0), batch)
    got = torch.autograd.grad(loss, list(now.parameters()))
    expected = torch.autograd.grad(every_path_separately(now, start, trees, 7), list(now.parameters()))
    scale = max(float(g.abs().max()) for g in expected)
    assert scale > 1e-4
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5 * scale, rtol=1e-4)


def small_network(seed: int) -> Any:
    """A causal network (a GRU) behind the interface of a language model."""
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(40, 16)
            self.body = torch.nn.GRU(16, 16, batch_first=True)
            self.head = torch.nn.Linear(16, 40)

        def forward(self, input_ids: Any, use_cache: bool = False) -> Any:
            return SimpleNamespace(logits=self.head(self.body(self.embed(input_ids))[0]))

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net()


def every_path_separately(now: Any, start: Any, trees: dict[str, Tree], constant: int) -> Any:
    """Each scored leaf is a sequence of its own, all its sampled tokens trained with its advantage in its prompt's group."""
    import torch

    total, paths = torch.zeros(()), sum(len(slow.scored_leaves(tree)) for tree in trees.values())
    for tree in trees.values():
        for leaf in slow.scored_leaves(tree):
            nodes = [tree[i] for i in (*reversed(slow.above(tree, leaf)), leaf)]
            ids = torch.tensor([[int(token) for node in nodes for token in node.tokens]])
            sampled = [k < node.n_action for node in nodes for k in range(len(node.tokens))]
            after, before = (
                torch.log_softmax(net(ids).logits[0, :-1], dim=-1).gather(1, ids[0, 1:, None])[:, 0]
                for net in (now, start)
            )
            ratio = torch.exp(after - before.detach())[torch.tensor(sampled[1:])]
            total = total - ratio.sum() * slow.group_of_leaf(tree, leaf) / (paths * constant)
    return total
