"""The flat layout: every trained token once, aligned with its own log-prob, and normalisers that mean what they say."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.trees import add, prompt_tree, random_trees, star
from trace_gym.algorithm import Credit, Normalise
from trace_gym.pack import flatten, token_weights
from trace_gym.tree import Tree


def credit_of(tree: Tree, advantages: Any = None) -> Credit:
    values = np.arange(1.0, len(tree) + 1) if advantages is None else np.asarray(advantages, dtype=float)
    return Credit(values, np.ones(len(tree)))


@given(random_trees(), st.data())
def test_every_trained_token_enters_exactly_once_with_its_own_numbers(
    tree: Tree, data: st.DataObject
) -> None:
    marks = [float(data.draw(st.sampled_from([0.0, 1.0, -2.0, float("nan")]))) for _ in tree.nodes]
    credit = credit_of(tree, marks)
    weights = {"t": np.where(np.isnan(credit.advantage), 0.0, np.arange(1.0, len(tree) + 1))}
    rows = flatten({"t": tree}, {"t": credit}, weights)
    seen = sorted(
        (float(a), float(w), round(float(b), 4), int(t))
        for row in rows
        for t, a, w, b in zip(row.tokens, row.advantage, row.weight, row.behaviour, strict=True)
        if w > 0
    )
    expected = sorted(
        (marks[i], float(weights["t"][i]), round(float(node.logprobs[k]), 4), int(node.tokens[k]))
        for i, node in enumerate(tree.nodes)
        for k in range(node.n_action)
        if not np.isnan(marks[i]) and marks[i] != 0.0
    )
    assert seen == expected


@given(random_trees())
def test_rows_are_the_beginnings_of_paths(tree: Tree) -> None:
    weights = {"t": np.ones(len(tree))}
    paths = {tuple(tree.tokens(i).tolist()) for i in range(len(tree))}
    for row in flatten({"t": tree}, {"t": credit_of(tree)}, weights):
        assert any(tuple(row.tokens.tolist()) == path[: len(row)] for path in paths)
        assert row.weight[-1] > 0  # and end with a trained token
        assert row.weight[0] == 0  # the prompt's first token has no log-prob


def test_rows_without_gradient_are_left_out_unless_kept() -> None:
    tree = star([1.0, 1.0])
    credit = credit_of(tree, [0.0, 0.0, 0.0])
    weights = token_weights({"t": tree}, {"t": credit}, "token")
    assert flatten({"t": tree}, {"t": credit}, weights) == []
    assert len(flatten({"t": tree}, {"t": credit}, weights, keep_zero=True)) == 2


@given(random_trees())
def test_token_weights_sum_to_one_over_the_step(tree: Tree) -> None:
    modes: list[Normalise] = ["token", "sequence"]
    for normalise in modes:
        credit = Credit(np.where(np.isnan(tree.values()), np.nan, 1.0), np.ones(len(tree)))
        weights = token_weights({"t": tree}, {"t": credit}, normalise)["t"]
        mass = sum(w * n.n_action for w, n in zip(weights, tree.nodes, strict=True))
        sampled = sum(
            n.n_action for n, c in zip(tree.nodes, credit.advantage, strict=True) if not np.isnan(c)
        )
        if normalise == "token" and sampled:
            assert mass == pytest.approx(1.0)
        assert np.isfinite(weights).all()


def test_token_normalisation_counts_tokens_and_sequence_normalisation_counts_rollouts() -> None:
    trees = {"a": star([1.0, 0.0], lengths=[2, 6]), "b": star([1.0, 0.0], lengths=[4, 4])}
    credits = {task: credit_of(tree) for task, tree in trees.items()}
    by_token = token_weights(trees, credits, "token")
    np.testing.assert_allclose(by_token["a"][1:], 1 / 16)
    by_sequence = token_weights(trees, credits, "sequence")
    np.testing.assert_allclose(by_sequence["a"][1:], [1 / 2 / 4, 1 / 6 / 4])
    np.testing.assert_allclose(by_sequence["b"][1:], 1 / 4 / 4)
    constant = token_weights(trees, credits, "constant", 10)
    np.testing.assert_allclose(constant["a"][1:], 1 / 40)


def test_a_shared_turn_votes_with_the_mean_of_its_rollouts() -> None:
    tree = prompt_tree()
    a = add(tree, 0, sampled=[5, 6])
    add(tree, a, sampled=[7, 8], reward=1.0, status="done")  # 4 tokens
    add(tree, a, sampled=[7] * 6, reward=0.0, status="done")  # 8 tokens
    weights = token_weights({"t": tree}, {"t": credit_of(tree)}, "sequence")["t"]
    np.testing.assert_allclose(weights[a], (1 / 4 + 1 / 8) / 2 / 2)


def test_nodes_without_advantage_weigh_nothing_and_do_not_dilute() -> None:
    tree = star([1.0, 0.0], lengths=[2, 2])
    credit = credit_of(tree, [float("nan"), 1.0, float("nan")])
    weights = token_weights({"t": tree}, {"t": credit}, "token")["t"]
    np.testing.assert_allclose(weights, [0.0, 0.5, 0.0])


def test_a_row_ends_with_its_last_trained_token() -> None:
    tree = prompt_tree()
    first = add(tree, 0, sampled=[5, 6], shown=[7, 8, 9])
    add(tree, first, sampled=[], reward=0.0, status="truncated")  # the context was full
    (row,) = flatten({"t": tree}, {"t": credit_of(tree)}, {"t": np.ones(len(tree))})
    assert row.tokens.tolist() == [1, 2, 3, 5, 6]
