"""The loop that grows rollout trees under a budget.

`plan` says which rollouts to start; each alternates between the engine (a turn's tokens) and the environment (its answer)
until its episode ends. All rollouts run at once and none waits for another; a tree whose last one has ended is *idle*, and
`plan` is asked again at once, without a barrier across trees.

Invariants. A budget is reserved for a rollout's worst case before it starts, first come first served, so it is never
exceeded. A tree grows only when it becomes idle, by whole rollouts in the order they were planned, and every random
stream is keyed by (seed, step, task, node, draw, turn): on a batch-invariant engine the trees do not depend on the order in
which completions arrive, unless a budget runs out on plans made after looking (who asks first is then served first). A wave
in which no token was sampled does not make its tree idle again. What breaks becomes a `failed` or `censored` leaf with a
reason, never a reward of 0: every call of the engine and of environments goes through `guard`.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from trace_gym.algorithm import Algorithm, Branch, StepContext
from trace_gym.engine import Engine, IntArray, Request
from trace_gym.env import ForkableEnv, Snapshot
from trace_gym.errors import PluginError
from trace_gym.guard import Ending, Sampled, Step, Steps, Turns, show
from trace_gym.ledger import CONTINUATION_UNITS, ROOT_UNITS, Cost, Ledger
from trace_gym.planting import plant_trees
from trace_gym.render import Renderer
from trace_gym.seeding import derive_seed
from trace_gym.tree import NO_LOGPROBS, NO_TOKENS, Node, Status

__all__ = ["RolloutSettings", "grow_trees", "plant_trees"]

TICK_S = 0.05  # how often deadlines are looked at while nothing happens


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """Limits of a turn, and how turns are sampled."""

    max_tokens: int = 64  # sampled per turn
    temperature: float = 1.0
    turn_deadline_s: float = 120.0  # generating one turn, waiting in the engine's queue included
    env_deadline_s: float = 20.0  # one environment step
    threads: int = 4  # environment steps at a time
    lockstep: bool = (
        False  # wait for every environment step before the engine goes on: slower, but batches never vary
    )


@dataclass(slots=True, eq=False)
class _Rollout:
    """One attempt on its way. `chain` holds its finished turns; their parents are set when the tree takes them."""

    task: str
    node: int  # where it starts
    draw: int
    key: str  # names its random streams
    prefix: IntArray  # tokens the policy has seen so far
    worst: Cost
    start_from: Snapshot | None  # restored by the first environment step, then None
    chain: list[Node] = field(default_factory=list)
    env: ForkableEnv[Any] | None = None
    turn: Sampled | None = None  # the one that the environment is answering now


def grow_trees(
    algorithm: Algorithm,
    ctx: StepContext,
    *,
    engine: Engine,
    renderer: Renderer,
    env: ForkableEnv[Any],
    settings: RolloutSettings,
    ledger: Ledger,
    progress: Callable[[StepContext], None] | None = None,
) -> StepContext:
    """Grow the step's trees until `plan` has nothing more to start and every rollout has ended.

    `env` is a prototype: rollouts run in forks of it. Raises `PluginError` when `plan` names a node that cannot be
    continued. Errors of environments and of the engine end single rollouts, not the step.
    """
    loop = _Loop(ctx, engine, renderer, env, settings, ledger)
    try:
        loop.plan(algorithm)
        while loop.busy:
            loop.admit()
            loop.collect_engine()
            loop.collect_env()
            loop.check_deadlines()
            if loop.newly_idle:
                loop.plan(algorithm)
            if progress is not None:
                progress(ctx)
    finally:
        loop.close()
    return ctx


class _Loop:
    """The state of `grow_trees`: which rollouts wait for the budget, for the engine, for the environment."""

    def __init__(
        self,
        ctx: StepContext,
        engine: Engine,
        renderer: Renderer,
        env: ForkableEnv[Any],
        settings: RolloutSettings,
        ledger: Ledger,
    ) -> None:
        self.ctx, self.engine, self.renderer, self.settings, self.ledger = (
            ctx,
            engine,
            renderer,
            settings,
            ledger,
        )
        self.place = {task: i for i, task in enumerate(ctx.trees)}  # in the pool
        self.waiting: deque[_Rollout] = deque()
        self.turns: Turns[_Rollout] = Turns(
            engine,
            renderer,
            max_tokens=settings.max_tokens,
            deadline_s=settings.turn_deadline_s,
            ledger=ledger,
        )
        self.steps: Steps[_Rollout] = Steps(
            env, threads=settings.threads, deadline_s=settings.env_deadline_s, ledger=ledger
        )
        self.open: dict[
            str, list[_Rollout]
        ] = {}  # rollouts planned since the tree was last idle, in planning order
        self.unfinished: dict[str, int] = {}
        self.made: dict[
            str, Counter[int]
        ] = {}  # rollouts from each node, open ones included; forgotten when the tree grows
        self.newly_idle: list[str] = []
        self.last_check = time.monotonic()

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.turns or self.steps or self.newly_idle)

    def close(self) -> None:
        """Leave nothing running, also when the step is interrupted."""
        self.turns.close()
        self.steps.close()

    # ---- planning ---------------------------------------------------------------------------------------------------

    def plan(self, algorithm: Algorithm) -> None:
        self.ctx.idle = tuple(sorted(self.newly_idle, key=self.place.__getitem__))
        self.newly_idle = []
        with self.ledger.timed("plan"):
            branches = algorithm.plan(self.ctx)
        for branch in branches:
            self.enqueue(branch)

    def enqueue(self, branch: Branch) -> None:
        """Queue the branch's rollouts; refuse loudly what cannot be continued."""
        task, node = branch.task, branch.node
        tree = self.ctx.trees.get(task)
        if tree is None:
            raise PluginError(f"plan() asked for task {task!r}, which is not in the step's pool")
        if not 0 <= node < len(tree) or tree[node].status != "running" or tree[node].snapshot is None:
            raise PluginError(
                f"plan() asked for node {node} of {task!r}, which no rollout can continue; see Tree.anchors()"
            )
        if branch.count < 1:
            raise PluginError(
                f"plan() asked for {branch.count} rollouts of {task!r}; a branch has at least one"
            )
        pending = self.open.setdefault(task, [])
        if task not in self.made:
            self.made[task] = Counter(n.parent for n in tree.nodes)
        first = self.made[task][node]
        self.made[task][node] += branch.count
        prefix = tree.tokens(node)
        for draw in range(first, first + branch.count):
            rollout = self._rollout(task, node, draw, prefix)
            pending.append(rollout)
            self.waiting.append(rollout)
            self.unfinished[task] = self.unfinished.get(task, 0) + 1

    def _rollout(self, task: str, node: int, draw: int, prefix: IntArray) -> _Rollout:
        snapshot = self.ctx.trees[task][node].snapshot
        assert snapshot is not None
        turns = snapshot.turn_limit - snapshot.turn
        worst = Cost(
            policy_tokens=turns * self.settings.max_tokens,
            env_steps=turns,
            rollout_units=ROOT_UNITS if node == 0 else CONTINUATION_UNITS,
        )
        key = f"{task}/{node}/{draw}"
        return _Rollout(task, node, draw, key, prefix, worst, snapshot)

    # ---- the engine's side ------------------------------------------------------------------------------------------

    def admit(self) -> None:
        """Start waiting rollouts in order while the budget covers the worst case of the first."""
        while self.waiting:
            rollout = self.waiting[0]
            if not self.ctx.purse.reserve(rollout.worst):
                if self.turns or self.steps:
                    return  # something will be given back
                self.ctx.refused += 1
                self.waiting.popleft()
                self.retire(rollout)
                continue
            self.waiting.popleft()
            self.submit(rollout)

    def submit(self, rollout: _Rollout) -> None:
        """Ask the engine for the rollout's next turn."""
        room = self.engine.max_context - len(rollout.prefix)
        if room < 1:
            self.end(rollout, Ending("truncated", "the context is full"))
            return
        request = Request(
            rollout.prefix,
            max_tokens=min(self.settings.max_tokens, room),
            seed=self.seed(rollout, "policy"),
            temperature=self.settings.temperature,
            stop=self.renderer.stop,
        )
        ending = self.turns.ask(rollout, request)
        if ending is not None:
            self.end(rollout, ending)

    def seed(self, rollout: _Rollout, stream: str) -> int:
        return derive_seed(self.ctx.run.seed, stream, self.ctx.step, rollout.key, len(rollout.chain))

    def collect_engine(self) -> None:
        """Take sampled turns and hand them to the environment."""
        for rollout, turn in self.turns.take(0.001 if self.steps else TICK_S):
            rollout.turn = turn
            if turn.ending is not None:
                self.end(rollout, turn.ending)
            else:
                self.answer(rollout, turn.action)

    def answer(self, rollout: _Rollout, action: str) -> None:
        """Start the environment step that answers a sampled turn."""
        env, rollout.env = rollout.env, None  # until the step has ended well
        start_from, rollout.start_from = rollout.start_from, None
        self.steps.ask(rollout, action, env=env, start_from=start_from, noise=self.seed(rollout, "env"))

    # ---- the environment's side -------------------------------------------------------------------------------------

    def collect_env(self) -> None:
        """Take finished environment steps and submit the turns that follow."""
        if not self.steps:
            return
        start = time.perf_counter()
        finished = self.steps.take(0.0 if self.turns and not self.settings.lockstep else TICK_S)
        while self.settings.lockstep and self.steps:
            finished += self.steps.take(TICK_S)
            self.check_deadlines()
        self.ledger.add_seconds("env_wait", time.perf_counter() - start)
        for stepped in sorted(finished, key=lambda stepped: stepped.number):
            self._stepped(stepped.owner, stepped.outcome)

    def _stepped(self, rollout: _Rollout, step: Step | Ending) -> None:
        if isinstance(step, Ending):
            self.end(rollout, step)
            return
        rollout.env = step.env
        assert rollout.turn is not None and rollout.turn.completion is not None
        shown = show(self.renderer, step, closed=rollout.turn.completion.finish == "stop")
        if isinstance(shown, Ending):
            self.end(rollout, shown)
            return
        node = self._node(rollout, status=step.status, shown=shown, step=step)
        rollout.chain.append(node)
        rollout.turn = None
        if step.status == "running":
            rollout.prefix = np.concatenate([rollout.prefix, node.tokens])
            self.submit(rollout)
        else:
            self.retire(rollout)

    def _node(
        self,
        rollout: _Rollout,
        *,
        status: Status,
        shown: IntArray = NO_TOKENS,
        step: Step | None = None,
        reason: str = "",
    ) -> Node:
        """The present turn as a node. Without a step it was not answered, so its reward is unknown."""
        turn = rollout.turn
        done = turn.completion if turn else None
        sampled = NO_TOKENS if done is None else done.tokens
        first = not rollout.chain
        cost = Cost(
            policy_tokens=len(sampled),
            prompt_tokens=done.processed_tokens if done else 0,
            cached_tokens=done.cached_tokens if done else 0,
            env_steps=int(step is not None),
            restores=int(first and step is not None and rollout.node != 0),
            rollout_units=rollout.worst.rollout_units if first else 0.0,
        )
        return Node(
            parent=rollout.node,  # of the first turn; `retire` sets the others
            tokens=np.concatenate([sampled, shown]),
            n_action=len(sampled),
            logprobs=NO_LOGPROBS if done is None else done.logprobs,
            policy_version=-1 if done is None else done.version,
            action=turn.action if turn else "",
            observation=step.observation if step else "",
            snapshot=step.snapshot if step and status == "running" else None,
            state_key=step.state_key if step else "",
            reward=step.reward if step else 0.0 if status == "truncated" else float("nan"),
            status=status,
            origin="root" if rollout.node == 0 else "continuation",
            draw=rollout.draw if first else 0,
            cost=cost,
            reason=reason,
            format_error=bool(step and step.format_error),
            success=step.success if step else False if status == "truncated" else None,
        )

    # ---- endings ----------------------------------------------------------------------------------------------------

    def end(self, rollout: _Rollout, ending: Ending) -> None:
        """End a rollout without an answer from the environment."""
        rollout.chain.append(self._node(rollout, status=ending.status, reason=ending.reason))
        self.retire(rollout)

    def retire(self, rollout: _Rollout) -> None:
        """A rollout is over: settle its budget; when it was its tree's last, the tree takes them all."""
        spent = Cost()
        for node in rollout.chain:
            spent = spent + node.cost
        if rollout.chain:
            self.ctx.purse.settle(rollout.worst, spent)
            self.ledger.add(spent)
        if rollout.env is not None:
            self.steps.give_back(rollout.env)
            rollout.env = None
        self.unfinished[rollout.task] -= 1
        if self.unfinished[rollout.task] == 0:
            self._grow(rollout.task)

    def _grow(self, task: str) -> None:
        tree, sampled = self.ctx.trees[task], False
        del self.made[task]
        for rollout in self.open.pop(task):
            parent = rollout.node
            for node in rollout.chain:
                parent = tree.append(replace(node, parent=parent))
                sampled = sampled or node.n_action > 0
        if (
            sampled
        ):  # else nothing came of the wave (no budget, no engine), and planning again would go on for ever
            self.newly_idle.append(task)

    def check_deadlines(self) -> None:
        now = time.monotonic()
        if now - self.last_check < TICK_S:
            return
        self.last_check = now
        for rollout, ending in [*self.steps.overdue(), *self.turns.overdue()]:
            self.end(rollout, ending)
