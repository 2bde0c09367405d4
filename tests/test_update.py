"""Log-probs, loss and update against plain tensor calculations that share no code with them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.trees import add, prompt_tree, star
from trace_gym.algorithm import Algorithm
from trace_gym.algorithms.grpo import GRPO
from trace_gym.engine import IntArray
from trace_gym.pack import Row, flatten, token_weights
from trace_gym.policy import Policy, TensorBatch, micro_batches
from trace_gym.tree import Node, Tree
from trace_gym.update import Updater, warm_up, warm_up_and_decay

VOCABULARY = 40


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            pad_token_id=0,
            initializer_range=0.3,
        )
        return LlamaForCausalLM(config).float()


def slow_logprobs(model: Any, tokens: IntArray, temperature: float = 1.0) -> torch.Tensor:
    """[T] log-prob of every token, one full forward pass of one sequence; entry 0 is 0."""
    logits = model(torch.tensor(tokens[None].astype(np.int64))).logits[0] / temperature
    table = torch.log_softmax(logits, dim=-1)
    picked = [table[t - 1, int(tokens[t])] for t in range(1, len(tokens))]
    return torch.stack([torch.zeros(()), *picked])


def two_rollouts(rewards: tuple[float, float] = (1.0, 0.0)) -> Tree:
    """Two rollouts of two turns, with observations between, of different lengths."""
    tree = prompt_tree(tokens=[3, 1, 4])
    for draw, reward in enumerate(rewards):
        first = add(tree, 0, sampled=[7, 8 + draw], shown=[2, 11, 2][: 2 + draw], logprob=-2.0)
        add(tree, first, sampled=[12, 13, 14 + draw], reward=reward, status="done", logprob=-1.5)
    return tree


def rows_of(tree: Tree, algorithm: GRPO) -> list[Row]:
    from tests.algorithms.test_grpo import context

    credits = algorithm.credit(context(tree))
    weights = token_weights({"task": tree}, credits, algorithm.normalise, algorithm.constant_tokens)
    return flatten({"task": tree}, credits, weights, keep_zero=algorithm.kl > 0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_one_forward_pass_per_sequence(model: Any, temperature: float) -> None:
    rows = rows_of(two_rollouts(), GRPO())
    batch = TensorBatch.of(rows, torch.device("cpu"))
    got = Policy(model, temperature=temperature).logprobs(batch.tokens, batch.weight > 0)
    for line, row in zip(got, rows, strict=True):
        expected = slow_logprobs(model, row.tokens, temperature)
        mask = torch.from_numpy(row.weight > 0)
        torch.testing.assert_close(line[: len(row)][mask], expected[mask], atol=2e-6, rtol=1e-5)
        assert (line[: len(row)][~mask] == 0).all()


def reference_loss(model: Any, start: Any, tree: Tree, algorithm: GRPO) -> torch.Tensor:
    """GRPO's loss written out: rollout by rollout, token by token, in plain tensors."""
    leaves = tree.leaves()
    rewards = np.array([tree[leaf].reward for leaf in leaves])
    advantages = rewards - rewards.mean()
    if algorithm.scale == "group_std":
        advantages = advantages / (rewards.std(ddof=1) + 1e-6)
    counts = [sum(tree[i].n_action for i in tree.path(leaf)) for leaf in leaves]
    total = torch.zeros(())
    for leaf, advantage, count in zip(leaves, advantages, counts, strict=True):
        weight = {
            "token": 1.0 / sum(counts),
            "sequence": 1.0 / count / len(leaves),
            "constant": 1.0 / (len(leaves) * algorithm.constant_tokens),
        }[algorithm.normalise]
        tokens = tree.tokens(leaf)
        now, before = slow_logprobs(model, tokens), slow_logprobs(start, tokens).detach()
        position = 0
        for node in (tree[i] for i in tree.path(leaf)):
            for k in range(node.n_action):
                t = position + k
                ratio = torch.exp(now[t] - before[t])
                low, high = 1.0 - algorithm.clip_low, 1.0 + algorithm.clip_high
                gain = torch.minimum(ratio * advantage, torch.clamp(ratio, low, high) * advantage)
                mismatch = torch.exp(before[t] - float(node.logprobs[k]))
                if algorithm.mismatch_cap > 0:
                    gain = gain * torch.clamp(mismatch, max=algorithm.mismatch_cap)
                total = total - weight * gain
                if algorithm.kl > 0:
                    log_ratio = before[t] - now[t]
                    total = total + weight * algorithm.kl * (torch.exp(log_ratio) - 1 - log_ratio)
            position += len(node.tokens)
    return total


ALGORITHMS = [
    GRPO(),
    GRPO(normalise="sequence"),
    GRPO(normalise="constant", constant_tokens=7, scale="none"),
    GRPO(clip_low=0.05, clip_high=0.3, mismatch_cap=0.0),
    GRPO(kl=0.1),
    GRPO(mismatch_cap=1.1),
]


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=range(len(ALGORITHMS)))
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("micro_batch_tokens", [8, 1000])
def test_loss_and_gradient_equal_an_independent_calculation(
    model: Any, algorithm: GRPO, moved: bool, micro_batch_tokens: int
) -> None:
    """`moved`: the weights are no longer those of the step's start, so that ratios, clipping and KL matter."""
    start, now = copy.deepcopy(model), copy.deepcopy(model)
    if moved:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in now.parameters():
                p.add_(0.02 * torch.randn(p.shape, generator=generator))
    tree = two_rollouts()
    expected = reference_loss(now, start, tree, algorithm)
    gradient = torch.autograd.grad(expected, list(now.parameters()))
    rows = rows_of(tree, algorithm)
    policy, old = Policy(now), Policy(start)
    total, got = 0.0, [torch.zeros_like(p) for p in now.parameters()]
    for group in micro_batches(rows, micro_batch_tokens):
        batch = TensorBatch.of([rows[i] for i in group], torch.device("cpu"))
        with torch.no_grad():
            batch.old = old.logprobs(batch.tokens, batch.weight > 0)
            batch.reference = batch.old
        loss, _ = algorithm.loss(policy.logprobs(batch.tokens, batch.weight > 0), batch)
        total += float(loss.detach())
        for g, part in zip(got, torch.autograd.grad(loss, list(now.parameters())), strict=True):
            g += part
    assert total == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-6)
    scale = max(float(g.abs().max()) for g in gradient)
    for a, b in zip(got, gradient, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5 * scale, rtol=1e-4)
    assert scale > 1e-4  # there was something to compare


