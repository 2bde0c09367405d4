"""The training loop: sample a pool, grow trees, observe, credit, pack, loss, step, load, log. Read `_run` top to bottom.

Everything random is keyed by (seed, step), so a step depends on the weights and the algorithm's state alone. With
`rollout.ahead=1` the next step's trees grow during the update, under the weights of before it; `plan` still sees an algorithm
that has learned from all earlier steps. Before an evaluation or a checkpoint nothing grows ahead.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial

import torch

from trace_gym.actor import Actor, build_actor
from trace_gym.ahead import Ahead, Progress
from trace_gym.algorithm import (
    Algorithm,
    Credit,
    Metrics,
    RunContext,
    StepContext,
    check_credits,
    check_notes,
)
from trace_gym.boards import Boards
from trace_gym.checkpoint import load_newest, save_checkpoint
from trace_gym.config import TrainConfig
from trace_gym.engine import FloatArray
from trace_gym.errors import ConfigError, EngineError, RunError
from trace_gym.evaluate import evaluate_actor, evaluation_row
from trace_gym.ledger import Budget, Ledger
from trace_gym.observer import Observer
from trace_gym.oracle import NoOracle, StepOracle, make_oracle
from trace_gym.pack import Row, flatten, token_weights
from trace_gym.plugins import make_algorithm
from trace_gym.rollout import grow_trees, plant_trees
from trace_gym.runs import RunFolder
from trace_gym.seeding import keyed_rng
from trace_gym.update import Updater, warm_up

__all__ = ["train"]


@dataclass(slots=True)
class _Session:
    """What a run is made of."""

    config: TrainConfig
    actor: Actor
    algorithm: Algorithm
    updater: Updater
    context: RunContext
    budget: Budget
    observer: Observer
    oracle: StepOracle
    ledger: Ledger = field(default_factory=Ledger)
    ahead: Ahead = field(default_factory=Ahead)

    def close(self) -> None:
        self.ahead.close()
        self.actor.engine.close()
        self.oracle.close()


def train(
    config: TrainConfig,
    observer: Observer,
    *,
    resume: RunFolder | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> RunFolder:
    """Train as `config` says; returns the run's folder with metrics, trees, evaluations and the final policy.

    `resume` continues a run from its newest checkpoint; with `deterministic` its metrics equal an uninterrupted run's. When
    `stop()` turns true the run ends after the present step, with a checkpoint. Raises `RunError` when the disk refuses.
    """
    s = _prepare(config, observer)
    run = resume or RunFolder.create(
        config.out, config.name, config=config, facts={"device": str(s.actor.device)}
    )
    try:
        s.actor.engine.load(s.actor.weights(), 0)  # which may be elsewhere, and hold another policy's
        _run(s, run, first=_resume(run, s) if resume else 0, stop=stop)
    except RunError as error:
        raise RunError(f"{error}; to go on afterwards: trace-gym train --resume {run.path}") from error
    finally:
        s.close()
    return run


def _run(s: _Session, run: RunFolder, *, first: int, stop: Callable[[], bool]) -> None:
    """Everything from step `first` to the final policy, or to the step before which `stop()` is true."""
    config, observer = s.config, s.observer
    log = config.log
    boards = Boards(
        run.path, tensorboard=log.tensorboard, wandb=log.wandb, first_step=first, note=observer.note
    )
    if first == 0 and config.eval.at_start:
        _evaluate(s, run, step=0)
    for step in itertools.count(first):
        left = s.budget.minus(s.ledger.total)
        if step == config.budget.steps or _spent(left):
            break
        if stop():
            _checkpoint(run, s, step)
            run.settle()
            observer.note(f"stopped before step {step}; go on with: trace-gym train --resume {run.path}")
            boards.close()
            return
        start = time.perf_counter()
        ctx = s.ahead.take(s.ledger)
        if ctx is None:
            ctx = _grow(s, step, left, s.ledger, partial(_watched, s))
        else:
            _watched(s, ctx)  # whose growing nobody saw
        if not any(len(tree) > 1 for tree in ctx.trees.values()):
            break  # what is left of the budget covers no rollout
        _expect_progress(ctx)
        metrics, credits, rows = _judge(s, ctx)
        if _due(config.log.trees_every_steps, step):
            with s.ledger.timed("log"):
                notes = s.algorithm.notes(ctx)
                check_notes(ctx, notes, type(s.algorithm).__name__)
                run.save_trees(step, ctx.trees, credits, notes)
        evaluates = _evaluates_after(s, ctx)
        saves = _due(config.log.checkpoint_every_steps, step + 1)
        if config.rollout.ahead and not (evaluates or saves):
            _grow_ahead(s, step + 1)
        metrics |= _update(s, ctx, rows)
        with s.ledger.timed("log"):
            metrics |= _metrics(ctx, s, start)
            run.append_metrics(metrics)
            boards.write(metrics, step)
        observer.step(metrics)
        if evaluates:
            _evaluate(s, run, step=step + 1)
        if saves:
            _checkpoint(run, s, step + 1)
    _finish(s, run, boards, step)


def _finish(s: _Session, run: RunFolder, boards: Boards, step: int) -> None:
    """The last evaluation, and the policy as a folder."""
    if not run.metrics():
        s.observer.note(
            "nothing was trained: the budget does not cover the worst case of a single rollout; raise it"
        )
    _evaluate(s, run, step=step)
    run.settle()
    s.actor.learner.save_adapter(run.path / "adapter")
    s.actor.learner.save(run.policy_folder, s.actor.tokenizer)
    last = run.evals()[-1] if run.evals() else {}
    boards.write({name: value for name, value in last.items() if name.startswith("eval_")}, step)
    boards.close()


def _grow(s: _Session, step: int, left: Budget, ledger: Ledger, progress: Progress) -> StepContext:
    """The step's pool, grown into trees."""
    with ledger.timed("plant"):
        pool = _pool(s.context, s.algorithm.pool or s.config.rollout.prompts_per_step, step)
        ctx = plant_trees(s.actor.env, pool, s.actor.renderer, s.context, step, left)
        ctx.oracle = s.oracle.of(ctx, ledger)
    for task, reason in ctx.unplanted.items():
        s.observer.note(f"step {step}: task {task} left out: {reason}")
    return grow_trees(
        s.algorithm,
        ctx,
        engine=s.actor.engine,
        renderer=s.actor.renderer,
        env=s.actor.env,
        settings=s.actor.settings,
        ledger=ledger,
        progress=progress,
    )


