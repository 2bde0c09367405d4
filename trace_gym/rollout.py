"""The loop that grows rollout trees under a budget.

`plan` says which rollouts to start; each alternates between the engine (a turn's tokens) and the environment (its answer)
until its episode ends. All rollouts run at once and none waits for another; a tree whose last one has ended is *idle*, and
`plan` is asked again at once, without a barrier across trees.

Invariants. A budget is reserved for a rollout's worst case before it starts, first come first served, so it is never
exceeded. A tree grows only when it becomes idle, by whole rollouts in the order they were planned, and every random
stream is keyed by (seed, step, task, node, draw, turn): on a batch-invariant engine the trees do not depend on the order in
which completions arrive, unless a budget runs out on plans made after looking (who asks first is then served first). A wave
in which no token was sampled does not make its tree idle again. What breaks becomes a `failed` or `censored` leaf with a
reason, never a reward of 0.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from trace_gym.algorithm import Algorithm, Branch, RunContext, StepContext
from trace_gym.engine import Completion, Engine, IntArray, Request
from trace_gym.env import ForkableEnv, Snapshot
from trace_gym.errors import EnvironmentContractError, IrreversibleError, PluginError, TraceGymError
from trace_gym.ledger import CONTINUATION_UNITS, ROOT_UNITS, Budget, Cost, Ledger, Purse
from trace_gym.render import Renderer
from trace_gym.seeding import derive_seed
from trace_gym.tree import NO_LOGPROBS, NO_TOKENS, Node, Status, Tree
from trace_gym.workers import Done, Workers

__all__ = ["RolloutSettings", "grow_trees", "plant_trees"]

TICK_S = 0.05  # how often deadlines are looked at while nothing happens
RESET_DEADLINE_S = 300.0  # for beginning a task: an environment may load its data in its first reset
ABORT_GRACE_S = 1.0  # how long an engine may take to give back a turn that was aborted


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


@dataclass(frozen=True, slots=True)
class _Step:
    """What one environment step gave, and the instance that gave it, which stands where the step led."""

    env: ForkableEnv[Any]
    observation: str
    role: str
    reward: float
    status: Status
    snapshot: Snapshot | None
    state_key: str
    format_error: bool
    success: bool | None


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
    completion: Completion | None = None  # the turn that the environment is answering now
    action: str = ""  # its text
    since: float = 0.0  # when the present turn was submitted
    late: bool = False  # its turn overran and was aborted


def plant_trees(
    env: ForkableEnv[Any],
    tasks: Sequence[str],
    renderer: Renderer,
    run: RunContext,
    step: int,
    budget: Budget,
) -> StepContext:
    """The step's pool: one tree per task, holding its prompt alone. Raises `TaskError` for an unknown task.

    Every rollout of a task starts from this prompt's snapshot, so all of them see the same prompt. A task whose `reset`
    breaks is left out and stands in `unplanted`; where none is left, or `reset` does not answer, `EnvironmentContractError`.
    """
    ctx = StepContext(run=run, step=step, trees={}, purse=Purse(budget))
    workers: Workers[Tree] = Workers(1)
    try:
        for number, task in enumerate(tasks):
            if task in ctx.trees or task in ctx.unplanted:
                raise PluginError(f"task {task!r} stands twice in one pool; a step grows one tree per task")
            seed = derive_seed(run.seed, "reset", step, task)
            workers.put(number, partial(_plant, env, task, renderer, seed))
            done = next(iter(workers.take(RESET_DEADLINE_S)), None)
            if done is None:
                raise EnvironmentContractError(
                    f"reset of task {task!r} gave no answer within {RESET_DEADLINE_S:g} s"
                )
            if done.result is not None:
                ctx.trees[task] = done.result
            elif isinstance(done.error, TraceGymError):
                raise done.error
            else:
                ctx.unplanted[task] = f"environment: {_said(done.error)}"
    finally:
        workers.close()
    if ctx.unplanted and not ctx.trees:
        raise EnvironmentContractError(f"no task could begin ({next(iter(ctx.unplanted.values()))})")
    return ctx


def _plant(env: ForkableEnv[Any], task: str, renderer: Renderer, seed: int) -> Tree:
    observation, info = env.reset(seed=seed, options={"task": task})
    tokens = renderer.prompt(observation, system=info["system"], tools=info["tools"])
    prompt = Node.prompt(tokens, observation, env.snapshot(), state_key=env.state_key())
    return Tree(task, [prompt])


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
        self.prototype = env
        self.spare_envs: list[ForkableEnv[Any]] = []
        self.waiting: deque[_Rollout] = deque()
        self.sampling: dict[int, _Rollout] = {}  # by request id
        self.stepping: dict[int, _Rollout] = {}  # by job key
        self.jobs = 0
        self.workers: Workers[_Step] = Workers(settings.threads)
        self.open: dict[
            str, list[_Rollout]
        ] = {}  # rollouts planned since the tree was last idle, in planning order
        self.unfinished: dict[str, int] = {}
        self.made: dict[
            str, Counter[int]
        ] = {}  # rollouts from each node, open ones included; forgotten when the tree grows
        self.newly_idle: list[str] = []
        self.engine_error = ""
        self.last_check = time.monotonic()

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.sampling or self.stepping or self.newly_idle)

    def close(self) -> None:
        """Leave nothing running, also when the step is interrupted."""
        if not self.engine_error:
            for request_id in self.sampling:
                self.abort(request_id)
        self.workers.close()

    def abort(self, request_id: int) -> None:
        with contextlib.suppress(Exception):  # an engine that cannot is found out by its next `poll`
            self.engine.abort(request_id)

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
                if self.sampling or self.stepping:
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
            self.end(rollout, "truncated", "the context is full")
            return
        if self.engine_error:
            self.end(rollout, "failed", self.engine_error)
            return
        request = Request(
            rollout.prefix,
            max_tokens=min(self.settings.max_tokens, room),
            seed=self.seed(rollout, "policy"),
            temperature=self.settings.temperature,
            stop=self.renderer.stop,
        )
        rollout.since = time.monotonic()
        try:
            with self.ledger.timed("engine"):
                request_id = self.engine.submit(request)
        except Exception as error:  # an engine may be anybody's, and far away
            self.end(rollout, "failed", f"engine: {_said(error)}")
            return
        self.sampling[request_id] = rollout

    def seed(self, rollout: _Rollout, stream: str) -> int:
        return derive_seed(self.ctx.run.seed, stream, self.ctx.step, rollout.key, len(rollout.chain))

    def collect_engine(self) -> None:
        """Take completions and hand them to the environment."""
        if not self.sampling:
            return
        try:
            with self.ledger.timed("engine"):
                completions = self.engine.poll(0.001 if len(self.workers) else TICK_S)
        except Exception as error:
            self.engine_error = f"engine: {_said(error)}"
            for rollout in list(self.sampling.values()):
                self.end(rollout, "failed", self.engine_error)
            self.sampling.clear()
            return
        for completion in completions:
            asked = self.sampling.pop(completion.request_id, None)
            if asked is not None:  # else it was given up at its deadline
                self.answer(asked, completion)

    def answer(self, rollout: _Rollout, completion: Completion) -> None:
        """Start the environment step that answers a sampled turn."""
        completion, rollout.action = self.read(completion)
        rollout.completion = completion
        if completion.finish in ("error", "aborted"):
            reason = f"engine: {completion.error or 'the request was aborted'}"
            failed = completion.finish == "error"
            self.end(rollout, "failed" if failed else "censored", self.overrun if rollout.late else reason)
            return
        env = rollout.env or (self.spare_envs.pop() if self.spare_envs else None)
        rollout.env = None  # until the step has ended well
        start_from, rollout.start_from = rollout.start_from, None
        noise = self.seed(rollout, "env")
        key = self.jobs
        self.jobs += 1
        self.stepping[key] = rollout
        self.workers.put(
            key, partial(_take_step, env, self.prototype, rollout.action, start_from=start_from, noise=noise)
        )

    def read(self, completion: Completion) -> tuple[Completion, str]:
        """The completion and its text; as an error without tokens when they can neither be trained on nor read."""
        problem = _problem(completion, self.settings.max_tokens)
        if not problem:
            try:
                return completion, self.renderer.action(completion.tokens)
            except Exception as error:
                problem = f"tokens that cannot be read ({_said(error)})"
        broken = replace(completion, tokens=NO_TOKENS, logprobs=NO_LOGPROBS, finish="error")
        return replace(broken, error=f"the engine returned {problem}"), ""

    # ---- the environment's side -------------------------------------------------------------------------------------

    def collect_env(self) -> None:
        """Take finished environment steps and submit the turns that follow."""
        if not self.stepping:
            return
        start = time.perf_counter()
        finished = self.workers.take(0.0 if self.sampling and not self.settings.lockstep else TICK_S)
        while self.settings.lockstep and len(self.workers):
            finished += self.workers.take(TICK_S)
            self.check_deadlines()
        self.ledger.add_seconds("env_wait", time.perf_counter() - start)
        for done in sorted(finished, key=lambda done: done.key):
            self._stepped(self.stepping.pop(done.key), done)

    def _stepped(self, rollout: _Rollout, done: Done[_Step]) -> None:
        self.ledger.add_seconds("env", done.seconds)
        if done.result is None:
            self.end(rollout, "failed", f"environment: {_said(done.error)}")
            return
        step = done.result
        rollout.env = step.env
        running = step.status == "running"
        assert rollout.completion is not None
        closed = rollout.completion.finish == "stop"
        try:
            shown = (
                self.renderer.delta(step.observation, role=step.role, closed=closed) if running else NO_TOKENS
            )
        except Exception as error:
            self.end(rollout, "failed", f"environment: its answer cannot be shown: {_said(error)}")
            return
        node = self._node(rollout, status=step.status, shown=shown, step=step)
        rollout.chain.append(node)
        rollout.completion = None
        if running:
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
        step: _Step | None = None,
        reason: str = "",
    ) -> Node:
        """The present turn as a node. Without a step it was not answered, so its reward is unknown."""
        done = rollout.completion
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
            action="" if done is None else rollout.action,
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

    def end(self, rollout: _Rollout, status: Status, reason: str) -> None:
        """End a rollout without an answer from the environment."""
        rollout.chain.append(self._node(rollout, status=status, reason=reason))
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
            self.spare_envs.append(rollout.env)
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
        for key in self.workers.overdue(self.settings.env_deadline_s):
            rollout = self.stepping.pop(key)
            self.end(rollout, "censored", f"environment: no answer within {self.settings.env_deadline_s:g} s")
        deadline = self.settings.turn_deadline_s
        for request_id, rollout in list(self.sampling.items()):
            if not rollout.late and now - rollout.since > deadline:
                rollout.late = True  # what was sampled comes back, is billed and kept
                self.abort(request_id)
            elif now - rollout.since > deadline + ABORT_GRACE_S:
                del self.sampling[request_id]
                self.end(rollout, "censored", self.overrun)

    @property
    def overrun(self) -> str:
        return f"engine: no turn within {self.settings.turn_deadline_s:g} s"


def _problem(completion: Completion, max_tokens: int) -> str:
    """What is wrong with a completion's numbers; empty where nothing is."""
    if completion.finish in ("error", "aborted"):
        return ""
    tokens, logprobs = len(completion.tokens), len(completion.logprobs)
    if tokens != logprobs:
        return f"{tokens} tokens with {logprobs} log-probs"
    if tokens == 0:
        return "no token"
    if tokens > max_tokens:
        return f"{tokens} tokens where at most {max_tokens} were asked for"
    if completion.tokens.min() < 0:
        return "a token id below 0"
    return "" if np.isfinite(completion.logprobs).all() else "a log-prob that is not finite"