def test_the_gradient_raises_the_better_rollout(model: Any) -> None:
    net = copy.deepcopy(model)
    updater = Updater(
        Policy(net), torch.optim.SGD(net.parameters(), lr=0.01), lr=lambda n: 0.01, max_grad_norm=1e9
    )
    tree = two_rollouts()
    good, bad = tree.leaves()
    before = [float(slow_logprobs(net, tree.tokens(leaf)).detach()[-3:].sum()) for leaf in (good, bad)]
    updater.update(GRPO(), rows_of(tree, GRPO()), np.random.default_rng(0))
    after = [float(slow_logprobs(net, tree.tokens(leaf)).detach()[-3:].sum()) for leaf in (good, bad)]
    assert after[0] - after[1] > before[0] - before[1] + 1e-3


def test_sgd_step_is_minus_lr_times_the_gradient(model: Any) -> None:
    net = copy.deepcopy(model)
    gradient = torch.autograd.grad(reference_loss(net, net, two_rollouts(), GRPO()), list(net.parameters()))
    before = [p.detach().clone() for p in net.parameters()]
    updater = Updater(
        Policy(net), torch.optim.SGD(net.parameters(), lr=0.5), lr=lambda n: 0.5, max_grad_norm=1e9
    )
    metrics = updater.update(GRPO(), rows_of(two_rollouts(), GRPO()), np.random.default_rng(0))
    for p, b, g in zip(net.parameters(), before, gradient, strict=True):
        torch.testing.assert_close(p.detach(), b - 0.5 * g, atol=1e-5, rtol=1e-4)
    norm = float(torch.sqrt(sum((g**2).sum() for g in gradient)))  # type: ignore[arg-type]
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-3)


def test_minibatches_take_several_steps_against_the_first_log_probs(model: Any) -> None:
    net = copy.deepcopy(model)
    updater = Updater(Policy(net), torch.optim.SGD(net.parameters(), lr=0.1), lr=lambda n: 0.1, minibatches=2)
    metrics = updater.update(GRPO(), rows_of(two_rollouts(), GRPO()), np.random.default_rng(0))
    assert updater.updates == 2 and np.isfinite(metrics["loss"])


def test_a_broken_gradient_leaves_the_weights_alone(model: Any) -> None:
    class Broken(GRPO):
        def loss(self, logprobs: torch.Tensor, batch: Any) -> tuple[torch.Tensor, dict[str, float]]:
            return logprobs.sum() * float("nan"), {}

    net = copy.deepcopy(model)
    before = [p.detach().clone() for p in net.parameters()]
    updater = Updater(Policy(net), torch.optim.SGD(net.parameters(), lr=0.1), lr=lambda n: 0.1)
    metrics = updater.update(Broken(), rows_of(two_rollouts(), GRPO()), np.random.default_rng(0))
    assert metrics["skipped_updates"] == 1.0 and updater.updates == 0
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


def test_no_rows_no_step(model: Any) -> None:
    net = copy.deepcopy(model)
    updater = Updater(Policy(net), torch.optim.AdamW(net.parameters(), lr=0.1), lr=lambda n: 0.1)
    rows = rows_of(star([1.0, 1.0]), GRPO())
    assert rows == []
    assert updater.update(GRPO(), rows, np.random.default_rng(0))["skipped_updates"] == 1.0
    assert updater.updates == 0


def test_micro_batches_hold_every_row_once_within_the_limit() -> None:
    def row(n: int) -> Row:
        z = np.zeros(n, dtype=np.float32)
        return Row(np.zeros(n, dtype=np.int32), z, z, z)

    rows = [row(n) for n in (3, 9, 2, 7, 7, 1, 30)]
    groups = list(micro_batches(rows, 18))
    assert sorted(i for g in groups for i in g) == list(range(7))
    assert all(len(g) * max(len(rows[i]) for i in g) <= 18 or len(g) == 1 for g in groups)


def test_schedules() -> None:
    assert [warm_up(1.0, 4)(n) for n in (0, 1, 3, 9)] == [0.25, 0.5, 1.0, 1.0]
    decay = warm_up_and_decay(1.0, 2, 10)
    assert decay(0) == 0.5 and decay(2) == 1.0
    assert decay(10) == pytest.approx(0.1) and decay(99) == pytest.approx(0.1)


def test_the_default_loss_is_the_algorithm_bases() -> None:
    assert GRPO.loss is Algorithm.loss


def test_nodes_check_their_shapes() -> None:
    good = star([1.0])[1]
    with pytest.raises(AssertionError):
        Node(**{name: getattr(good, name) for name in Node.__slots__} | {"n_action": 5})
