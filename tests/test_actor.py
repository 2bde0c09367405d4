"""Which engine an actor gets, and what it is given to load."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.local_server import Asked, Told, serving
from trace_gym.actor import build_actor
from trace_gym.config import TrainConfig, load_config
from trace_gym.engine import ScriptedEngine, Weights
from trace_gym.engines import vllm_start
from trace_gym.engines.openai import OpenAIEngine
from trace_gym.engines.transformers import TransformersEngine
from trace_gym.errors import ConfigError
from trace_gym.observer import Silent
from trace_gym.train import train


def settings(policy: Path, *words: str) -> TrainConfig:
    return load_config(None, (f"policy.path={policy}", "env.options.difficulty=1-2", *words))


@contextmanager
def server() -> Iterator[str]:
    """Just enough for an engine to start."""

    def told(asked: Asked) -> Told:
        if asked.path == "/v1/models":
            return Told(body={"data": [{"id": "policy", "max_model_len": 512}]})
        logprobs = {
            "token_logprobs": [-1.0],
            "top_logprobs": [{"a": -1.0, "b": -1.0 - 1 / asked.json["temperature"]}],
        }
        return Told(body={"choices": [{"token_ids": [1], "logprobs": logprobs}]})

    with serving(told) as service:
        yield f"{service.url}/v1"


def test_transformers_takes_the_bounds_that_are_set(policy: Path) -> None:
    actor = build_actor(
        settings(policy, "engine.max_context=100", "engine.cache_gib=0.001", "engine.max_batch=3")
    )
    assert isinstance(actor.engine, TransformersEngine) and actor.engine.max_context == 100
    assert {name for name, _ in actor.weights()} == {name for name, _ in actor.model.named_parameters()}


def test_a_server_evaluates_and_trains_only_if_it_can_be_given_weights(policy: Path, tmp_path: Path) -> None:
    with server() as url:
        words = ("engine.kind=openai", f"engine.url={url}")
        actor = build_actor(settings(policy, *words))
        assert isinstance(actor.engine, OpenAIEngine) and actor.engine.max_context == 512
        actor.engine.close()
        with pytest.raises(ConfigError, match=r"set engine\.weights_folder"):
            build_actor(settings(policy, *words), learns=True)
        build_actor(settings(policy, *words, f"engine.weights_folder={tmp_path}"), learns=True).engine.close()


@pytest.mark.parametrize(
    ("words", "dtype"),
    [
        ((), "float32"),
        (("policy.dtype=bfloat16",), "bfloat16"),
        (("policy.dtype=bfloat16", "policy.lora.rank=2"), "bfloat16"),
    ],
)
def test_vllm_starts_from_the_policys_folder_in_the_precision_of_forward_passes(
    policy: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], dtype: str
) -> None:
    asked: dict[str, Any] = {}

    def start(path: str, **options: Any) -> ScriptedEngine:
        asked.update(options, path=path)
        return ScriptedEngine(lambda request, rng: [1])

    monkeypatch.setattr(vllm_start, "start", start)
    actor = build_actor(settings(policy, "engine.kind=vllm", *words), learns=True)
    assert asked == {
        "path": str(policy),
        "dtype": dtype,
        "max_batch": 128,
        "max_context": None,
        "cache_gib": 2.0,
    }
    assert actor.learner.sampler is actor.model  # no copy that nobody would sample from
    plain = dict(build_actor(settings(policy)).model.named_parameters())
    got = dict(actor.weights())
    assert {name: t.shape for name, t in got.items()} == {name: t.shape for name, t in plain.items()}


class Watched(ScriptedEngine):
    """Says what it is told to do."""

    def load(self, weights: Weights, version: int) -> None:
        self.told.append(f"load {sum(1 for _ in weights) > 0} {version}")
        super().load((), version)

    def sleep(self) -> None:
        self.told.append("sleep")

    def wake(self) -> None:
        self.told.append("wake")

    told: list[str] = []  # noqa: RUF012


@pytest.mark.parametrize("sleeps", [True, False])
def test_an_engine_gets_the_weights_first_and_after_every_step_and_may_sleep_meanwhile(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sleeps: bool
) -> None:
    Watched.told = []
    monkeypatch.setattr(vllm_start, "start", lambda path, **options: Watched(lambda request, rng: [7, 8, 9]))
    words = ("engine.kind=vllm", f"engine.sleep={str(sleeps).lower()}", "budget.steps=1", "algorithm.group=2")
    small = (
        "rollout.prompts_per_step=1",
        "rollout.max_tokens=4",
        "eval.tasks=1",
        f"out={tmp_path}",
        "log.tensorboard=false",
    )
    train(settings(policy, *words, *small), Silent())
    rest = ["sleep", "wake"] if sleeps else []
    assert Watched.told == ["load True 0", "load False 0", *rest, "load True 1", "load False 1"]


def test_plain_weights_are_those_of_the_saved_policy(policy: Path, tmp_path: Path) -> None:
    """Adapters merged, names and tying as in the folder that `save` writes."""
    from safetensors.torch import load_file

    actor = build_actor(settings(policy, "policy.lora.rank=2"), learns=True)
    with torch.no_grad():
        for parameter in actor.learner.learned():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    actor.learner.save(tmp_path / "saved", actor.tokenizer)
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    mine = dict(actor.learner.plain_weights())
    assert set(mine) == set(saved)
    for name, tensor in saved.items():
        torch.testing.assert_close(mine[name], tensor, atol=1e-5, rtol=1e-5)
