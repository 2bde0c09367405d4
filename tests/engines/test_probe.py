"""Models that the engine can run are run exactly; all others are refused before the first request."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from trace_gym.engine import Request
from trace_gym.engines.probe import context_limit
from trace_gym.engines.transformers import TransformersEngine
from trace_gym.errors import EngineError

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
LOCAL = {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4, "window_size": 8}


def make(kind: str, attention: str = "", **settings: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SMALL | settings))
    choice = {"attn_implementation": attention} if attention else {}
    return AutoModelForCausalLM.from_config(config, **choice).eval()


@pytest.mark.parametrize(
    ("kind", "settings", "context"),
    [
        ("qwen3", {"head_dim": 8}, 64),
        ("gpt2", GPT, 64),  # learned positions
        (
            "gemma2",
            {"head_dim": 8, "sliding_window": 20, "attention": "eager"},
            20,
        ),  # capped logits, mixed layers
        ("mistral", {"sliding_window": 16}, 16),
        ("gpt_neo", LOCAL, 8),  # a window that shows beyond the probe's tokens
    ],
)
def test_other_families_have_the_log_probs_of_a_plain_pass(
    kind: str, settings: dict[str, Any], context: int
) -> None:
    model = make(kind, **settings)
    engine = TransformersEngine(model, max_batch=2)
    assert engine.max_context == context
    rng, requests = np.random.default_rng(0), {}
    for seed, length in enumerate((2, 7, context - 1, 4)):
        request = Request(rng.integers(3, 50, length).astype(np.int32), max_tokens=99, seed=seed)
        requests[engine.submit(request)] = request
    while requests:
        for completion in engine.poll(60.0):
            prefix = requests.pop(completion.request_id).tokens
            whole = torch.from_numpy(np.concatenate([prefix, completion.tokens]).astype(np.int64))
            assert len(whole) == context
            with torch.no_grad():
                logprobs = model(input_ids=whole[None], use_cache=False).logits[0].log_softmax(-1)
            want = logprobs[:-1].gather(1, whole[1:, None])[len(prefix) - 1 :, 0].numpy()
            np.testing.assert_allclose(completion.logprobs, want, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("mamba", {"state_size": 8}, "layers of type linear_attention"),
        ("bloom", {"n_layer": 2, "n_head": 4}, "a forward pass failed"),
        ("llama", {"attention": "flex_attention"}, "attn_implementation='sdpa'"),
    ],
)
def test_models_that_need_something_else_are_refused(
    kind: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        TransformersEngine(make(kind, **settings))


@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
def test_a_model_that_ignores_masks_or_positions_is_refused(ignored: str) -> None:
    model = make("llama")
    forward = type(model).forward

    class Deaf(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            kwargs.pop(ignored, None)
            return forward(self, *args, **kwargs)

    model.__class__ = Deaf
    with pytest.raises(EngineError, match="cannot run Deaf: given masks and positions"):
        TransformersEngine(model)


def test_broken_weights_and_foreign_modules_are_refused() -> None:
    model = make("llama")
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(EngineError, match="not finite"):
        TransformersEngine(model)
    with pytest.raises(EngineError, match="Linear has no config"):
        TransformersEngine(torch.nn.Linear(2, 2))


def test_the_context_is_as_long_as_attention_is_full() -> None:
    model = make("llama")
    assert context_limit(model, None) == 64
    assert context_limit(model, 30) == 30
    for asked, message in (
        (65, "max_position_embeddings: this engine supports at most 64"),
        (1, "at least 2"),
    ):
        with pytest.raises(EngineError, match=message):
            context_limit(model, asked)
    silent = torch.nn.Linear(2, 2)
    silent.config = SimpleNamespace()  # type: ignore[assignment]
    assert context_limit(silent, 10_000) == 10_000
    with pytest.raises(EngineError, match="pass max_context"):
        context_limit(silent, None)
    long = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32}
    model.config.rope_parameters = long | {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    assert context_limit(model, None) == 32
