"""Injected faults: each ends its own leaf with a reason, never with a reward of 0, and the ledger still adds up."""

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.walk import RENDERER, Walk, WalkEnv, random_walk, walker
from tests.test_rollout import ForkMidway, Star, grow, unscored
from trace_gym.algorithm import RunContext, StepContext
from trace_gym.engine import Completion, ScriptedEngine
from trace_gym.env import Turn
from trace_gym.errors import EngineError, EnvironmentContractError
from trace_gym.evaluate import Evaluation, evaluate
from trace_gym.ledger import Budget, Cost, Ledger
from trace_gym.observer import Silent
from trace_gym.render import PlainRenderer
from trace_gym.rollout import RolloutSettings, grow_trees, plant_trees

QUICK = RolloutSettings(max_tokens=16, threads=2, env_deadline_s=0.2, turn_deadline_s=0.3)


def healthy(ctx: StepContext, ledger: Ledger) -> None:
    """What must hold after any fault."""
    total = Cost()
    for tree in ctx.trees.values():
        total = total + tree.cost()
        for node in tree.nodes:
            if node.status in ("failed", "censored"):
                assert np.isnan(node.reward) and node.reason
        assert all(np.isfinite(outcome) for outcome in tree.outcomes())
    assert total == ledger.total == ctx.purse.spent and ctx.purse.reserved == Cost()


class Odd(WalkEnv):
    """Answers the action `-` in a broken way."""

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        super().__init__(slip=0.0)
        self.answer = answer

    def step(self, action: str) -> Any:
        result = super().step(action)
        return self.answer(result) if action == "-" else result


def hang(result: Any) -> Any:
    time.sleep(0.6)
    return result


def boom(result: Any) -> Any:
    raise RuntimeError("the ground opened")


def leave(result: Any) -> Any:
    raise SystemExit(3)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def unspeakable(result: Any) -> Any:
    raise Unspeakable


ENVIRONMENT_FAULTS = {
    "raises": (boom, "failed", "RuntimeError: the ground opened"),
    "asks the process to exit": (leave, "failed", "SystemExit"),
    "hangs": (hang, "censored", "no answer within 0.2 s"),
    "returns nothing": (lambda r: None, "failed", "TypeError"),
    "returns four values": (lambda r: r[:4], "failed", "ValueError"),
    "observation is bytes": (lambda r: (b"x", *r[1:]), "failed", "the observation is a bytes"),
    "reward is nan": (lambda r: (r[0], float("nan"), *r[2:]), "failed", "the reward is nan"),
    "reward is text": (lambda r: (r[0], "1", *r[2:]), "failed", "the reward is '1'"),
    "info is missing": (lambda r: (*r[:4], None), "failed", "info"),
    "info has no role": (lambda r: (*r[:4], {}), "failed", "role"),
    "terminated is text": (lambda r: (*r[:2], "False", *r[3:]), "failed", "terminated is 'False'"),
    "success is text": (lambda r: (*r[:4], r[4] | {"success": "no"}), "failed", "info['success'] is 'no'"),
    "the error cannot be told": (unspeakable, "failed", "Unspeakable: no message"),
}


@pytest.mark.parametrize("fault", ENVIRONMENT_FAULTS)
def test_environment(fault: str) -> None:
    answer, status, reason = ENVIRONMENT_FAULTS[fault]
    ledger = Ledger()
    engine = ScriptedEngine(
        walker(lambda rng: "-" if rng.random() < 0.15 else random_walk(rng).replace("-", "+"))
    )
    ctx = grow(Star(), engine, env=Odd(answer), settings=QUICK, ledger=ledger, seed=1)
    broken = unscored(ctx.trees)
    assert broken and {node.status for node in broken} == {status}
    assert all(reason in node.reason for node in broken)
    assert any(tree.outcomes() for tree in ctx.trees.values())
    healthy(ctx, ledger)


@pytest.mark.parametrize(
    ("fault", "status", "reason"), [(boom, "failed", "opened"), (hang, "censored", "no answer")]
)
def test_forks_that_break_or_hang(fault: Callable[[Any], Any], status: str, reason: str) -> None:
    """A fork may start a process or replay an episode somewhere else: it is a call like any other."""

    class Unforkable(WalkEnv):
        forks = 0

        def fork(self) -> Any:
            self.forks += 1
            return fault(super().fork()) if self.forks % 3 == 0 else super().fork()

    ledger = Ledger()
    engine = ScriptedEngine(walker(lambda rng: "stop" if rng.random() < 0.3 else "+"))
    ctx = grow(Star(), engine, env=Unforkable(), settings=QUICK, ledger=ledger)
    broken = unscored(ctx.trees)
    assert broken and all(node.status == status and reason in node.reason for node in broken)
    assert any(tree.outcomes() for tree in ctx.trees.values())
    healthy(ctx, ledger)