def _watched(s: _Session, ctx: StepContext) -> None:
    s.observer.progress(ctx, s.ledger)


def _grow_ahead(s: _Session, step: int) -> None:
    """Start on a step's trees, unless the run ends before it."""
    left = s.budget.minus(s.ledger.total)
    if step != s.config.budget.steps and not _spent(left):
        s.ahead.start(partial(_grow, s, step, left))


def _judge(s: _Session, ctx: StepContext) -> tuple[Metrics, Mapping[str, Credit], Sequence[Row]]:
    """What the step teaches: observe, credit, pack."""
    algorithm = s.algorithm
    with s.ledger.timed("algorithm"):
        metrics = dict(algorithm.observe(ctx))
        credits = algorithm.credit(ctx)
        check_credits(ctx, credits, type(algorithm).__name__)
        weights = token_weights(ctx.trees, credits, algorithm.normalise, algorithm.constant_tokens)
        rows = flatten(ctx.trees, credits, weights, keep_zero=algorithm.kl > 0)
    return metrics, credits, rows


def _update(s: _Session, ctx: StepContext, rows: Sequence[Row]) -> Metrics:
    """Loss, step; the engine gets the new weights once it has nothing to do."""
    with s.ledger.timed("update"), _resting(s):
        metrics = s.updater.update(s.algorithm, rows, keyed_rng(s.config.seed, "minibatches", ctx.step))
    if s.config.rollout.ahead:
        with s.ledger.timed("wait"):
            s.ahead.wait()
    with s.ledger.timed("load"):
        s.actor.engine.load(s.actor.weights(), ctx.step + 1)
    return metrics | s.oracle.metrics()


@contextlib.contextmanager
def _resting(s: _Session) -> Iterator[None]:
    """The engine's memory is the trainer's meanwhile, where `engine.sleep` says so."""
    if not s.config.engine.sleep:
        yield
        return
    s.actor.engine.sleep()
    yield
    s.actor.engine.wake()