def _said(error: BaseException | None) -> str:
    """An exception of somebody else's code in a line; ours say all in their message."""
    try:
        text = " ".join(str(error).split())[:500]
    except Exception:  # not even that works
        text = "no message"
    return text if isinstance(error, TraceGymError) else f"{type(error).__name__}: {text}"


def _check_answer(
    observation: object, reward: object, terminated: object, truncated: object, info: object
) -> None:
    """Whatever an environment answers enters the record, so what is no answer must fail here and not later."""
    if not isinstance(observation, str):
        raise EnvironmentContractError(f"the observation is a {type(observation).__name__}, not a string")
    if not isinstance(reward, int | float | np.number) or not np.isfinite(float(reward)):
        raise EnvironmentContractError(f"the reward is {reward!r}, not a finite number")
    if not isinstance(info, dict) or info.get("role") not in ("user", "tool"):
        raise EnvironmentContractError("info['role'] is neither user nor tool")
    for name, value in (("terminated", terminated), ("truncated", truncated)):
        if not isinstance(value, bool | np.bool_):
            raise EnvironmentContractError(f"{name} is {value!r}, neither True nor False")
    if not isinstance(success := info.get("success"), bool | np.bool_ | None):
        raise EnvironmentContractError(f"info['success'] is {success!r}, neither True nor False")


def _take_step(
    env: ForkableEnv[Any] | None,
    prototype: ForkableEnv[Any],
    action: str,
    *,
    start_from: Snapshot | None,
    noise: int,
) -> _Step:
    """Runs in a worker thread: one environment step, and the state it leads to. Without `env` in a new fork."""
    env = env or prototype.fork()
    if start_from is not None:
        env.restore(start_from, seed=noise)
    observation, reward, terminated, truncated, info = env.step(action)
    _check_answer(observation, reward, terminated, truncated, info)
    snapshot = None
    if not (terminated or truncated):
        with contextlib.suppress(IrreversibleError):  # the rollout goes on; the node is no anchor
            snapshot = env.snapshot()
    status: Status = "done" if terminated else "truncated" if truncated else "running"
    success = info.get("success")
    return _Step(
        env=env,
        observation=observation,
        role=info["role"],
        reward=float(reward),
        status=status,
        snapshot=snapshot,
        state_key=env.state_key(),
        format_error=bool(info.get("format_error", False)),
        success=None if success is None else bool(success),
    )
