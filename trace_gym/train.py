"""The training loop: sample a pool, grow trees, observe, credit, pack, loss, step, load, log. Read `train` top to bottom.

Everything random is keyed by (seed, step), so a step depends on the weights and the algorithm's state alone.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import gymnasium
import torch

from trace_gym.algorithm import Algorithm, Credit, Metrics, RunContext, StepContext
from trace_gym.config import TrainConfig
from trace_gym.engine import Engine, FloatArray
from trace_gym.engines.transformers import TransformersEngine
from trace_gym.env import ForkableEnv
from trace_gym.errors import ConfigError
from trace_gym.evaluate import Evaluation, evaluate
from trace_gym.ledger import Budget, Ledger
from trace_gym.observer import Observer
from trace_gym.pack import flatten, token_weights
from trace_gym.plugins import make_algorithm
from trace_gym.policy import Policy, pick_device
from trace_gym.render import ChatRenderer, Renderer
from trace_gym.rollout import RolloutSettings, grow_trees, plant_trees
from trace_gym.runs import RunFolder
from trace_gym.seeding import keyed_rng
from trace_gym.tiny import load_policy_folder, save
from trace_gym.update import Updater, warm_up

__all__ = ["train"]


def train(config: TrainConfig, observer: Observer) -> RunFolder:
    """Train as `config` says; returns the run's folder with metrics, trees, evaluations and the final policy."""
    parts = _prepare(config)
    run = RunFolder.create(config.out, config.name, config=config)
    budget, ledger, algorithm = _budget(config), Ledger(), parts.algorithm
    algorithm.start(parts.run)
    _evaluate(parts, config, run, observer, step=0)
    for step in itertools.count():
        left = budget.minus(ledger.total)
        if step == config.budget.steps or _spent(left):
            break
        start = time.perf_counter()
        pool = _pool(parts.run, config.rollout.prompts_per_step, step)
        with ledger.timed("plant"):
            ctx = plant_trees(parts.env, pool, parts.renderer, parts.run, step, left)
        grow_trees(
            algorithm,
            ctx,
            engine=parts.engine,
            renderer=parts.renderer,
            env=parts.env,
            settings=parts.settings,
            ledger=ledger,
            progress=lambda ctx: observer.progress(ctx, ledger),
        )
        if not any(len(tree) > 1 for tree in ctx.trees.values()):
            break  # what is left of the budget covers no rollout
        with ledger.timed("algorithm"):
            metrics = dict(algorithm.observe(ctx))
            credits = algorithm.credit(ctx)
            weights = token_weights(ctx.trees, credits, algorithm.normalise, algorithm.constant_tokens)
            rows = flatten(ctx.trees, credits, weights, keep_zero=algorithm.kl > 0)
        with ledger.timed("update"):
            metrics |= parts.updater.update(algorithm, rows, keyed_rng(config.seed, "minibatches", step))
        with ledger.timed("load"):
            parts.engine.load(parts.policy.model.named_parameters(), step + 1)
        with ledger.timed("log"):
            metrics = _metrics(ctx, ledger, budget, config, step, start) | metrics
            run.append_metrics(metrics)
            if config.log.trees_every_steps and step % config.log.trees_every_steps == 0:
                run.save_trees(step, ctx.trees, credits)
        observer.step(metrics)
        if config.eval.every_steps and (step + 1) % config.eval.every_steps == 0:
            _evaluate(parts, config, run, observer, step=step + 1)
    _evaluate(parts, config, run, observer, step=step)
    save(run.policy_folder, parts.policy.model, parts.tokenizer)
    parts.engine.close()
    return run


# ---- setting up -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Parts:
    env: ForkableEnv[Any]
    eval_env: ForkableEnv[Any]
    tokenizer: Any
    renderer: Renderer
    policy: Policy
    engine: Engine
    updater: Updater
    algorithm: Algorithm
    settings: RolloutSettings
    run: RunContext


def _prepare(config: TrainConfig) -> _Parts:
    fields_of = dict(config.algorithm)
    algorithm = make_algorithm(fields_of.pop("name"), fields_of)
    device = pick_device(config.policy.device)
    model, tokenizer = load_policy_folder(config.policy.path, dtype=torch.float32, device=device)  # fp32 masters
    policy = Policy(model, temperature=config.rollout.temperature, autocast=_autocast(config, device))
    env = make_env(config.env.id, config.env.options)

    def embeddings() -> FloatArray:
        return model.get_input_embeddings().weight.detach().float().cpu().numpy()  # type: ignore[no-any-return]

    tasks = env.tasks("train")
    if not tasks:
        raise ConfigError(f"{config.env.id}: the train split has no tasks")
    return _Parts(
        env=env,
        eval_env=make_env(config.env.id, config.env.options),
        tokenizer=tokenizer,
        renderer=ChatRenderer(tokenizer, template_args=config.policy.template_args),
        policy=policy,
        engine=TransformersEngine(model, max_batch=config.engine.max_batch),
        updater=_updater(config, policy, algorithm),
        algorithm=algorithm,
        settings=RolloutSettings(
            **{f.name: getattr(config.rollout, f.name) for f in fields(RolloutSettings)}
        ),
        run=RunContext(seed=config.seed, tasks=tasks, vocabulary=len(tokenizer), embeddings=embeddings),
    )