def test_an_instance_that_broke_is_not_used_again() -> None:
    class Fragile(WalkEnv):
        broken = False

        def step(self, action: str) -> Any:
            if self.broken:
                used_again.append(action)
            try:
                return super().step(action)
            except RuntimeError:
                self.broken = True
                raise

    used_again: list[str] = []
    engine = ScriptedEngine(walker(lambda rng: "raise" if rng.random() < 0.2 else "+"), burst=1)
    ctx = grow(ForkMidway(), engine, env=Fragile())
    assert len(unscored(ctx.trees)) > 2 and not used_again


class Closed(WalkEnv):
    """Some tasks cannot begin."""

    closed: tuple[str, ...] = ("2",)

    def begin(self, task_id: str, rng: np.random.Generator) -> Any:
        if task_id in self.closed:
            raise OSError("the gate is shut")
        return super().begin(task_id, rng)


def test_a_task_that_cannot_begin_is_left_out_and_told() -> None:
    ledger = Ledger()
    ctx = grow(Star(), ScriptedEngine(walker(random_walk)), env=Closed(), ledger=ledger)
    assert ctx.pool == ("1", "3") and ctx.unplanted == {"2": "environment: OSError: the gate is shut"}
    assert not unscored(ctx.trees) and all(len(tree.outcomes()) == 4 for tree in ctx.trees.values())
    healthy(ctx, ledger)


def test_an_evaluation_counts_what_could_not_begin_as_unscored() -> None:
    notes: list[str] = []

    class Listening(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    def measure(env: WalkEnv) -> Evaluation:
        engine = ScriptedEngine(walker(lambda rng: "stop"))
        return evaluate(
            env,
            ("1", "2", "3"),
            engine=engine,
            renderer=RENDERER,
            settings=QUICK,
            draws=2,
            observer=Listening(),
        )

    whole, part = measure(WalkEnv()), measure(Closed())
    assert (whole.tasks, whole.rollouts, whole.unscored) == (3, 6, 0)
    assert (part.tasks, part.rollouts, part.unscored) == (3, 6, 2)
    assert notes == ["task 2 left out: environment: OSError: the gate is shut"]


def test_where_no_task_can_begin_or_the_first_hangs_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class AllClosed(Closed):
        closed = ("1", "2", "3")

    with pytest.raises(EnvironmentContractError, match=r"^no task could begin \(environment: OSError"):
        grow(Star(), env=AllClosed())

    class Slow(WalkEnv):
        def begin(self, task_id: str, rng: np.random.Generator) -> Any:
            return hang(super().begin(task_id, rng))

    monkeypatch.setattr("trace_gym.planting.RESET_DEADLINE_S", 0.1)
    with pytest.raises(EnvironmentContractError, match=r"reset of task '1' gave no answer within 0.1 s"):
        grow(Star(), env=Slow())


class Mute(PlainRenderer):
    """Cannot show what holds `at 2`, nor read what holds `?`."""

    def delta(self, observation: str, *, role: str, closed: bool) -> Any:
        if "at 2" in observation:
            raise UnicodeError("no such letter")
        return super().delta(observation, role=role, closed=closed)

    def action(self, tokens: Any) -> str:
        if "?" in super().action(tokens):
            raise OverflowError("no such token")
        return super().action(tokens)


def test_text_that_can_be_neither_shown_nor_read() -> None:
    env, ledger, run = WalkEnv(), Ledger(), RunContext(seed=0, tasks=("1", "2", "3"))
    ctx = plant_trees(env, run.tasks, Mute(), run, 0, Budget())
    grow_trees(
        Star(), ctx, engine=ScriptedEngine(walker(random_walk)), renderer=Mute(), env=env, settings=QUICK,
        ledger=ledger,
    )  # fmt: skip
    reasons = {node.reason for node in unscored(ctx.trees)}
    assert reasons == {
        "environment: its answer cannot be shown: UnicodeError: no such letter",
        "engine: the engine returned tokens that cannot be read (OverflowError: no such token)",
    }
    healthy(ctx, ledger)


def test_a_snapshot_that_cannot_be_taken() -> None:
    class Unsnappable(WalkEnv):
        def snapshot(self) -> Any:
            if self._episode().turn > 0:
                raise ValueError("the state is not plain data")
            return super().snapshot()

    ledger = Ledger()
    ctx = grow(Star(), ScriptedEngine(walker(lambda rng: "+")), env=Unsnappable(), ledger=ledger)
    assert all("not plain data" in node.reason for node in unscored(ctx.trees))
    assert len(unscored(ctx.trees)) == 12
    healthy(ctx, ledger)


ENGINE_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "error": ({"finish": "error", "error": "out of memory"}, "engine: out of memory"),
    "aborted by the engine": ({"finish": "aborted"}, "aborted"),
    "no tokens": ({"tokens": np.zeros(0, np.int32), "logprobs": np.zeros(0, np.float32)}, "no token"),
    "log-probs missing": ({"logprobs": np.zeros(0, np.float32)}, "with 0 log-probs"),
    "more tokens than asked for": (
        {"tokens": np.full(17, 43, np.int32), "logprobs": np.zeros(17, np.float32)},
        "17 tokens where at most 16",
    ),
    "no such token": ({"tokens": np.full(2, -1, np.int32), "logprobs": np.zeros(2, np.float32)}, "below 0"),
    "log-prob nan": ({"logprobs": np.full(2, np.nan, np.float32)}, "not finite"),
}


