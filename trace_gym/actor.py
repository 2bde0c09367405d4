"""What acts: a policy, the engine that samples from it, the renderer of its template, and the environment it acts in.

Training and evaluation build it from the same settings, so that both see exactly the same conditions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from trace_gym.config import PolicyConfig, TrainConfig
from trace_gym.engine import Engine, Weights
from trace_gym.engines.forward import ForwardEngine
from trace_gym.engines.transformers import TransformersEngine
from trace_gym.env import ForkableEnv
from trace_gym.errors import ConfigError
from trace_gym.finetune import Learner, load_frozen, load_learner
from trace_gym.models import resolve
from trace_gym.plugins import make_env
from trace_gym.render import ChatRenderer, Renderer
from trace_gym.rollout import RolloutSettings
from trace_gym.seeding import keyed_rng
from trace_gym.tabular import TabularLearner, is_tabular, load_tabular

__all__ = ["Actor", "build_actor", "make_engine", "make_local_engine", "make_renderer"]


@dataclass(frozen=True, slots=True)
class Actor:
    """See the module. `engine.load(actor.weights(), version)` keeps the engine current."""

    learner: Learner
    tokenizer: Any
    renderer: Renderer
    engine: Engine
    env: ForkableEnv[Any]
    settings: RolloutSettings

    @property
    def model(self) -> Any:
        """What learns: a Hugging Face model, with adapters inside where those learn."""
        return self.learner.model

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return self.learner.device

    def weights(self) -> Weights:
        """The policy as it is now, for the engine to load: under the names of what it samples from."""
        if isinstance(self.engine, (ForwardEngine, TransformersEngine)):
            return self.model.named_parameters()  # type: ignore[no-any-return]
        return self.learner.plain_weights()

    def eval_tasks(self, split: str, count: int) -> Sequence[str]:
        """`count` tasks of the split, the same every time, drawn at random: a regular stride could miss kinds of tasks."""
        tasks = self.env.tasks(split)
        chosen = keyed_rng("evaluation tasks", split).permutation(len(tasks))[:count]
        return [tasks[i] for i in sorted(chosen)]


def make_renderer(policy: PolicyConfig, tokenizer: Any) -> Renderer:
    """The renderer of the tokenizer's chat template, with the arguments that the settings give it."""
    return ChatRenderer(tokenizer, template_args=policy.template_args)


def make_engine(config: TrainConfig, learner: Learner) -> Engine:
    """The engine that `config.engine` describes. Raises `ConfigError` or `EngineError` where it cannot be had."""
    engine, kind = config.engine, config.engine.kind
    if isinstance(learner, TabularLearner) or kind == "transformers":
        return make_local_engine(config, learner)
    if kind == "openai":
        from trace_gym.engines.openai import OpenAIEngine, key_from

        return OpenAIEngine(
            engine.url,
            model=engine.model,
            key=key_from(engine.key_env),
            max_batch=engine.max_batch,
            max_context=engine.max_context,
            deadline_s=config.rollout.turn_deadline_s,
            weights_folder=engine.weights_folder,
        )
    from trace_gym.engines.vllm_start import start

    return start(
        resolve(config.policy.path),
        dtype=str(learner.autocast or next(learner.model.parameters()).dtype).removeprefix("torch."),
        max_batch=engine.max_batch,
        max_context=engine.max_context,
        cache_gib=engine.cache_gib or 2.0,
    )


def make_local_engine(config: TrainConfig, learner: Learner) -> ForwardEngine | TransformersEngine:
    """An engine that samples from `learner.sampler` itself, at no cost in memory for weights."""
    engine = config.engine
    if isinstance(learner, TabularLearner):
        return ForwardEngine(learner.sampler, max_batch=engine.max_batch)
    sampler = learner.sampler
    if config.rollout.ahead and sampler is learner.model:  # it is to stay as it is while the policy learns
        sampler = copy.deepcopy(sampler).requires_grad_(False)
    return TransformersEngine(
        sampler,
        max_batch=engine.max_batch,
        max_context=engine.max_context,
        cache_gib=engine.cache_gib,
    )


def build_actor(config: TrainConfig, *, learns: bool = False) -> Actor:
    """Load the policy, to learn or just to act, and make the environment. Raises `ConfigError` for what cannot be had."""
    env = make_env(config.env.id, config.env.options)
    if is_tabular(config.policy.path):
        return _tabular_actor(config, env, learns=learns)
    if learns:
        if config.engine.kind == "openai" and not config.engine.weights_folder:
            raise ConfigError(
                "engine.kind=openai samples from one policy for ever: to train, set engine.weights_folder"
            )
        local = config.engine.kind == "transformers" or config.oracle.kind == "sampled"
        learner, tokenizer = load_learner(config.policy, seed=config.seed, samples=local)
    else:
        learner, tokenizer = load_frozen(config.policy)
    return Actor(
        learner=learner,
        tokenizer=tokenizer,
        renderer=make_renderer(config.policy, tokenizer),
        engine=make_engine(config, learner),
        env=env,
        settings=_rollout_settings(config),
    )


def _tabular_actor(config: TrainConfig, env: ForkableEnv[Any], *, learns: bool) -> Actor:
    """A turn of a table is one token, so that is what a rollout's worst case is reserved for."""
    learner, renderer = load_tabular(config.policy, env, learns=learns)
    return Actor(
        learner=learner,
        tokenizer=renderer,
        renderer=renderer,
        engine=make_engine(config, learner),
        env=env,
        settings=replace(_rollout_settings(config), max_tokens=1),
    )


def _rollout_settings(config: TrainConfig) -> RolloutSettings:
    limits = {
        f.name: getattr(config.rollout, f.name) for f in fields(RolloutSettings) if f.name != "lockstep"
    }
    return RolloutSettings(**limits, lockstep=config.deterministic)
