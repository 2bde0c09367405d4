"""The training loop: sample a pool, grow trees, observe, credit, pack, loss, step, load, log. Read `train` top to bottom.

Everything random is keyed by (seed, step), so a step depends on the weights and the algorithm's state alone.
"""

from __future__ import annotations

import copy
import itertools
import time
from dataclasses import fields

import torch

from trace_gym.actor import Actor, build_actor
from trace_gym.algorithm import Algorithm, Metrics, RunContext, StepContext
from trace_gym.config import TrainConfig
from trace_gym.engine import FloatArray
from trace_gym.errors import ConfigError
from trace_gym.evaluate import evaluate_actor, evaluation_row
from trace_gym.ledger import Budget, Ledger
from trace_gym.observer import Observer
from trace_gym.pack import flatten, token_weights
from trace_gym.plugins import make_algorithm
from trace_gym.policy import Policy
from trace_gym.rollout import grow_trees, plant_trees
from trace_gym.runs import RunFolder
from trace_gym.seeding import keyed_rng
from trace_gym.tiny import save
from trace_gym.update import Updater, warm_up

__all__ = ["train"]


def train(config: TrainConfig, observer: Observer) -> RunFolder:
    """Train as `config` says; returns the run's folder with metrics, trees, evaluations and the final policy."""
    name, settings = config.algorithm["name"], {k: v for k, v in config.algorithm.items() if k != "name"}
    algorithm = make_algorithm(str(name), settings)
    actor = build_actor(config)
    for notice in actor.env.notices():
        observer.note(notice)
    context, updater = _run_context(config, actor), _updater(config, actor, algorithm)
    run = RunFolder.create(config.out, config.name, config=config, facts={"device": str(actor.device)})
    budget, ledger = _budget(config), Ledger()
    algorithm.start(context)
    _evaluate(actor, config, run, observer, step=0)
    for step in itertools.count():
        left = budget.minus(ledger.total)
        if step == config.budget.steps or _spent(left):
            break
        start = time.perf_counter()
        with ledger.timed("plant"):
            pool = _pool(context, config.rollout.prompts_per_step, step)
            ctx = plant_trees(actor.env, pool, actor.renderer, context, step, left)
        grow_trees(
            algorithm,
            ctx,
            engine=actor.engine,
            renderer=actor.renderer,
            env=actor.env,
            settings=actor.settings,
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
            metrics |= updater.update(algorithm, rows, keyed_rng(config.seed, "minibatches", step))
        with ledger.timed("load"):
            actor.engine.load(actor.model.named_parameters(), step + 1)
        with ledger.timed("log"):
            metrics = _metrics(ctx, ledger, budget, config, step, start) | metrics
            run.append_metrics(metrics)
            if config.log.trees_every_steps and step % config.log.trees_every_steps == 0:
                run.save_trees(step, ctx.trees, credits)
        observer.step(metrics)
        if config.eval.every_steps and (step + 1) % config.eval.every_steps == 0:
            _evaluate(actor, config, run, observer, step=step + 1)
    _evaluate(actor, config, run, observer, step=step)
    save(run.policy_folder, actor.model, actor.tokenizer)
    actor.engine.close()
    return run


# ---- setting up -----------------------------------------------------------------------------------------------------


def _updater(config: TrainConfig, actor: Actor, algorithm: Algorithm) -> Updater:
    optim, device = config.optim, actor.device
    precision = config.policy.dtype
    half = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    autocast = torch.bfloat16 if half else None  # of forward passes; the weights stay float32
    reference = None
    if algorithm.kl > 0:
        frozen = copy.deepcopy(actor.model).requires_grad_(False)
        reference = Policy(frozen, temperature=config.rollout.temperature, autocast=autocast)
    return Updater(
        policy=Policy(actor.model, temperature=config.rollout.temperature, autocast=autocast),
        optimizer=torch.optim.AdamW(
            actor.model.parameters(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay
        ),
        lr=warm_up(optim.lr, optim.warmup_steps),
        max_grad_norm=optim.max_grad_norm,
        minibatches=optim.minibatches,
        micro_batch_tokens=optim.micro_batch_tokens,
        reference=reference,
    )


def _run_context(config: TrainConfig, actor: Actor) -> RunContext:
    def embeddings() -> FloatArray:
        return actor.model.get_input_embeddings().weight.detach().float().cpu().numpy()  # type: ignore[no-any-return]

    tasks = actor.env.tasks("train")
    if not tasks:
        raise ConfigError(f"{config.env.id}: the train split has no tasks")
    return RunContext(seed=config.seed, tasks=tasks, vocabulary=len(actor.tokenizer), embeddings=embeddings)


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
    limits = {f.name: getattr(budget, f.name) for f in fields(budget)}
    shares = [float(getattr(ledger.total, name) / limit) for name, limit in limits.items() if limit]
    return max([*shares, (step + 1) / steps if steps else 0.0])


def _evaluate(actor: Actor, config: TrainConfig, run: RunFolder, observer: Observer, *, step: int) -> None:
    """Sampled success, and greedy success where asked for, on the evaluation split; the same tasks and seeds each time."""
    if not config.eval.tasks:
        return
    row = {"step": float(step)} | evaluation_row(
        "eval", evaluate_actor(actor, config, greedy=False, observer=observer)
    )
    if config.eval.greedy:
        row |= evaluation_row("eval_greedy", evaluate_actor(actor, config, greedy=True, observer=observer))
    run.append_eval(row)
    observer.evaluated(row)
