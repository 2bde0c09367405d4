"""A small policy that can be taught: a tiny language model trained on a fallible demonstrator.

The demonstrator (`env.novice_action`) makes systematic mistakes as well as random ones, so the policy starts imperfect in its
decisions, not only in its sharpness: reinforcement learning then has something to find that no demonstration showed.
The result is a plain Hugging Face folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trace_gym.algorithm import Algorithm, LossBatch, Metrics, StepContext
from trace_gym.env import ForkableEnv
from trace_gym.errors import EpisodeError
from trace_gym.observer import Observer, Silent
from trace_gym.pack import Row
from trace_gym.policy import Policy
from trace_gym.render import ChatRenderer, Renderer
from trace_gym.seeding import derive_seed, keyed_rng
from trace_gym.tiny import load_policy_folder, make_model, make_tokenizer, save
from trace_gym.update import Updater, warm_up_and_decay

if TYPE_CHECKING:
    from trace_gym.algorithm import Branch, Credit

__all__ = ["Demonstration", "Supervised", "demonstrate", "demonstration_row", "more_supervised", "warmup"]


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One episode as text: what was shown (with its role) and what was done, alternating, and whether it succeeded."""

    system: str
    tools: Sequence[dict[str, Any]]
    shown: tuple[tuple[str, str], ...]  # (role, observation), the prompt first
    actions: tuple[str, ...]
    success: bool


def demonstrate(env: ForkableEnv[Any], task: str, rng: np.random.Generator, *, seed: int) -> Demonstration:
    """Play `task` with the environment's fallible demonstrator."""
    observation, info = env.reset(seed=seed, options={"task": task})
    system, tools = info["system"], info["tools"]
    shown, actions, over = [("user", observation)], [], False
    while not over:
        action = env.novice_action(rng)
        observation, _, terminated, truncated, info = env.step(action)
        actions.append(action)
        shown.append((info["role"], observation))
        over = terminated or truncated
    return Demonstration(system, tools, tuple(shown[:-1]), tuple(actions), bool(info["success"]))


def demonstration_row(demo: Demonstration, renderer: Renderer, encode: Any) -> Row:
    """The demonstration as the policy would see it; weight 1 on every token it has to produce, stop token included.

    `encode` maps an action's text to token ids.
    """
    pieces: list[np.ndarray[Any, Any]] = []
    weights: list[np.ndarray[Any, Any]] = []
    for (role, observation), action in zip(demo.shown, demo.actions, strict=True):
        if pieces:
            before = renderer.delta(observation, role=role, closed=True)
        else:
            before = renderer.prompt(observation, system=demo.system, tools=demo.tools)
        sampled = np.array([*encode(action), renderer.stop[0]], dtype=np.int32)
        pieces += [before, sampled]
        weights += [np.zeros(len(before)), np.ones(len(sampled))]
    tokens, weight = np.concatenate(pieces), np.concatenate(weights).astype(np.float32)
    return Row(tokens, np.ones_like(weight), weight, np.zeros_like(weight))


@dataclass(kw_only=True)
class Supervised(Algorithm):
    """Cross-entropy on given tokens, as a loss for the same updater. It grows no trees."""

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        raise EpisodeError("supervised training grows no trees")

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        raise EpisodeError("supervised training grows no trees")

    def loss(self, logprobs: torch.Tensor, batch: LossBatch) -> tuple[torch.Tensor, Metrics]:
        return -(logprobs * batch.weight).sum(), {}


def warmup(
    out: Path,
    *,
    env: ForkableEnv[Any],
    seed: int = 0,
    steps: int = 900,
    batch: int = 32,
    demonstrations: int = 8000,
    lr: float = 3e-3,
    d_model: int = 128,
    layers: int = 3,
    observer: Observer | None = None,
) -> dict[str, float]:
    """Make tokenizer and model from demonstrations on the training split and save them in `out`; returns metrics."""
    observer = observer or Silent()
    demos = _demonstrations(env, demonstrations, seed)
    rate = float(np.mean([d.success for d in demos]))
    observer.note(f"{len(demos)} demonstrations, of which {rate:.0%} succeed")
    tokenizer = make_tokenizer(text for d in demos for text in (*(o for _, o in d.shown), *d.actions))
    model = make_model(tokenizer, d=d_model, layers=layers, seed=seed)
    loss = _fit(model, tokenizer, demos, warm_up_and_decay(lr, 50, steps), steps, batch, seed, observer)
    about = {
        "seed": seed,
        "steps": steps,
        "batch": batch,
        "demonstrations": len(demos),
        "lr": lr,
        "env": env.env_id,
    }
    save(out, model, tokenizer)
    (out / "warmup.json").write_text(
        json.dumps(about | {"loss": loss, "demonstrator_success": rate}, indent=1)
    )
    return {
        "loss": loss,
        "demonstrator_success": rate,
        "parameters": float(sum(p.numel() for p in model.parameters())),
    }


def more_supervised(
    policy: Path,
    out: Path,
    *,
    env: ForkableEnv[Any],
    seed: int,
    steps: int,
    batch: int = 64,
    lr: float = 3e-4,
) -> None:
    """`steps` further supervised updates on fresh demonstrations: the control for reinforcement learning."""
    model, tokenizer = load_policy_folder(str(policy), dtype=torch.float32, device=torch.device("cpu"))
    demos = _demonstrations(env, steps * batch, derive_seed(seed, "more"))
    _fit(model, tokenizer, demos, lambda updates: lr, steps, batch, seed, Silent())
    save(out, model, tokenizer)


def _demonstrations(env: ForkableEnv[Any], count: int, seed: int) -> list[Demonstration]:
    rng = keyed_rng(seed, "demonstrations")
    tasks = env.tasks("train")
    chosen = rng.permutation(len(tasks))
    ids = [tasks[chosen[i % len(tasks)]] for i in range(count)]
    return [
        demonstrate(env, task, rng, seed=derive_seed(seed, "demonstration", i)) for i, task in enumerate(ids)
    ]


def _fit(
    model: Any,
    tokenizer: Any,
    demos: Sequence[Demonstration],
    lr: Any,
    steps: int,
    batch: int,
    seed: int,
    observer: Observer,
) -> float:
    renderer = ChatRenderer(tokenizer)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)  # type: ignore[no-any-return]

    rows = [demonstration_row(d, renderer, encode) for d in demos]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr(0), betas=(0.9, 0.95), weight_decay=0.01)
    updater = Updater(policy=Policy(model), optimizer=optimizer, lr=lr, micro_batch_tokens=1024)
    algorithm, rng, loss = Supervised(), keyed_rng(seed, "supervised"), float("nan")
    for step in range(steps):
        chosen = [rows[i] for i in rng.choice(len(rows), size=min(batch, len(rows)), replace=False)]
        total = sum(float(row.weight.sum()) for row in chosen)
        part = [Row(r.tokens, r.advantage, r.weight / np.float32(total), r.behaviour) for r in chosen]
        loss = updater.update(algorithm, part, rng)["loss"]
        if step % 25 == 0 or step == steps - 1:
            observer.note(f"warm-up step {step + 1}/{steps}: loss {loss:.3f}")
    return loss