def make_env(env_id: str, options: Mapping[str, Any]) -> ForkableEnv[Any]:
    """`gymnasium.make`, with errors a user can act on."""
    try:
        env = gymnasium.make(env_id, **options).unwrapped
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise ConfigError(f"env.id={env_id}: {error}; `trace-gym envs` lists what is registered") from error
    except TypeError as error:
        raise ConfigError(f"env.options of {env_id}: {error}") from error
    if not isinstance(env, ForkableEnv):
        raise ConfigError(f"{env_id} is not a ForkableEnv; wrap it in trace_gym.ReplayEnv")
    return env


def _autocast(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    if config.policy.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else None
    return torch.bfloat16 if config.policy.dtype == "bfloat16" else None


def _updater(config: TrainConfig, policy: Policy, algorithm: Algorithm) -> Updater:
    optim = config.optim
    reference = None
    if algorithm.kl > 0:
        frozen = copy.deepcopy(policy.model).requires_grad_(False)
        reference = Policy(frozen, temperature=policy.temperature, autocast=policy.autocast)
    return Updater(
        policy=policy,
        optimizer=torch.optim.AdamW(
            policy.model.parameters(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay
        ),
        lr=warm_up(optim.lr, optim.warmup_steps),
        max_grad_norm=optim.max_grad_norm,
        minibatches=optim.minibatches,
        micro_batch_tokens=optim.micro_batch_tokens,
        reference=reference,
    )


def _budget(config: TrainConfig) -> Budget:
    b = config.budget
    return Budget(policy_tokens=b.policy_tokens, rollout_units=b.rollout_units, env_steps=b.env_steps)


def _spent(left: Budget) -> bool:
    return any(getattr(left, f.name) == 0 for f in fields(Budget))


# ---- the parts of a step --------------------------------------------------------------------------------------------


def _pool(run: RunContext, size: int, step: int) -> list[str]:
    """The step's tasks: consecutive pieces of a permutation of the training split, a fresh one each epoch."""
    size = min(size, len(run.tasks))
    per_epoch = len(run.tasks) // size
    epoch, place = divmod(step, per_epoch)
    order = keyed_rng(run.seed, "pool", epoch).permutation(len(run.tasks))
    return [run.tasks[i] for i in order[place * size : (place + 1) * size]]


def _metrics(
    ctx: StepContext, ledger: Ledger, budget: Budget, config: TrainConfig, step: int, start: float
) -> Metrics:
    trees = [tree for tree in ctx.trees.values() if len(tree) > 1]
    outcomes = [outcome for tree in trees for outcome in tree.outcomes()]
    turns = sum(len(tree) - 1 for tree in trees)
    spent, seconds = ctx.purse.spent, time.perf_counter() - start
    metrics: Metrics = {
        "step": float(step),
        "success": sum(outcomes) / len(outcomes) if outcomes else float("nan"),
        "effective_ratio": sum(tree.mixed() for tree in trees) / len(trees),
        "format_error_rate": sum(n.format_error for tree in trees for n in tree.nodes) / max(1, turns),
        "unscored": float(sum(len(tree.leaves()) for tree in trees) - len(outcomes)),
        "rollouts": float(len(outcomes)),
        "refused": float(ctx.refused),
        "tokens_per_s": spent.policy_tokens / seconds,
        "seconds": seconds,
        "budget_used": _used(ledger, budget, config.budget.steps, step),
    }
    metrics |= {f.name: float(getattr(ledger.total, f.name)) for f in fields(ledger.total)}
    return metrics | {f"seconds_{phase}": value for phase, value in ledger.seconds.items()}


def _used(ledger: Ledger, budget: Budget, steps: int | None, step: int) -> float:
    """The largest share used of any limit, 0 to 1."""
    shares = [
        getattr(ledger.total, f.name) / limit for f in fields(budget) if (limit := getattr(budget, f.name)) is not None and limit > 0
    ]
    return max([*shares, (step + 1) / steps if steps else 0.0])


def _evaluate(parts: _Parts, config: TrainConfig, run: RunFolder, observer: Observer, *, step: int) -> None:
    """Sampled success, and greedy success where asked for, on the evaluation split; the same tasks and seeds each time."""
    if not config.eval.tasks:
        return
    tasks = _eval_tasks(parts.eval_env.tasks(config.eval.split), config.eval.tasks)
    common: dict[str, Any] = {"engine": parts.engine, "renderer": parts.renderer, "settings": parts.settings}
    sampled = evaluate(parts.eval_env, tasks, draws=config.eval.draws, seed=config.seed, **common)
    row = {"step": float(step), **_eval_row("eval", sampled)}
    if config.eval.greedy:
        row |= _eval_row("eval_greedy", evaluate(parts.eval_env, tasks, greedy=True, seed=config.seed, **common))
    run.append_eval(row)
    observer.evaluated(row)


def _eval_tasks(tasks: Sequence[str], count: int) -> list[str]:
    """`count` tasks spread evenly over the split, so that every kind of task is in it."""
    if count >= len(tasks):
        return list(tasks)
    return [tasks[i * len(tasks) // count] for i in range(count)]


def _eval_row(prefix: str, e: Evaluation) -> Metrics:
    names = ("success", "low", "high", "format_error_rate", "mean_turns", "unscored")
    return {f"{prefix}_{name}": float(getattr(e, name)) for name in names}
