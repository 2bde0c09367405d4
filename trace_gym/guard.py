"""Calls of an engine and of environments, which may be anybody's: each gives an answer, or the `Ending` of its rollout.

`Turns` asks the engine for turns, `Steps` lets environments answer them in worker threads; both remember for whom. Whatever
raises, or answers what can enter no record, ends its rollout as `failed`; what gives no answer in time, as `censored`.

Invariants. No error of theirs leaves this module, and what it hands on is whole: finite numbers, texts, tokens that can be
read. Nobody waits past a deadline: an overdue turn is aborted, and what was sampled of it comes back; an overdue step is
abandoned with its thread and its instance. An instance that raised is not used again.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np

from trace_gym.engine import Completion, Engine, IntArray, Request
from trace_gym.env import ForkableEnv, Snapshot
from trace_gym.errors import EnvironmentContractError, IrreversibleError, TraceGymError
from trace_gym.ledger import Ledger
from trace_gym.render import Renderer
from trace_gym.tree import NO_LOGPROBS, NO_TOKENS, Status
from trace_gym.workers import Workers

__all__ = ["Ending", "Sampled", "Step", "Stepped", "Steps", "Turns", "said", "show"]

ABORT_GRACE_S = 1.0  # how long an engine may take to give back a turn that was aborted

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ending:
    """How a rollout ends without an answer of its environment."""

    status: Status
    reason: str


def said(error: BaseException | None) -> str:
    """An exception of somebody else's code in a line; ours say all in their message."""
    try:
        text = " ".join(str(error).split())[:500]
    except Exception:  # not even that works
        text = "no message"
    return text if isinstance(error, TraceGymError) else f"{type(error).__name__}: {text}"


# ---- the engine -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sampled:
    """What came of a turn. With an `ending` it goes no further, though tokens that came with it are kept."""

    completion: Completion | None  # None: nothing came back
    action: str  # its text
    ending: Ending | None = None


@dataclass(slots=True, eq=False)
class _Asked(Generic[T]):
    owner: T
    since: float
    late: bool = False  # it overran and was aborted


class Turns(Generic[T]):
    """Turns that the engine was asked for, each with its owner."""

    def __init__(
        self, engine: Engine, renderer: Renderer, *, max_tokens: int, deadline_s: float, ledger: Ledger
    ) -> None:
        self._engine, self._renderer, self._ledger = engine, renderer, ledger
        self._max_tokens, self._deadline_s = max_tokens, deadline_s
        self._overrun = Ending("censored", f"engine: no turn within {deadline_s:g} s")
        self._asked: dict[int, _Asked[T]] = {}  # by request id
        self._lost: Ending | None = None  # the engine is

    def __len__(self) -> int:
        """Turns that have not come back yet."""
        return len(self._asked)

    def ask(self, owner: T, request: Request) -> Ending | None:
        """Ask for a turn; an ending where the engine does not take it."""
        if self._lost:
            return self._lost
        since = time.monotonic()
        try:
            with self._ledger.timed("engine"):
                request_id = self._engine.submit(request)
        except Exception as error:  # an engine may be anybody's, and far away
            return Ending("failed", f"engine: {said(error)}")
        self._asked[request_id] = _Asked(owner, since)
        return None

    def take(self, timeout_s: float) -> list[tuple[T, Sampled]]:
        """What has come back; waits at most about `timeout_s` for the first. An engine that cannot be polled is lost, and all
        turns with it."""
        if not self._asked:
            return []
        try:
            with self._ledger.timed("engine"):
                completions = self._engine.poll(timeout_s)
        except Exception as error:
            self._lost = Ending("failed", f"engine: {said(error)}")
            lost = [(asked.owner, Sampled(None, "", self._lost)) for asked in self._asked.values()]
            self._asked.clear()
            return lost
        return [
            (asked.owner, self._read(completion, late=asked.late))
            for completion in completions
            if (asked := self._asked.pop(completion.request_id, None))  # else it was given up at its deadline
        ]

    def overdue(self) -> list[tuple[T, Ending]]:
        """Turns that are given up. One past its deadline is first aborted: what was sampled comes back, is billed and kept."""
        now = time.monotonic()
        given_up = []
        for request_id, asked in list(self._asked.items()):
            if not asked.late and now - asked.since > self._deadline_s:
                asked.late = True
                self._abort(request_id)
            elif now - asked.since > self._deadline_s + ABORT_GRACE_S:
                del self._asked[request_id]
                given_up.append((asked.owner, self._overrun))
        return given_up

    def close(self) -> None:
        """Leave no turn running."""
        for request_id in self._asked:
            self._abort(request_id)

    def _abort(self, request_id: int) -> None:
        with contextlib.suppress(Exception):  # an engine that cannot is found out by its next `poll`
            self._engine.abort(request_id)

    def _read(self, completion: Completion, *, late: bool) -> Sampled:
        """A completion with its text; as an error without tokens when they can neither be trained on nor read."""
        action, problem = "", _problem(completion, self._max_tokens)
        if not problem:
            try:
                action = self._renderer.action(completion.tokens)
            except Exception as error:
                problem = f"tokens that cannot be read ({said(error)})"
        if problem:
            completion = replace(
                completion,
                tokens=NO_TOKENS,
                logprobs=NO_LOGPROBS,
                finish="error",
                error=f"the engine returned {problem}",
            )
        if completion.finish not in ("error", "aborted"):
            return Sampled(completion, action)
        status: Status = "failed" if completion.finish == "error" else "censored"
        reason = f"engine: {completion.error or 'the request was aborted'}"
        return Sampled(completion, action, Ending(status, self._overrun.reason if late else reason))


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


