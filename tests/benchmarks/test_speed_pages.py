"""What a fork and a step cost: the measurements on a tiny model, and their pages."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trace_gym.benchmarks import speed_fork, speed_step
from trace_gym.engines.transformers import TransformersEngine


def test_forks_process_their_prefix_once() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    engine = TransformersEngine(model, max_batch=4, kept_rows=2, max_context=256)
    record = speed_fork.measure(engine, rounds=2, forks=4, prefix=100, vocabulary=50)
    fresh, cold, warm = (record["cases"][case] for case in speed_fork.CASES)
    assert [row["processed"] for row in fresh] == [400, 400]
    assert [row["processed"] for row in cold] == [103, 103]  # the last token is computed for every fork
    assert [row["processed"] for row in warm] == [4, 4]
    assert all(row["processed"] + row["cached"] == 400 for row in (*fresh, *cold, *warm))
    text = speed_fork.page([record | {"engine": "transformers", "about": {"cpu": "a"}}])
    assert "| transformers | forks | 103 | 297 |" in text


def test_a_step_is_told_by_phase(policy: Path) -> None:
    record = speed_step.measure(
        f"policy.path={policy}",
        "policy.lora.rank=0",
        "policy.dtype=float32",
        "rollout.max_tokens=8",
        "engine.max_context=256",
    )
    row = record["metrics"]
    assert row["policy_tokens"] > 0 and row["seconds_engine"] > 0 and row["seconds_update"] > 0
    text = speed_step.page([record | {"engine": "vllm", "about": {"cpu": "a"}}])
    heads, values = (
        next(line for line in text.splitlines() if line.startswith(f"| {w}")) for w in ("engine", "vllm")
    )
    assert heads.count("|") == values.count("|")
