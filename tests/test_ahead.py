"""Rollouts ahead of the update: how old a turn may be, who has learned what by then, and that the ledger still adds up."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from tests.test_train import AlternateSigns, alternating
from trace_gym.actor import build_actor
from trace_gym.ahead import Ahead, Progress
from trace_gym.algorithm import Branch, Credit, Metrics, RunContext, StepContext
from trace_gym.engines.transformers import TransformersEngine
from trace_gym.errors import ConfigError
from trace_gym.ledger import Cost, Ledger
from trace_gym.observer import Silent
from trace_gym.runs import RunFolder
from trace_gym.train import train

AHEAD = ("rollout.ahead=1", "budget.steps=5", "eval.tasks=0", "log.checkpoint_every_steps=3")


@dataclass(kw_only=True)
class Diary(AlternateSigns):
    """Writes down what it is asked, and in which step."""

    asked: ClassVar[list[tuple[str, int]]] = []

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        if not ctx.idle:
            self.asked.append(("plan", ctx.step))
        return super().plan(ctx)

    def observe(self, ctx: StepContext) -> Metrics:
        self.asked.append(("observe", ctx.step))
        return {}

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        self.asked.append(("credit", ctx.step))
        return super().credit(ctx)


class Seen(Silent):
    """Which step's trees it was shown last before each step's row."""

    shown: ClassVar[list[int]] = []
    now = -1

    def progress(self, ctx: StepContext, ledger: Ledger) -> None:
        self.now = ctx.step

    def step(self, metrics: Mapping[str, float]) -> None:
        self.shown.append(self.now)


@pytest.fixture(scope="module")
def run(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Five steps, of which the second, third and fifth are grown ahead: a checkpoint comes before the fourth."""
    Diary.asked.clear()
    Seen.shown.clear()
    own = f"algorithm={{name: '{__name__}:Diary'}}"
    return train(alternating(policy, tmp_path_factory.mktemp("ahead"), *AHEAD, "optim.lr=1e-3", own), Seen())


def test_turns_are_one_version_old_at_most_and_none_at_a_checkpoint(run: RunFolder) -> None:
    versions = [
        {node.policy_version for tree in run.load_trees(step) for node in tree.nodes if node.n_action}
        for step in range(5)
    ]
    assert versions == [{0}, {0}, {1}, {3}, {3}]
    assert [row["staleness"] for row in run.metrics()] == [0.0, 1.0, 1.0, 0.0, 1.0]


def test_the_engine_keeps_its_weights_while_the_policy_learns(run: RunFolder) -> None:
    """Where nothing is old the trainer agrees with the engine to rounding; where it is, it must not."""
    mismatch = [float(row["mismatch"]) for row in run.metrics()]
    assert mismatch[0] < 1e-4 and mismatch[3] < 1e-4
    assert min(mismatch[1], mismatch[2], mismatch[4]) > 1e-3


def test_the_engine_shares_no_weight_with_what_learns(policy: Path, tmp_path: Path) -> None:
    actor = build_actor(alternating(policy, tmp_path, *AHEAD), learns=True)
    assert isinstance(actor.engine, TransformersEngine)
    learns = {parameter.data_ptr() for parameter in actor.model.parameters()}
    assert learns.isdisjoint(parameter.data_ptr() for parameter in actor.engine._model.parameters())


def test_an_algorithm_has_learned_from_all_earlier_steps_when_it_plans(run: RunFolder) -> None:
    order = [(what, step) for step in range(5) for what in ("plan", "observe", "credit")]
    assert Diary.asked == order


def test_whoever_watches_is_shown_the_trees_of_every_step(run: RunFolder) -> None:
    assert Seen.shown == [0, 1, 2, 3, 4]


def test_the_ledger_adds_up(run: RunFolder) -> None:
    tokens = [sum(node.n_action for tree in run.load_trees(step) for node in tree.nodes) for step in range(5)]
    assert [row["policy_tokens"] for row in run.metrics()] == np.cumsum(tokens).tolist()


def test_a_token_budget_is_kept(policy: Path, tmp_path: Path) -> None:
    config = alternating(policy, tmp_path, *AHEAD, "budget.steps=null", "budget.policy_tokens=3000")
    assert 1500 < float(train(config, Silent()).metrics()[-1]["policy_tokens"]) <= 3000


def test_what_cannot_be_had_together_is_refused(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be deterministic"):
        alternating(policy, tmp_path, *AHEAD, "deterministic=true")
    with pytest.raises(ConfigError, match=r"engine\.sleep"):
        alternating(policy, tmp_path, *AHEAD, "engine.sleep=true")
    with pytest.raises(ConfigError, match="oracle"):
        train(alternating(policy, tmp_path, *AHEAD, "oracle.kind=sampled"), Silent())
    with pytest.raises(ConfigError, match="mismatch_cap"):
        train(alternating(policy, tmp_path, *AHEAD, "algorithm.mismatch_cap=0"), Silent())


# ---- the thread -----------------------------------------------------------------------------------------------------


def _context() -> StepContext:
    return StepContext(run=RunContext(seed=0, tasks=()), step=0, trees={})


def test_the_threads_ledger_joins_only_when_the_trees_are_taken() -> None:
    ahead, ledger = Ahead(), Ledger()
    assert ahead.take(ledger) is None

    def grow(own: Ledger, progress: Progress) -> StepContext:
        own.add(Cost(policy_tokens=7))
        own.add_seconds("engine", 2.0)
        return _context()

    ahead.start(grow)
    ahead.wait()
    assert ledger.total == Cost()
    assert ahead.take(ledger) is not None and ahead.take(ledger) is None
    assert ledger.total == Cost(policy_tokens=7) and ledger.seconds == {"engine": 2.0}
    ahead.close()


def test_what_the_thread_raises_is_raised_where_its_trees_are_taken() -> None:
    ahead, ledger = Ahead(), Ledger()

    def grow(own: Ledger, progress: Progress) -> StepContext:
        own.add(Cost(policy_tokens=7))
        raise ConfigError("no such task")

    ahead.start(grow)
    with pytest.raises(ConfigError, match="no such task"):
        ahead.take(ledger)
    assert ledger.total == Cost()
    ahead.close()


def test_closing_gives_up_what_is_growing() -> None:
    ahead, ended = Ahead(), threading.Event()

    def grow(own: Ledger, progress: Progress) -> StepContext:
        try:
            while True:
                progress(_context())
                time.sleep(0.01)
        finally:
            ended.set()

    ahead.start(grow)
    start = time.monotonic()
    ahead.close()
    assert ended.is_set() and time.monotonic() - start < 5
