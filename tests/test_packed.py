"""The packed layout against the flat one, which shares none of its code: same log-probs, same gradients, fewer tokens."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.trees import add, any_trees, prompt_tree, random_trees
from trace_gym import attention
from trace_gym.algorithm import Credit
from trace_gym.algorithms.grpo import GRPO
from trace_gym.attention import TreeAttention
from trace_gym.errors import ConfigError
from trace_gym.pack import Pack, Row, flatten, pack, subtrees
from trace_gym.policy import Layout, Policy, TensorBatch
from trace_gym.tree import Tree
from trace_gym.update import Updater

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


def update(
    policy: Policy, rows: Sequence[Row], max_tokens: int
) -> tuple[dict[Any, float], list[torch.Tensor]]:
    """Log-prob of every trained token, by its path, and the gradient of a weighted sum, over micro-batches."""
    seen: dict[Any, float] = {}
    policy.model.zero_grad()
    for group in policy.micro_batches(rows, max_tokens):
        batch = TensorBatch.of([rows[i] for i in group], policy.device)
        logprobs = policy.logprobs(batch.tokens, batch.weight > 0)
        (logprobs * batch.weight * batch.advantage).sum().backward()
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
    apart = [a - b for a, b in zip(one[1], other[1], strict=True)]
    assert norm(apart) <= 1e-5 * norm(other[1])


def norm(gradients: Sequence[torch.Tensor]) -> float:
    return float(torch.stack([g.double().norm() for g in gradients]).norm())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(any_trees(), random_trees(vocabulary=3)), min_size=1, max_size=3),
    st.sampled_from([1, 12, 40, 10_000]),
    st.sampled_from([0, 8, 64]),
    st.integers(0, 9),
)
def test_packed_equals_flat(
    both: dict[str, Policy], trees: list[Tree], max_tokens: int, small: int, seed: int
) -> None:
    """Forests of any shape, whole and cut. A vocabulary of 3 makes what is shared cross turns, trees and samples."""
    rows = rows_of({str(i): tree for i, tree in enumerate(trees)}, seed)
    if rows:
        with mock.patch.object(attention, "SMALL", small):
            packed = update(both["packed"], rows, max_tokens)
        assert_alike(packed, update(both["flat"], rows, 64))


def forked() -> Tree:
    """Two turns, a fork in the middle, a turn without observation, one of no action, a single chain at the end."""
    tree = prompt_tree(tokens=[1, 2, 3])
    first = add(tree, 0, sampled=[7, 8], shown=[9])
    add(tree, first, sampled=[10, 11], status="done")
    add(tree, first, sampled=[10, 12, 13], status="done")
    bare = add(tree, 0, sampled=[7], shown=())
    silent = add(tree, bare, sampled=(), shown=[5])
    add(tree, silent, sampled=[6, 6], status="done")
    return tree


@pytest.mark.parametrize("max_tokens", [1, 9, 1000])
def test_forks_bare_turns_and_turns_of_no_action(both: dict[str, Policy], max_tokens: int) -> None:
    tree = forked()
    credit = Credit(np.arange(1.0, len(tree) + 1), np.ones(len(tree)))
    rows = flatten({"t": tree}, {"t": credit}, {"t": np.linspace(0.5, 1.0, len(tree))})
    assert_alike(update(both["packed"], rows, max_tokens), update(both["flat"], rows, 1000))


# ---- what a pack holds ----------------------------------------------------------------------------------------------


def test_a_pack_by_hand() -> None:
    """1 2 3 ┬ 7 8
    └ 7 9 ┬ 5      and 4"""
    found = pack(
        [np.array(x) for x in ([1, 2, 3, 7, 8], [1, 2, 3, 7, 9, 5], [4], [1, 2], [1, 2, 3, 7, 9, 5])]
    )
    assert found.tokens.tolist() == [4, 1, 2, 3, 7, 9, 5, 8]
    assert found.position.tolist() == [0, 0, 1, 2, 3, 4, 5, 4]
    assert found.end.tolist() == [1, 8, 8, 8, 8, 7, 7, 8]
    assert found.segments() == [(0, 1, 1), (1, 5, 8), (5, 7, 7), (7, 8, 8)]
    assert [p.tolist() for p in found.paths] == [
        [1, 2, 3, 4, 7], [1, 2, 3, 4, 5, 6], [0], [1, 2], [1, 2, 3, 4, 5, 6]
    ]  # fmt: skip
    assert len(pack([])) == 0 and pack([]).paths == ()


sequences = st.lists(st.lists(st.integers(0, 2), max_size=7).map(np.array), min_size=1, max_size=12)


@given(sequences)
def test_every_beginning_stands_once_and_sees_itself_alone(given_rows: list[Any]) -> None:
    rows = [row.astype(np.int32) for row in given_rows]
    found = pack(rows)
    beginnings = {tuple(row[: t + 1].tolist()) for row in rows for t in range(len(row))}
    assert len(found) == len(beginnings)
    k = np.arange(len(found))
    for row, path in zip(rows, found.paths, strict=True):
        assert found.tokens[path].tolist() == row.tolist()
        assert found.position[path].tolist() == list(range(len(row)))
        for t, q in enumerate(path):
            assert np.flatnonzero((k <= q) & (q < found.end)).tolist() == path[: t + 1].tolist()


@given(sequences, st.sampled_from([0, 3, 6, 64]))
def test_the_parts_of_attention_are_every_pair_once(given_rows: list[Any], small: int) -> None:
    found = pack([*(row.astype(np.int32) for row in given_rows), np.array([3])])
    seen = np.zeros((len(found), len(found)), dtype=int)
    written = np.zeros(len(found), dtype=int)
    with mock.patch.object(attention, "SMALL", small):
        own, above = attention.parts(found)
    for part in (*own, *above):
        assert part.causal + (part.mask is not None) == (part.low == part.start)
        shape = part.high - part.low, part.stop - part.start
        assert part.mask is None or 1 < shape[0] <= small
        pairs = (
            np.tri(*shape)
            if part.causal
            else np.ones(shape)
            if part.mask is None
            else part.mask.exp().numpy()[0, 0]
        )
        seen[part.low : part.high, part.start : part.stop] += pairs.astype(int)
        written[part.low : part.high] += part.low == part.start
    k = np.arange(len(found))
    assert (seen == ((k[None] <= k[:, None]) & (k[:, None] < found.end[None]))).all()
    assert (written == 1).all()


@given(sequences, st.integers(1, 20))
def test_cuts_hold_every_row_once_within_the_limit(given_rows: list[Any], max_tokens: int) -> None:
    zeros = [np.zeros(len(row), dtype=np.float32) for row in given_rows]
    rows = [Row(row.astype(np.int32), z, z, z) for row, z in zip(given_rows, zeros, strict=True)]
    groups = list(subtrees(rows, max_tokens))
    assert sorted(i for group in groups for i in group) == list(range(len(rows)))
    for group in groups:
        assert len(pack([rows[i].tokens for i in group])) <= max_tokens or len(group) == 1


class Watch:
    """What goes through a model: input ids of each pass, and positions its head ran on."""

    def __init__(self, model: Any) -> None:
        self.inputs: list[list[int]] = []
        self.read: list[int] = []
        self.handles = [
            model.base_model.register_forward_pre_hook(self._base, with_kwargs=True),
            model.lm_head.register_forward_pre_hook(lambda _, args: self.read.append(len(args[0]))),
        ]

    def _base(self, module: Any, args: Any, options: Any) -> None:
        self.inputs.append(sorted(options["input_ids"].flatten().tolist()))

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()


def one_pass(policy: Policy, rows: Sequence[Row]) -> Watch:
    batch = TensorBatch.of(rows, policy.device)
    with Watch(policy.model) as watch, torch.no_grad():
        policy.logprobs(batch.tokens, batch.weight > 0)
    return watch


def test_a_token_goes_through_the_model_once_and_the_head_runs_where_something_is_read(
    both: dict[str, Policy],
) -> None:
    tree = forked()
    rows = flatten({"t": tree}, {"t": Credit(np.ones(7), np.ones(7))}, {"t": np.ones(7)})
    watch = one_pass(both["packed"], rows)
    # 7 8 9 10 and 7 5 6 6 share the 7 they begin with; the last of each path is only read off
    assert watch.inputs == [sorted([1, 2, 3, 7, 8, 9, 10, 12, 5, 6])]
    assert watch.read == [7]  # after 3, 7, 9, 10, 12, 5 and the first 6
    assert sum(int((row.weight > 0).sum()) for row in rows) == 10


def test_what_carries_no_gradient_is_not_computed(both: dict[str, Policy]) -> None:
    """Subtrees of advantage 0 and observations after the last trained token."""
    tree = prompt_tree(tokens=[1, 2, 3])
    first = add(tree, 0, sampled=[7, 8], shown=[9, 20])
    idle = add(tree, first, sampled=[30, 31], shown=[32])
    add(tree, idle, sampled=[33], status="done")
    add(tree, first, sampled=[10, 11], shown=[21, 22])
    credit = Credit(np.array([0.0, 1.0, 0.0, 0.0, 1.0]), np.ones(5))
    watch = one_pass(both["packed"], flatten({"t": tree}, {"t": credit}, {"t": np.ones(5)}))
    assert watch.inputs == [[1, 2, 3, 7, 8, 9, 10, 20]]
    kept = flatten({"t": tree}, {"t": credit}, {"t": np.ones(5)}, keep_zero=True)  # for a KL term
    assert one_pass(both["packed"], kept).inputs == [sorted([1, 2, 3, 7, 8, 9, 10, 20, 30, 31, 32])]


# ---- with everything else -------------------------------------------------------------------------------------------


def some_rows() -> list[Row]:
    """A wide tree of turns of up to 60 tokens."""
    rng = np.random.default_rng(5)
    tree = prompt_tree(tokens=rng.integers(1, VOCABULARY, 30).tolist())
    for _ in range(12):
        parents = [i for i, node in enumerate(tree.nodes) if node.status == "running"]
        sampled, shown = (rng.integers(1, VOCABULARY, n).tolist() for n in rng.integers(1, 60, 2))
        add(tree, int(rng.choice(parents)), sampled, shown)
    return rows_of({"t": tree})


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_heads_that_share_keys_and_checkpointing(kv_heads: int, checkpointing: bool) -> None:
    model, rows = tiny_llama(num_key_value_heads=kv_heads), some_rows()
    packed = Policy(model, layout="packed", checkpointing=checkpointing)
    assert_alike(update(packed, rows, 400), update(Policy(model, layout="flat"), rows, 400))
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own doing
def test_adapters_learn_the_same() -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny_llama()
    get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    found = [update(Policy(model, layout=layout), some_rows(), 10**6) for layout in ("packed", "flat")]
    assert_alike(*found)
    assert len(found[0][1]) == 2 * 7 * 2  # factors, linear maps, layers


def test_half_precision_is_as_near_as_the_flat_layout_in_it() -> None:
    model, rows = tiny_llama(initializer_range=0.1), some_rows()
    exact = update(Policy(model, layout="flat"), rows, 10**6)
    off = {}
    for layout in ("packed", "flat"):
        found = update(Policy(model, layout=layout, autocast=torch.bfloat16), rows, 10**6)
        errors = [abs(found[0][k] - exact[0][k]) for k in exact[0]]
        apart = [a - b for a, b in zip(found[1], exact[1], strict=True)]
        off[layout] = max(errors), norm(apart) / norm(exact[1])
    assert all(p <= 2 * f for p, f in zip(off["packed"], off["flat"], strict=True)), off
    assert max(off["flat"]) < 0.1


def kinds_of_model() -> dict[str, tuple[Any, str]]:
    """Models and why they cannot be packed."""
    import transformers as t

    size: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    gpt = t.GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=256)
    bloom = t.BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2)
    mamba = t.MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4)
    return {
        "qwen2": (t.Qwen2ForCausalLM(t.Qwen2Config(**size)), ""),
        "qwen3": (t.Qwen3ForCausalLM(t.Qwen3Config(**size, head_dim=8)), ""),
        "gpt2": (t.GPT2LMHeadModel(gpt), ""),
        "granite": (t.GraniteForCausalLM(t.GraniteConfig(**size, logits_scaling=8.0)), ""),
        "mistral": (t.MistralForCausalLM(t.MistralConfig(**size, sliding_window=64)), "sliding_window"),
        "gemma2": (t.Gemma2ForCausalLM(t.Gemma2Config(**size, head_dim=8)), "layers of sliding_attention"),
        "bloom": (t.BloomForCausalLM(bloom), "."),
        "mamba": (t.MambaForCausalLM(mamba), "."),
    }


@pytest.mark.filterwarnings("ignore")  # of models that miss faster kernels
def test_models_that_cannot_be_packed_are_found_out() -> None:
    import re

    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = kinds_of_model()
    rows = [row for row in some_rows() if len(row) < 250]
    for name, (model, reason) in models.items():
        model.eval()
        policy = Policy(model)
        if reason:
            assert re.search(reason, policy.flat_because), (name, policy.flat_because)
            with pytest.raises(
                ConfigError, match=rf"policy\.layout=packed cannot be used with {type(model).__name__}"
            ):
                Policy(model, layout="packed")
        else:
            assert policy.flat_because == "", (name, policy.flat_because)
            assert_alike(update(policy, rows, 10**6), update(Policy(model, layout="flat"), rows, 10**6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("leak", ["sees its sister", "misses its root"])
def test_attention_that_is_wrong_is_found_out(
    monkeypatch: pytest.MonkeyPatch, leak: str, dtype: torch.dtype
) -> None:
    model, right = tiny_llama().to(dtype), attention.parts

    def wrong(packed: Pack) -> Any:
        own, above = right(packed)
        if leak == "misses its root":
            return own, above[1:]
        return own, [*above, replace(own[-1], start=own[-2].start, stop=own[-2].stop, causal=False)]

    monkeypatch.setattr(attention, "SMALL", 0)
    assert Policy(model).flat_because == ""
    monkeypatch.setattr(attention, "parts", wrong)
    assert Policy(model).flat_because


def test_a_pass_that_fails_leaves_the_model_as_it_was(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(model, layout="packed")
    tokens = torch.arange(8)[None]
    before = model(input_ids=tokens).logits

    def broken(*args: Any, **options: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(TreeAttention, "__call__", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            policy.logprobs(tokens, tokens > 3)
    assert torch.equal(model(input_ids=tokens).logits, before)


def test_old_and_reference_log_probs_and_mini_batches(model: Any) -> None:
    """Two layouts, two optimiser steps with clipping and a KL term: the same weights and metrics."""
    found = []
    layouts: tuple[Layout, ...] = ("flat", "packed")
    for layout in layouts:
        net = copy.deepcopy(model)
        updater = Updater(
            Policy(net, layout=layout),
            torch.optim.SGD(net.parameters(), lr=0.05),
            lr=lambda n: 0.05,
            minibatches=2,
            micro_batch_tokens=300,
            reference=Policy(copy.deepcopy(model), layout=layout),
        )
        metrics = updater.update(GRPO(kl=0.1), some_rows(), np.random.default_rng(0))
        found.append((metrics, [p.detach() for p in net.parameters()]))
    (flat, of_flat), (packed, of_packed) = found
    assert flat.keys() == packed.keys() and flat["kl"] > 0
    assert packed == pytest.approx(flat, rel=1e-4, abs=1e-6)
    for a, b in zip(of_packed, of_flat, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


# ---- CUDA -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_blocks_of_the_block_mask_are_those_of_the_whole_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    trunk = rng.integers(1, 9, 900)
    found = pack(
        [np.append(trunk[: rng.integers(900)], rng.integers(1, 9, rng.integers(300))) for _ in range(6)]
    )
    mask, size = attention.block_mask(found, torch.device("cpu")), attention.bucket(len(found))
    q, k = torch.arange(size)[:, None], torch.arange(size)[None]
    whole = mask.mask_mod(0, 0, q, k)
    blocks = whole.unflatten(0, (-1, 128)).unflatten(2, (-1, 128)).float().mean(dim=(1, 3))
    for numbers, indices, chosen in (
        (mask.full_kv_num_blocks, mask.full_kv_indices, blocks == 1),
        (mask.kv_num_blocks, mask.kv_indices, (blocks > 0) & (blocks < 1)),
    ):
        for line, number, index in zip(chosen, numbers[0, 0], indices[0, 0], strict=True):
            assert index[:number].sort().values.tolist() == line.nonzero().flatten().tolist()
    assert (blocks == 1).any()


def test_the_block_mask_means_the_same() -> None:
    """FlexAttention's forward pass runs on a CPU too."""
    rng = np.random.default_rng(0)
    packed = pack([row.tokens for row in some_rows()])
    query, key, value = (
        torch.from_numpy(rng.normal(size=(1, h, len(packed), 16))).float() for h in (4, 2, 2)
    )
    cpu = torch.device("cpu")
    expected = TreeAttention.of(packed, cpu)(query, key, value, 0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is slow when not compiled
        found = attention.flex(query, key, value, attention.block_mask(packed, cpu), 0.25)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert [attention.bucket(n) for n in (1, 128, 129, 300, 513)] == [128, 128, 256, 512, 1024]


@pytest.mark.gpu
def test_packed_equals_flat_on_cuda() -> None:
    model = tiny_llama(hidden_size=64).cuda()
    packed, flat = (Policy(model, layout=layout) for layout in ("packed", "flat"))
    for max_tokens in (200, 10**6):
        assert_alike(update(packed, some_rows(), max_tokens), update(flat, some_rows(), 1000))
