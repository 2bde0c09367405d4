"""Tokens per second of `TransformersEngine` beside the model's own `generate`, same weights, prompts and lengths.

    trace-gym bench speed --only engine

A tiny Llama from scratch, fp32. The prompts are all of one length and there is no stop token, which suits `generate`
best. The `turns` column is what rollouts look like: requests end at different times and are followed by the next turn.
"""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from trace_gym.engine import IntArray, Request
from trace_gym.engines.transformers import TransformersEngine
from trace_gym.runs import environment_facts

Prompts = npt.NDArray[np.int64]  # [batch, PROMPT]

PROMPT, NEW, TURNS, VOCABULARY = 64, 128, 4, 512


def tiny_llama() -> LlamaForCausalLM:
    """0.92 M parameters."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.eval()
    return model


def generate_speed(model: LlamaForCausalLM, prompts: Prompts) -> float:
    config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=NEW, pad_token_id=0)
    ids = torch.from_numpy(prompts)
    start = time.perf_counter()
    out: Any = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)  # type: ignore[misc]
    return float(len(prompts) * (out.shape[1] - PROMPT) / (time.perf_counter() - start))


def engine_speed(engine: TransformersEngine, prompts: Prompts) -> float:
    engine.load((), version=0)  # an empty cache
    start = time.perf_counter()
    for seed, prompt in enumerate(prompts):
        engine.submit(Request(prompt.astype(np.int32), max_tokens=NEW, seed=seed))
    tokens = done = 0
    while done < len(prompts):
        completions = engine.poll(1.0)
        done += len(completions)
        tokens += sum(len(c.tokens) for c in completions)
    return tokens / (time.perf_counter() - start)


def turns_speed(engine: TransformersEngine, prompts: Prompts) -> float:
    """Episodes of several turns of up to 64 tokens (32 on average); an observation of 16 tokens between turns."""
    engine.load((), version=0)
    rng, start, tokens, seed = np.random.default_rng(0), time.perf_counter(), 0, 0
    queue = [(prompt.astype(np.int32), TURNS) for prompt in prompts]
    running: dict[int, tuple[IntArray, int]] = {}
    while queue or running:
        for prefix, left in queue:
            seed += 1
            running[engine.submit(Request(prefix, max_tokens=int(rng.integers(1, 64)), seed=seed))] = (
                prefix,
                left,
            )
        queue = []
        for completion in engine.poll(0.05):
            prefix, left = running.pop(completion.request_id)
            tokens += len(completion.tokens)
            if left > 1:
                observation = rng.integers(0, VOCABULARY, 16).astype(np.int32)
                queue.append((np.concatenate([prefix, completion.tokens, observation]), left - 1))
    return tokens / (time.perf_counter() - start)


def measure(*, quick: bool = False) -> dict[str, Any]:
    """Tokens per second by batch: medians of three rounds (quick: one) in which the three take turns."""
    batches, rounds = ((4,), 1) if quick else ((8, 32, 128), 3)
    model, rng = tiny_llama(), np.random.default_rng(0)
    rows = []
    for batch in batches:
        engine = TransformersEngine(model, max_batch=batch)
        prompts = rng.integers(0, VOCABULARY, (batch, PROMPT))
        runs = [
            (generate_speed(model, prompts), engine_speed(engine, prompts), turns_speed(engine, prompts))
            for _ in range(rounds)
        ]
        generate, own, turns = (statistics.median(column) for column in zip(*runs, strict=True))
        rows.append(
            {"batch": batch, "generate": generate, "engine": own, "ratio": own / generate, "turns": turns}
        )
    return {"threads": torch.get_num_threads(), "tokens_per_s": rows, "about": environment_facts()}


def page(found: Mapping[str, Any]) -> str:
    """The measurement as Markdown."""
    lines = ["# The engine beside `generate`", "", *(__doc__ or "").strip().splitlines(), ""]
    lines += ["Medians of tokens per second.", ""]
    lines += ["| batch | generate | engine | ratio | turns |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['batch']} | {r['generate']:,.0f} | {r['engine']:,.0f} | {r['ratio']:.2f} | {r['turns']:,.0f} |"
        for r in found["tokens_per_s"]
    ]
    about = {"threads": found["threads"], **found["about"]}
    lines += ["", "Machine and versions: " + ", ".join(f"{k} {v}" for k, v in about.items())]
    return "\n".join(lines) + "\n"