@pytest.mark.parametrize("fault", ENGINE_FAULTS)
def test_engine_completion(fault: str) -> None:
    changes, reason = ENGINE_FAULTS[fault]

    class Flaky(ScriptedEngine):
        def _complete(self, request_id: int) -> Completion:
            done = super()._complete(request_id)
            return dataclasses.replace(done, **changes) if request_id % 5 == 2 else done

    ledger = Ledger()
    ctx = grow(Star(), Flaky(walker(lambda rng: "+" if rng.random() < 0.7 else "!")), ledger=ledger)
    broken = unscored(ctx.trees)
    assert broken and all(reason in node.reason for node in broken)
    healthy(ctx, ledger)


def test_an_engine_that_answers_what_nobody_asked() -> None:
    class Chatty(ScriptedEngine):
        def poll(self, timeout_s: float) -> list[Completion]:
            done = super().poll(timeout_s)
            return [*done, *(dataclasses.replace(c, request_id=c.request_id + 10_000) for c in done), *done]

    ledger = Ledger()
    ctx = grow(Star(), Chatty(walker(random_walk)), ledger=ledger)
    assert not unscored(ctx.trees)
    healthy(ctx, ledger)


@pytest.mark.parametrize("error", [EngineError, ConnectionError])
@pytest.mark.parametrize("method", ["submit", "poll"])
def test_an_engine_that_dies_in_the_middle(method: str, error: type[Exception]) -> None:
    class Dying(ScriptedEngine):
        calls = 0

        def _count(self) -> None:
            self.calls += 1
            if self.calls > 9:
                raise error("the engine's process is gone")

        def submit(self, request: Any) -> int:
            if method == "submit":
                self._count()
            return super().submit(request)

        def poll(self, timeout_s: float) -> list[Completion]:
            if method == "poll":
                self._count()
            return super().poll(timeout_s)

    ledger = Ledger()
    ctx = grow(Star(), Dying(walker(random_walk), burst=1), ledger=ledger)
    assert unscored(ctx.trees) and all("process is gone" in node.reason for node in unscored(ctx.trees))
    healthy(ctx, ledger)


def test_an_engine_that_cannot_be_polled_is_asked_for_nothing_more() -> None:
    class Slow(WalkEnv):
        def advance(self, state: Walk, action: str, rng: np.random.Generator) -> Turn[Walk]:
            time.sleep(0.05)  # answers when the engine is gone
            return super().advance(state, action, rng)

    class Gone(ScriptedEngine):
        polls = asked_in_vain = 0

        def submit(self, request: Any) -> int:
            self.asked_in_vain += self.polls > 1
            return super().submit(request)

        def poll(self, timeout_s: float) -> list[Completion]:
            self.polls += 1
            if self.polls > 1:
                raise EngineError("gone")
            return super().poll(timeout_s)

    ledger = Ledger()
    engine = Gone(walker(lambda rng: "+"), burst=4)
    ctx = grow(Star(), engine, env=Slow(), ledger=ledger)
    assert len(unscored(ctx.trees)) == 12 and all(
        node.reason == "engine: gone" for node in unscored(ctx.trees)
    )
    assert engine.asked_in_vain == 0 and engine.polls == 2
    healthy(ctx, ledger)


def test_an_engine_that_falls_silent() -> None:
    class Quiet(ScriptedEngine):
        def poll(self, timeout_s: float) -> list[Completion]:
            time.sleep(min(timeout_s, 0.01))
            return []

        def abort(self, request_id: int) -> None:
            raise ConnectionError("nobody is there")

    ledger = Ledger()
    start = time.monotonic()
    ctx = grow(Star(), Quiet(walker(random_walk)), settings=QUICK, ledger=ledger)
    assert time.monotonic() - start < 5
    assert {node.status for node in unscored(ctx.trees)} == {"censored"}
    healthy(ctx, ledger)


def test_hanging_environments_do_not_hold_up_the_others_and_leave_no_thread_behind() -> None:
    before = threading.active_count()
    engine = ScriptedEngine(walker(lambda rng: "hang" if rng.random() < 0.2 else random_walk(rng)))
    ledger = Ledger()
    ctx = grow(Star(), engine, settings=QUICK, ledger=ledger)
    assert unscored(ctx.trees) and any(tree.outcomes() for tree in ctx.trees.values())
    healthy(ctx, ledger)
    end = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_turns_are_still_made_by_the_environment_itself() -> None:
    """Guards the helper above: without a fault the odd environment is an ordinary one."""
    env = Odd(lambda r: r)
    env.reset(seed=0, options={"task": "1"})
    assert env.step("-")[0] == "at -1"
    assert isinstance(Turn.go(Walk(0, 1), ""), Turn)
