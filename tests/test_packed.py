"""The packed layout against the flat one, which shares none of its code: same log-probs, same gradients, fewer tokens."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.trees import add, any_trees, prompt_tree, random_trees
from trace_gym.algorithm import Credit
from trace_gym.pack import Row, flatten, pack, subtrees
from trace_gym.policy import Layout, Policy, TensorBatch
from trace_gym.tree import Tree

VOCABULARY = 40


def tiny_llama(**changes: Any) -> Any:
    """Attention that looks around: of a freshly drawn Llama it is all but uniform."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            **{
                "vocab_size": VOCABULARY,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 256,
                "tie_word_embeddings": True,
                "pad_token_id": 0,
                "initializer_range": 0.3,
                **changes,
            }
        )
        return LlamaForCausalLM(config).float().eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama()


@pytest.fixture(scope="module")
def both(model: Any) -> dict[str, Policy]:
    return {layout: Policy(model, temperature=0.8, layout=layout) for layout in ("flat", "packed")}


def rows_of(trees: Mapping[str, Tree], seed: int = 0) -> list[Row]:
    """Every node with advantage and weight of its own."""
    rng = np.random.default_rng(seed)
    credits, weights = {}, {}
    for task, tree in trees.items():
        advantage = rng.choice([-2.0, -1.0, 0.0, 0.5, 1.0], len(tree))
        advantage[rng.random(len(tree)) < 0.1] = np.nan
        credits[task] = Credit(advantage, np.ones(len(tree)))
        weights[task] = np.where(np.isnan(advantage), 0.0, rng.uniform(0.1, 1.0, len(tree)))
    return flatten(trees, credits, weights)


def update(policy: Policy, rows: Sequence[Row], max_tokens: int) -> tuple[dict[Any, float], list[torch.Tensor]]:
    """Log-prob of every trained token, by its path, and the gradient of a weighted sum, over micro-batches."""
    seen: dict[Any, float] = {}
    policy.model.zero_grad()
    for group in policy.micro_batches(rows, max_tokens):
        batch = TensorBatch.of([rows[i] for i in group], policy.device)
        logprobs = policy.logprobs(batch.tokens, batch.weight > 0)
        (logprobs * batch.weight * batch.advantage).sum().backward()  # type: ignore[no-untyped-call]
        for line, i in zip(logprobs.detach(), group, strict=True):
            for t in np.flatnonzero(rows[i].weight):
                assert (i, t) not in seen  # never twice
                seen[i, t] = float(line[t])
            assert not line[len(rows[i]) :].any() and not line[: len(rows[i])][rows[i].weight == 0].any()
    assert len(seen) == sum(np.count_nonzero(row.weight) for row in rows)  # and all of them
    return seen, [p.grad.clone() for p in policy.model.parameters() if p.grad is not None]


def assert_alike(
    one: tuple[dict[Any, float], list[torch.Tensor]], other: tuple[dict[Any, float], list[torch.Tensor]]
) -> None:
    assert one[0].keys() == other[0].keys()
    assert max(abs(one[0][k] - other[0][k]) for k in one[0]) < 1e-4
    assert len(one[1]) == len(other[1]) > 0
    for a, b in zip(one[1], other[1], strict=True):
        # 1e-5 of the largest entry, or of what rounding leaves where entries cancel
        assert (a - b).abs().max() <= 1e-5 * max(float(b.abs().max()), 1e-2 * largest(other[1]))


def largest(gradients: Sequence[torch.Tensor]) -> float:
    return max(float(g.abs().max()) for g in gradients)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(any_trees(), random_trees(vocabulary=3)), min_size=1, max_size=3),
    st.sampled_from([1, 12, 40, 10_000]),
    st.integers(0, 9),
)
def test_packed_equals_flat(both: dict[str, Policy], trees: list[Tree], max_tokens: int, seed: int) -> None:
    """Forests of any shape, whole and cut. A vocabulary of 3 makes what is shared cross turns, trees and samples."""
    rows = rows_of({str(i): tree for i, tree in enumerate(trees)}, seed)
    if rows:
        flat, packed = update(both["flat"], rows, 64), update(both["packed"], rows, max_tokens)
        assert_alike(packed, flat)
