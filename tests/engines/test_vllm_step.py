"""A training step whose turns vLLM samples; in a file of its own, for a process has one vLLM and other tests keep theirs."""

from pathlib import Path

import pytest

from trace_gym import models
from trace_gym.benchmarks.speed_loop import LotteryEnv
from trace_gym.config import load_config
from trace_gym.observer import Silent
from trace_gym.train import train

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


@pytest.mark.slow
def test_a_training_step_with_a_published_model(tmp_path: Path) -> None:
    """SmolLM2 through `trace-gym train`: sampled by vLLM, learned from, and sampled again with the new weights."""
    if not models.is_cached("smollm2-135m"):
        pytest.skip("SmolLM2 is not here: trace-gym model get smollm2-135m")
    words = (
        "policy.path=smollm2-135m",
        "engine.kind=vllm",
        "engine.max_context=1024",
        "engine.cache_gib=0.5",
        "policy.lora.rank=4",
        "policy.dtype=bfloat16",
        f"env.id={LotteryEnv.env_id}",  # else there is nothing to learn from, for as it comes the model fails alike everywhere
        "env.options.max_turns=2",
        "algorithm.group=4",
        "rollout.prompts_per_step=2",
        "rollout.max_tokens=12",
        "rollout.turn_deadline_s=600",
        "eval.tasks=2",
        "eval.greedy=false",
        "budget.steps=1",
        "log.tensorboard=false",
        f"out={tmp_path}",
    )
    run = train(load_config(None, words), Silent())
    (row,) = run.metrics()
    assert row["unscored"] == 0
    assert all(
        float(row[name]) > 0 for name in ("policy_tokens", "seconds_engine", "seconds_load", "grad_norm")
    )
    assert [e["step"] for e in run.evals()] == [0, 1]