# ---- setting up -----------------------------------------------------------------------------------------------------


def _prepare(config: TrainConfig, observer: Observer) -> _Session:
    fields_of = dict(config.algorithm)
    algorithm = make_algorithm(str(fields_of.pop("name")), fields_of)
    if algorithm.pool < 0:
        raise ConfigError(
            f"algorithm.pool={algorithm.pool}: a number of tasks; 0 leaves it to rollout.prompts_per_step"
        )
    actor = build_actor(config, learns=True)
    for notice in actor.env.notices():
        observer.note(notice)
    b = config.budget
    session = _Session(
        config=config,
        actor=actor,
        algorithm=algorithm,
        updater=_updater(config, actor, algorithm),
        context=_run_context(config, actor),
        budget=Budget(policy_tokens=b.policy_tokens, rollout_units=b.rollout_units, env_steps=b.env_steps),
        observer=observer,
        oracle=make_oracle(config, actor),
    )
    _check_ahead(session)
    reason = session.updater.policy.flat_because
    if reason and config.policy.layout == "auto" and config.policy.path != "tabular":
        observer.note(f"policy.layout: rollouts are trained on flat, not packed: {reason}")
    algorithm.start(session.context)
    return session


def _check_ahead(s: _Session) -> None:
    if s.config.rollout.ahead and not isinstance(s.oracle, NoOracle):
        raise ConfigError(
            "rollout.ahead=1 leaves no policy for an oracle to speak of: set rollout.ahead=0, or do without the oracle"
        )
    if s.config.rollout.ahead and s.algorithm.mismatch_cap <= 0:
        raise ConfigError(
            "rollout.ahead=1 needs algorithm.mismatch_cap above 0: it weighs turns by how likely they still are"
        )


def _updater(config: TrainConfig, actor: Actor, algorithm: Algorithm) -> Updater:
    optim, learner, temperature = config.optim, actor.learner, config.rollout.temperature
    lr = learner.learning_rate if optim.lr is None else optim.lr
    return Updater(
        policy=learner.policy(temperature),
        optimizer=torch.optim.AdamW(
            learner.learned(), lr=lr, betas=optim.betas, weight_decay=optim.weight_decay
        ),
        lr=warm_up(lr, optim.warmup_steps),
        max_grad_norm=optim.max_grad_norm,
        minibatches=optim.minibatches,
        micro_batch_tokens=optim.micro_batch_tokens,
        reference=learner.reference(temperature) if algorithm.kl > 0 else None,
    )


def _run_context(config: TrainConfig, actor: Actor) -> RunContext:
    def embeddings() -> FloatArray:
        return actor.model.get_input_embeddings().weight.detach().float().cpu().numpy()  # type: ignore[no-any-return]

    tasks = actor.env.tasks("train")
    if not tasks:
        raise ConfigError(f"{config.env.id}: the train split has no tasks")
    return RunContext(seed=config.seed, tasks=tasks, vocabulary=len(actor.tokenizer), embeddings=embeddings)


def _spent(left: Budget) -> bool:
    return any(getattr(left, f.name) == 0 for f in fields(Budget))


def _checkpoint(run: RunFolder, s: _Session, next_step: int) -> None:
    with s.ledger.timed("checkpoint"):
        save_checkpoint(
            run.path / "checkpoints",
            next_step,
            model=s.actor.model,
            updater=s.updater,
            algorithm=s.algorithm,
            ledger=s.ledger,
        )


def _resume(run: RunFolder, s: _Session) -> int:
    """Load the newest checkpoint and forget what was recorded after it; returns the step to go on with."""
    step, notes = load_newest(
        run.path / "checkpoints",
        model=s.actor.model,
        updater=s.updater,
        algorithm=s.algorithm,
        ledger=s.ledger,
    )
    run.forget_after(step)
    s.actor.engine.load(s.actor.weights(), step)
    for note in (*notes, f"going on with step {step}" if step else "no checkpoint yet: starting again"):
        s.observer.note(note)
    return step


# ---- the parts of a step --------------------------------------------------------------------------------------------