# ---- environments ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
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


@dataclass(frozen=True, slots=True)
class Stepped(Generic[T]):
    """What came of a step that was asked for."""

    number: int  # steps are counted as they are asked for
    owner: T
    outcome: Step | Ending


class Steps(Generic[T]):
    """Environment steps on their way in worker threads, each with its owner. `prototype` is forked for new instances."""

    def __init__(
        self, prototype: ForkableEnv[Any], *, threads: int, deadline_s: float, ledger: Ledger
    ) -> None:
        self._prototype, self._deadline_s, self._ledger = prototype, deadline_s, ledger
        self._workers: Workers[Step] = Workers(threads)
        self._owners: dict[int, T] = {}  # by number
        self._count = 0
        self._spare: list[ForkableEnv[Any]] = []

    def __len__(self) -> int:
        """Steps that have not come back yet."""
        return len(self._owners)

    def ask(
        self,
        owner: T,
        action: str,
        *,
        env: ForkableEnv[Any] | None,
        start_from: Snapshot | None,
        noise: int,
    ) -> None:
        """Let `env`, else a spare or new instance, take `action` where it stands or from `start_from`, with this seed."""
        env = env or (self._spare.pop() if self._spare else None)
        work = partial(_take_step, env, self._prototype, action, start_from=start_from, noise=noise)
        self._owners[self._count] = owner
        self._workers.put(self._count, work)
        self._count += 1

    def take(self, timeout_s: float) -> list[Stepped[T]]:
        """All finished steps; waits at most `timeout_s` for the first."""
        taken: list[Stepped[T]] = []
        for done in self._workers.take(timeout_s):
            self._ledger.add_seconds("env", done.seconds)
            outcome = done.result or Ending("failed", f"environment: {said(done.error)}")
            taken.append(Stepped(done.key, self._owners.pop(done.key), outcome))
        return taken

    def overdue(self) -> list[tuple[T, Ending]]:
        """Steps that are given up, each with its thread and its instance."""
        ending = Ending("censored", f"environment: no answer within {self._deadline_s:g} s")
        return [(self._owners.pop(number), ending) for number in self._workers.overdue(self._deadline_s)]

    def give_back(self, env: ForkableEnv[Any]) -> None:
        """An instance whose rollout is over may serve another."""
        self._spare.append(env)

    def close(self) -> None:
        """Let idle threads end. Does not wait."""
        self._workers.close()


def show(renderer: Renderer, step: Step, *, closed: bool) -> IntArray | Ending:
    """The tokens that show a step's observation to the policy; none where the episode is over."""
    if step.status != "running":
        return NO_TOKENS
    try:
        return renderer.delta(step.observation, role=step.role, closed=closed)
    except Exception as error:
        return Ending("failed", f"environment: its answer cannot be shown: {said(error)}")


def _take_step(
    env: ForkableEnv[Any] | None,
    prototype: ForkableEnv[Any],
    action: str,
    *,
    start_from: Snapshot | None,
    noise: int,
) -> Step:
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
    return Step(
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
