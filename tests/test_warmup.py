"""Teaching demonstrations to a policy that exists already."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from trace_gym.config import LoraConfig, PolicyConfig
from trace_gym.envs.math.env import MathEnv
from trace_gym.errors import ConfigError
from trace_gym.policy import Policy, TensorBatch
from trace_gym.render import ChatRenderer
from trace_gym.seeding import keyed_rng
from trace_gym.tiny import load_policy_folder
from trace_gym.warmup import cold_start, demonstrate, demonstration_row


class Stubborn(MathEnv):
    """Demonstrates one answer to everything."""

    def novice_action(self, rng: np.random.Generator, **chances: float) -> str:
        return "<answer>7</answer>"


ENV = Stubborn(difficulty=1)


def loss_of(folder: Path) -> float:
    """Cross-entropy per token of demonstrations that no training saw."""
    model, tokenizer = load_policy_folder(folder)
    renderer, rng = ChatRenderer(tokenizer), keyed_rng(0, "held out")
    demos = [demonstrate(ENV, task, rng, seed=0) for task in ENV.tasks("test")[:16]]
    rows = [demonstration_row(d, renderer, lambda text: tokenizer.encode(text)) for d in demos]
    batch = TensorBatch.of(rows, torch.device("cpu"))
    with torch.no_grad():
        logprobs = Policy(model).logprobs(batch.tokens, batch.weight > 0)
    return float(-(logprobs * batch.weight).sum() / batch.weight.sum())


@pytest.mark.parametrize("rank", [0, 8])
def test_a_cold_start_teaches_and_leaves_a_plain_folder(policy: Path, tmp_path: Path, rank: int) -> None:
    out = tmp_path / "taught"
    settings = PolicyConfig(path=str(policy), lora=LoraConfig(rank=rank), layout="auto" if rank else "flat")
    metrics = cold_start(out, policy=settings, env=ENV, steps=16, lr=1e-2, batch=8)
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "warmup.json"} <= names
    assert not any("adapter" in name for name in names)
    about = json.loads((out / "warmup.json").read_text())
    assert (about["from"], about["lora_rank"], about["steps"]) == (str(policy), rank, 16)
    assert about["loss"] == metrics["loss"] and np.isfinite(metrics["loss"])
    whole = sum(p.numel() for p in load_policy_folder(policy)[0].parameters())
    learned = metrics["learned_parameters"]
    assert learned == whole if rank == 0 else 0 < learned < whole
    assert loss_of(out) < 0.5 * loss_of(policy)


def test_the_same_seed_gives_the_same_policy(policy: Path, tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        settings = PolicyConfig(path=str(policy), lora=LoraConfig(rank=4))
        cold_start(tmp_path / name, policy=settings, env=ENV, seed=seed, steps=2, batch=4)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_a_policy_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no policy folder") as caught:
        cold_start(tmp_path / "out", policy=PolicyConfig(path=str(tmp_path / "none")), env=ENV)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