def _pool(run: RunContext, size: int, step: int) -> list[str]:
    """The step's tasks: consecutive pieces of a permutation of the training split, a fresh one each epoch."""
    size = min(size, len(run.tasks))
    per_epoch = len(run.tasks) // size
    epoch, place = divmod(step, per_epoch)
    order = keyed_rng(run.seed, "pool", epoch).permutation(len(run.tasks))
    return [run.tasks[i] for i in order[place * size : (place + 1) * size]]


def _expect_progress(ctx: StepContext) -> None:
    """A step without a single sampled token would repeat for ever. Raises `EngineError` with the first reason."""
    if ctx.purse.spent.policy_tokens == 0:
        reasons = (node.reason for tree in ctx.trees.values() for node in tree.nodes if node.reason)
        raise EngineError(
            f"step {ctx.step}: no turn could be sampled ({next(reasons, 'no reason was given')})"
        )


def _metrics(ctx: StepContext, s: _Session, start: float) -> Metrics:
    trees = [tree for tree in ctx.trees.values() if len(tree) > 1]
    outcomes = [outcome for tree in trees for outcome in tree.outcomes()]
    turns = sum(len(tree) - 1 for tree in trees)
    spent, seconds = ctx.purse.spent, time.perf_counter() - start
    metrics: Metrics = {
        "step": float(ctx.step),
        "success": sum(outcomes) / len(outcomes) if outcomes else float("nan"),
        "effective_ratio": sum(tree.mixed() for tree in trees) / len(trees),
        "format_error_rate": sum(n.format_error for tree in trees for n in tree.nodes) / max(1, turns),
        "unscored": float(sum(len(tree.leaves()) for tree in trees) - len(outcomes)),
        "rollouts": float(len(outcomes)),
        "prompts": float(len(trees)),
        "mixed_anchors": float(sum(tree.mixed_anchors() for tree in trees)),
        "refused": float(ctx.refused),
        "unplanted": float(len(ctx.unplanted)),
        "tokens_per_s": spent.policy_tokens / seconds,
        "seconds": seconds,
        "budget_used": _used(s, ctx.step),
    }
    metrics |= {f.name: float(getattr(s.ledger.total, f.name)) for f in fields(s.ledger.total)}
    if s.config.rollout.ahead:
        versions = [n.policy_version for tree in trees for n in tree.nodes if n.n_action]
        metrics["staleness"] = float(ctx.step - min(versions, default=ctx.step))
    return metrics | {f"seconds_{phase}": value for phase, value in s.ledger.seconds.items()}


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _evaluates_after(s: _Session, ctx: StepContext) -> bool:
    """Whether an evaluation is due by steps, or because the step took the run's tokens past a multiple of `every_tokens`."""
    every_tokens, after = s.config.eval.every_tokens, s.ledger.total.policy_tokens
    before = after - ctx.purse.spent.policy_tokens
    passed = every_tokens > 0 and before // every_tokens < after // every_tokens
    return passed or _due(s.config.eval.every_steps, ctx.step + 1)


def _used(s: _Session, step: int) -> float:
    """The largest share used of any limit, 0 to 1."""
    limits = {f.name: getattr(s.budget, f.name) for f in fields(s.budget)}
    shares = [float(getattr(s.ledger.total, name) / limit) for name, limit in limits.items() if limit]
    steps = s.config.budget.steps
    return max([*shares, (step + 1) / steps if steps else 0.0])


def _evaluate(s: _Session, run: RunFolder, *, step: int) -> None:
    """Sampled success, and greedy success where asked for, on the evaluation split; the same tasks and seeds each time."""
    if not s.config.eval.tasks or any(row["step"] == step for row in run.evals()):
        return
    row = {"step": float(step), "policy_tokens": float(s.ledger.total.policy_tokens)}
    for prefix, greedy in (("eval", False), ("eval_greedy", True)):
        if not greedy or s.config.eval.greedy:
            found = evaluate_actor(s.actor, s.config, greedy=greedy, observer=s.observer)
            row |= evaluation_row(prefix, found)
    s.actor.engine.load((), step)  # an empty cache: a resumed run starts with one too
    run.append_eval(row)
    s.observer.evaluated(row)
