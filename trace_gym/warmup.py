"""A policy that can be taught: supervised learning on a fallible demonstrator, before reinforcement learning.

The demonstrator (`env.novice_action`) makes systematic mistakes as well as random ones, so the policy starts imperfect in its
decisions, not only in its sharpness: reinforcement learning then has something to find that no demonstration showed.
`warmup` makes a tiny language model from nothing; `cold_start` teaches a pretrained one the environment's way of writing.
The result is a plain Hugging Face folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trace_gym.algorithm import Algorithm, LossBatch, Metrics, StepContext
from trace_gym.config import PolicyConfig
from trace_gym.env import ForkableEnv
from trace_gym.errors import EpisodeError
from trace_gym.finetune import Learner, load_learner
from trace_gym.observer import Observer, Silent
from trace_gym.pack import Row
from trace_gym.render import ChatRenderer, Renderer
from trace_gym.seeding import derive_seed, keyed_rng
from trace_gym.tiny import check_place, make_model, make_tokenizer, save, writing
from trace_gym.update import Updater, warm_up_and_decay

if TYPE_CHECKING:
    from trace_gym.algorithm import Branch, Credit

__all__ = [
    "Demonstration",
    "Supervised",
    "cold_start",
    "demonstrate",
    "demonstration_row",
    "more_supervised",
    "warmup",
]

LR_WEIGHTS, LR_ADAPTERS = 1e-4, 1e-3  # of a cold start: adapters want about ten times the rate
Schedule = Callable[[int], float]  # learning rate by number of updates so far


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
    check_place(out)
    observer = observer or Silent()
    demos = _demonstrations(env, demonstrations, seed)
    rate = _successes(demos, observer)
    tokenizer = make_tokenizer(text for d in demos for text in (*(o for _, o in d.shown), *d.actions))
    model = make_model(tokenizer, d=d_model, layers=layers, seed=seed)
    learner = Learner(model, model, PolicyConfig())
    loss = _fit(learner, tokenizer, demos, warm_up_and_decay(lr, 50, steps), steps, batch, seed, observer)
    save(out, model, tokenizer)
    about = {
        "seed": seed,
        "steps": steps,
        "batch": batch,
        "demonstrations": len(demos),
        "lr": lr,
        "env": env.env_id,
    }
    _tell(out, about | {"loss": loss, "demonstrator_success": rate})
    return {
        "loss": loss,
        "demonstrator_success": rate,
        "parameters": float(sum(p.numel() for p in model.parameters())),
    }


def cold_start(
    out: Path,
    *,
    policy: PolicyConfig,
    env: ForkableEnv[Any],
    seed: int = 0,
    steps: int = 32,
    batch: int = 8,
    lr: float | None = None,
    observer: Observer | None = None,
) -> dict[str, float]:
    """Teach the pretrained `policy` from `steps * batch` demonstrations on the training split.

    What learns is what `policy` says, every weight or adapters; `out` gets a plain folder with adapters merged. `lr` is
    1e-4 for weights and 1e-3 for adapters unless given. Returns metrics. Raises `ConfigError` for a policy that cannot be had.
    """
    check_place(out)
    observer = observer or Silent()
    if lr is None:
        lr = LR_ADAPTERS if policy.lora.rank else LR_WEIGHTS
    learner, tokenizer = load_learner(policy, seed=seed)
    demos = _demonstrations(env, steps * batch, seed)
    rate = _successes(demos, observer)
    schedule = warm_up_and_decay(lr, min(5, steps), steps)
    loss = _fit(learner, tokenizer, demos, schedule, steps, batch, seed, observer)
    learner.save(out, tokenizer)
    about = {
        "from": policy.path,
        "lora_rank": policy.lora.rank,
        "seed": seed,
        "steps": steps,
        "batch": batch,
        "lr": lr,
        "env": env.env_id,
    }
    _tell(out, about | {"loss": loss, "demonstrator_success": rate})
    return {
        "loss": loss,
        "demonstrator_success": rate,
        "learned_parameters": float(sum(p.numel() for p in learner.learned())),
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
    settings = PolicyConfig(path=str(policy), device="cpu", dtype="float32")
    learner, tokenizer = load_learner(settings, seed=seed)
    demos = _demonstrations(env, steps * batch, derive_seed(seed, "more"))
    _fit(learner, tokenizer, demos, lambda updates: lr, steps, batch, seed, Silent())
    learner.save(out, tokenizer)


def _successes(demos: Sequence[Demonstration], observer: Observer) -> float:
    """The share that succeed; the observer hears it."""
    rate = float(np.mean([d.success for d in demos]))
    observer.note(f"{len(demos)} demonstrations, of which {rate:.0%} succeed")
    return rate


def _tell(out: Path, about: Mapping[str, object]) -> None:
    with writing(out):
        (out / "warmup.json").write_text(json.dumps(about, indent=1))


def _demonstrations(env: ForkableEnv[Any], count: int, seed: int) -> list[Demonstration]:
    rng = keyed_rng(seed, "demonstrations")
    tasks = env.tasks("train")
    chosen = rng.permutation(len(tasks))
    ids = [tasks[chosen[i % len(tasks)]] for i in range(count)]
    return [
        demonstrate(env, task, rng, seed=derive_seed(seed, "demonstration", i)) for i, task in enumerate(ids)
    ]


def _fit(
    learner: Learner,
    tokenizer: Any,
    demos: Sequence[Demonstration],
    lr: Schedule,
    steps: int,
    batch: int,
    seed: int,
    observer: Observer,
) -> float:
    """`steps` updates on batches drawn from `demos`; the last loss."""
    renderer = ChatRenderer(tokenizer, template_args=learner.settings.template_args)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)  # type: ignore[no-any-return]

    rows = [demonstration_row(d, renderer, encode) for d in demos]
    optimizer = torch.optim.AdamW(learner.learned(), lr=lr(0), betas=(0.9, 0.95), weight_decay=0.01)
    policy = learner.policy(1.0)
    tokens = 1024 if policy.flat_because else 8192  # little padding is faster on a CPU, sharing more so
    updater = Updater(policy=policy, optimizer=optimizer, lr=lr, micro_batch_tokens=tokens)
    algorithm, rng, loss = Supervised(), keyed_rng(seed, "supervised"), float("nan")
    told_every = max(1, min(25, steps // 8))
    for step in range(steps):
        chosen = [rows[i] for i in rng.choice(len(rows), size=min(batch, len(rows)), replace=False)]
        total = sum(float(row.weight.sum()) for row in chosen)
        part = [Row(r.tokens, r.advantage, r.weight / np.float32(total), r.behaviour) for r in chosen]
        loss = updater.update(algorithm, part, rng)["loss"]
        if step % told_every == 0 or step == steps - 1:
            observer.note(f"warm-up step {step + 1}/{steps}: loss {loss:.3f}")
    return loss
