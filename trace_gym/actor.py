"""What acts: a policy, the engine that samples from it, the renderer of its template, and the environment it acts in.

Training and evaluation build it from the same settings, so that both see exactly the same conditions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from trace_gym.config import TrainConfig
from trace_gym.engine import Engine
from trace_gym.engines.transformers import TransformersEngine
from trace_gym.env import ForkableEnv
from trace_gym.plugins import make_env
from trace_gym.policy import pick_device
from trace_gym.render import ChatRenderer, Renderer
from trace_gym.rollout import RolloutSettings
from trace_gym.tiny import load_policy_folder

__all__ = ["Actor", "build_actor"]


@dataclass(frozen=True, slots=True)
class Actor:
    """See the module. The engine samples from `model` itself, so an optimiser step reaches it at once."""

    model: Any
    tokenizer: Any
    renderer: Renderer
    engine: Engine
    env: ForkableEnv[Any]
    settings: RolloutSettings
    device: torch.device

    def eval_tasks(self, split: str, count: int) -> Sequence[str]:
        """`count` tasks spread evenly over the split, so that every kind of task is among them."""
        tasks = self.env.tasks(split)
        return tasks if count >= len(tasks) else [tasks[i * len(tasks) // count] for i in range(count)]


def build_actor(config: TrainConfig) -> Actor:
    """Load the policy (float32 weights) and make the environment. Raises `ConfigError` for what cannot be had."""
    env = make_env(config.env.id, config.env.options)
    device = pick_device(config.policy.device)
    model, tokenizer = load_policy_folder(config.policy.path, dtype=torch.float32, device=device)
    model.eval()
    limits = {
        f.name: getattr(config.rollout, f.name) for f in fields(RolloutSettings) if f.name != "lockstep"
    }
    return Actor(
        model=model,
        tokenizer=tokenizer,
        renderer=ChatRenderer(tokenizer, template_args=config.policy.template_args),
        engine=TransformersEngine(model, max_batch=config.engine.max_batch),
        env=env,
        settings=RolloutSettings(**limits, lockstep=config.deterministic),
        device=device,
    )
