"""Parts of training and evaluation one at a time: temperature, the KL term's reference, pools, evaluation tasks."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.walk import RENDERER, WalkEnv, random_walk, walker
from tests.test_train import alternating
from trace_gym.actor import Actor
from trace_gym.algorithm import RunContext
from trace_gym.engine import Request, ScriptedEngine
from trace_gym.engines.transformers import TransformersEngine
from trace_gym.evaluate import evaluate, evaluate_policy
from trace_gym.observer import Silent
from trace_gym.plugins import make_env
from trace_gym.policy import Policy
from trace_gym.rollout import RolloutSettings
from trace_gym.train import _pool, train

QUICK = (
    "eval.tasks=0",
    "rollout.prompts_per_step=2",
    "rollout.max_tokens=16",
    "log.checkpoint_every_steps=0",
)

# ---- the trainer's view of the policy -------------------------------------------------------------------------------


def test_the_trainer_reads_log_probs_at_the_sampling_temperature(policy: Path, tmp_path: Path) -> None:
    more = ("rollout.temperature=0.7", "budget.steps=2")
    rows = train(alternating(policy, tmp_path, *QUICK, *more), Silent()).metrics()
    assert len(rows) == 2 and all(float(row["grad_norm"]) > 0 for row in rows)
    assert all(float(row["mismatch"]) < 1e-4 for row in rows)


def test_the_kl_term_is_measured_from_the_policy_at_the_start(policy: Path, tmp_path: Path) -> None:
    """With one mini-batch the metric is of the weights before the step: 0 at first, then what the steps so far moved.

    The temperature is not 1, for the reference has to read its log-probs at the same one.
    """
    more = ("algorithm.kl=0.1", "optim.lr=0.01", "optim.warmup_steps=0", "rollout.temperature=0.7")
    rows = train(alternating(policy, tmp_path, *QUICK, *more), Silent()).metrics()
    first, *later = (float(row["kl"]) for row in rows)
    assert abs(first) < 1e-6
    assert len(later) == 2 and all(kl > 1e-3 for kl in later)


class Listening(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_run_has_the_same_numbers_in_both_layouts(policy: Path, tmp_path: Path) -> None:
    found = []
    for layout in ("auto", "flat"):
        told = Listening()
        more = (f"policy.layout={layout}", "budget.steps=2", "optim.minibatches=2")
        found.append(train(alternating(policy, tmp_path / layout, *QUICK, *more), told).metrics())
        assert not any("layout" in note for note in told.notes)
    for one, other in zip(*found, strict=True):
        for name in ("loss", "grad_norm", "clip_fraction", "mismatch", "success"):
            assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-4, abs=1e-6), name


def test_a_policy_that_cannot_be_packed_is_told(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Listening()
    monkeypatch.setattr(Policy, "_not_packed_right", lambda self: "it is made of wood")
    train(alternating(policy, tmp_path, *QUICK, "budget.steps=1"), told)
    assert sum("flat, not packed: it is made of wood" in note for note in told.notes) == 1


# ---- pools ----------------------------------------------------------------------------------------------------------


def context(tasks: int, seed: int = 0) -> RunContext:
    return RunContext(seed=seed, tasks=[f"task {i}" for i in range(tasks)])


def epoch(run: RunContext, size: int, steps: Sequence[int]) -> list[str]:
    pools = [_pool(run, size, step) for step in steps]
    assert all(len(set(pool)) == len(pool) == size for pool in pools)
    return [task for pool in pools for task in pool]


def test_every_epoch_covers_the_split_once_in_an_order_of_its_own() -> None:
    run = context(24)
    first, second = epoch(run, 4, range(6)), epoch(run, 4, range(6, 12))
    assert sorted(first) == sorted(second) == sorted(run.tasks)
    assert first != second and list(run.tasks) not in (first, second)


def test_another_seed_pools_in_another_order() -> None:
    assert epoch(context(24, seed=1), 4, range(6)) != epoch(context(24), 4, range(6))
    assert epoch(context(24), 4, range(6)) == epoch(context(24), 4, range(6))


def test_a_split_that_pools_do_not_divide_leaves_other_tasks_out_each_epoch() -> None:
    run = context(10)
    left_out = {frozenset(run.tasks) - set(epoch(run, 4, (2 * e, 2 * e + 1))) for e in range(6)}
    assert all(len(tasks) == 2 for tasks in left_out) and len(left_out) > 1


def test_a_pool_larger_than_the_split_is_the_split() -> None:
    run = context(3)
    assert all(sorted(_pool(run, 8, step)) == sorted(run.tasks) for step in range(4))


# ---- evaluation -----------------------------------------------------------------------------------------------------


class Thermometer(ScriptedEngine):
    """Keeps the temperatures it was asked for."""

    def __init__(self) -> None:
        super().__init__(walker(random_walk))
        self.temperatures: list[float] = []

    def submit(self, request: Request) -> int:
        self.temperatures.append(request.temperature)
        return super().submit(request)


@pytest.mark.parametrize(("greedy", "temperature", "rollouts"), [(True, 0.0, 3), (False, 0.7, 6)])
def test_greedy_evaluation_asks_for_the_likeliest_tokens(
    greedy: bool, temperature: float, rollouts: int
) -> None:
    engine, env = Thermometer(), WalkEnv()
    result = evaluate(
        env,
        env.tasks("test"),
        engine=engine,
        renderer=RENDERER,
        settings=RolloutSettings(max_tokens=16, temperature=0.7),
        draws=2,
        greedy=greedy,
    )
    assert set(engine.temperatures) == {temperature}
    assert result.rollouts == rollouts and len(engine.temperatures) >= rollouts


def test_a_run_evaluates_at_its_temperature_and_greedily(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    submit = TransformersEngine.submit

    def spy(self: TransformersEngine, request: Request) -> int:
        asked.append(request.temperature)
        return submit(self, request)

    monkeypatch.setattr(TransformersEngine, "submit", spy)
    config = alternating(policy, tmp_path, "rollout.temperature=0.7", "eval.tasks=4")
    for greedy, temperature in ((False, 0.7), (True, 0.0)):
        asked.clear()
        assert evaluate_policy(config, greedy=greedy).rollouts == 4
        assert set(asked) == {temperature}


def kinds(tasks: Sequence[str]) -> Counter[str]:
    """How many tasks there are of each family, of each depth, and of each family at each depth."""
    parts = [task.split("/") for task in tasks]
    return Counter(kind for family, _, depth, _ in parts for kind in (family, depth, f"{family} {depth}"))


def math_actor() -> Actor:
    nothing: Any = None  # the tasks are asked of the environment alone
    return Actor(
        learner=nothing,
        tokenizer=nothing,
        renderer=RENDERER,
        engine=ScriptedEngine(walker(random_walk)),
        env=make_env("trace_gym/Math-v0", {"difficulty": "1-4"}),
        settings=RolloutSettings(),
    )


@pytest.mark.parametrize("count", [16, 64, 128, 256])
def test_evaluation_tasks_hold_every_kind_as_the_split_does(count: int) -> None:
    """Within three standard errors of a draw without replacement: a fair one passes, a regular stride through a regular
    list does not."""
    actor = math_actor()
    split = actor.env.tasks("test")
    chosen = actor.eval_tasks("test", count)
    assert len(set(chosen)) == len(chosen) == count and set(chosen) <= set(split)
    assert list(chosen) == list(actor.eval_tasks("test", count))
    there, here = kinds(split), kinds(chosen)
    unseen = (len(split) - count) / (len(split) - 1)
    for kind, number in there.items():
        share = number / len(split)
        error = float(np.sqrt(share * (1 - share) / count * unseen))
        assert abs(here[kind] / count - share) < 3 * error, kind


def test_a_count_beyond_the_split_is_the_split() -> None:
    actor = math_actor()
    assert list(actor.eval_tasks("test", 10_000)) == list(actor.env.tasks("test"))
