"""What a step's pool and the evaluations between steps follow from, on a table; and what the metrics count."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.trees import add, add_rollout, prompt_tree, star
from trace_gym.config import load_config
from trace_gym.errors import ConfigError
from trace_gym.observer import Silent
from trace_gym.runs import RunFolder
from trace_gym.train import train

RELAY = (
    "env.id=trace_gym/Relay-v0",
    "env.options={kinds: 6}",
    "policy.path=tabular",
    "deterministic=true",
    "log.tensorboard=false",
    "log.trees_every_steps=0",
    "eval.tasks=4",
    "eval.greedy=false",
    "rollout.prompts_per_step=3",
    "algorithm.group=4",
)


def run(out: Path, *more: str, resume: RunFolder | None = None, stop: Any = lambda: False) -> RunFolder:
    return train(load_config(None, [*RELAY, f"out={out}", *more]), Silent(), resume=resume, stop=stop)


def test_evaluations_come_when_the_tokens_pass_a_multiple(tmp_path: Path) -> None:
    done = run(tmp_path, "budget.steps=6", "eval.every_tokens=150")
    tokens = [0, *(int(row["policy_tokens"]) for row in done.metrics())]
    crossed = [step for step in range(1, 7) if tokens[step] // 150 > tokens[step - 1] // 150]
    assert 1 <= len(crossed) < 6 and any(tokens[s] % 150 for s in crossed)
    assert [int(row["step"]) for row in done.evals()] == sorted({0, *crossed, 6})
    assert [int(row["policy_tokens"]) for row in done.evals()] == [
        tokens[s] for s in sorted({0, *crossed, 6})
    ]


def test_a_resumed_run_repeats_no_evaluation(tmp_path: Path) -> None:
    more = ("budget.steps=4", "eval.every_tokens=60", "log.checkpoint_every_steps=2")
    whole = run(tmp_path / "whole", *more)
    asked = iter([False, False, True])
    cut = run(tmp_path / "cut", *more, stop=lambda: next(asked))
    again = run(tmp_path / "cut", *more, resume=RunFolder.open(cut.path))
    steps = [int(row["step"]) for row in again.evals()]
    assert len(set(steps)) == len(steps)
    np.testing.assert_equal(again.evals(), whole.evals())


@pytest.mark.parametrize(("pool", "trees"), [(0, 3), (5, 5)])
def test_the_algorithms_pool_goes_before_prompts_per_step(tmp_path: Path, pool: int, trees: int) -> None:
    (row,) = run(tmp_path, "budget.steps=1", "eval.tasks=0", f"algorithm.pool={pool}").metrics()
    assert row["prompts"] == trees and row["rollouts"] == 4 * trees


def test_prompts_are_those_that_rollouts_were_spent_on(tmp_path: Path) -> None:
    words = (
        "algorithm={name: trace, predictor: constant, pool: 9, rollouts: 6, group: 2, prefix_stage: 'off'}"
    )
    settings = [w for w in RELAY if not w.startswith("algorithm")]
    config = load_config(None, [*settings, f"out={tmp_path}", "budget.steps=1", "eval.tasks=0", words])
    (row,) = train(config, Silent()).metrics()
    assert row["prompts"] == 3 and row["rollouts"] == 6 and 0 <= float(row["mixed_anchors"]) <= 3


def test_a_negative_pool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pool"):
        run(tmp_path, "budget.steps=1", "algorithm.pool=-1")


def test_mixed_anchors_are_nodes_whose_draws_differ_in_value() -> None:
    assert prompt_tree().mixed_anchors() == 0
    assert star([1.0, 0.0]).mixed_anchors() == 1 and star([1.0, 1.0]).mixed_anchors() == 0
    lost = star([1.0])
    add(lost, 0, reward=float("nan"), status="failed")
    assert lost.mixed_anchors() == 0  # not scored is not a failure
    tree = prompt_tree()
    anchors = [tree.path(add_rollout(tree, 0, 2, reward=0.0))[1] for _ in range(2)]
    add_rollout(tree, anchors[0], 1, reward=1.0)
    assert tree.mixed_anchors() == 2  # the prompt's draws are worth 1/2 and 0
    add_rollout(tree, anchors[1], 1, reward=1.0)
    assert tree.mixed_anchors() == 2  # the anchors; the prompt's draws are both worth 1/2


def test_the_measurement_before_training_can_be_left_out(tmp_path: Path) -> None:
    with_it = run(tmp_path, "name=a", "budget.steps=1")
    without = run(tmp_path, "name=b", "budget.steps=1", "eval.at_start=false")
    assert [row["step"] for row in with_it.evals()] == [0, 1]
    assert without.evals() == with_it.evals()[1:]  # and it changes nothing else
