"""Tokens per second of `TransformersEngine` beside the model's own `generate`, same weights, prompts and lengths.

    python -m trace_gym.benchmarks.speed_engine

A tiny Llama from scratch, fp32. The prompts are all of one length and there is no stop token, which suits `generate`
best. The `turns` column is what rollouts look like: requests end at different times and are followed by the next turn.
"""

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from trace_gym.engine import IntArray, Request
from trace_gym.engines.transformers import TransformersEngine

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


def main() -> None:
    model, rng = tiny_llama(), np.random.default_rng(0)
    print(
        f"{torch.get_num_threads()} threads; tokens/s, the best of three\nbatch  generate  engine  ratio  turns"
    )
    for batch in (8, 32, 128):
        engine = TransformersEngine(model, max_batch=batch)
        prompts = rng.integers(0, VOCABULARY, (batch, PROMPT))
        runs = [
            (generate_speed(model, prompts), engine_speed(engine, prompts), turns_speed(engine, prompts))
            for _ in range(3)
        ]
        generate, own, turns = (max(column) for column in zip(*runs, strict=True))
        print(f"{batch:5d}  {generate:8.0f}  {own:6.0f}  {own / generate:5.2f}  {turns:5.0f}")


if __name__ == "__main__":
    main()
