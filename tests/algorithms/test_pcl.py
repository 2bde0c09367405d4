"""PCL opens the prompts of middling predicted difficulty, and its predictor learns from them alone."""

import numpy as np
import pytest

from tests.support.growing import credits_of, grow, sizes
from trace_gym.algorithm import RunContext
from trace_gym.algorithms.pcl import PCL
from trace_gym.algorithms.predictor import Place

ALL = "123456789"
TRUTH = dict(zip(ALL, [0.95, 0.45, 0.2, 0.52, 0.9, 0.0, 0.7, 0.1, 1.0], strict=True))


def oracle(places: list[Place]) -> list[float]:
    return [TRUTH[task] for task, _ in places]


def test_the_prompts_nearest_one_half_are_opened() -> None:
    algorithm = PCL(prompts=3, group=4, predictor="oracle", warmup_steps=0)
    ctx = grow(algorithm, pool=ALL, oracle=oracle)
    assert sizes(ctx) == [0, 4, 0, 4, 0, 0, 4, 0, 0]


def test_warm_up_takes_prompts_at_random() -> None:
    opened = set()
    for seed in range(4):
        ctx = grow(PCL(prompts=3, group=2, predictor="oracle"), pool=ALL, oracle=oracle, seed=seed, step=1)
        assert sorted(sizes(ctx)) == [0] * 6 + [2] * 3
        opened.add(tuple(sizes(ctx)))
    assert len(opened) > 1


def test_equal_predictions_are_taken_in_random_order() -> None:
    opened = {
        tuple(sizes(grow(PCL(prompts=2, group=2, predictor="constant", warmup_steps=0), pool=ALL, seed=seed)))
        for seed in range(4)
    }
    assert len(opened) > 1


def test_the_predictor_learns_what_the_groups_showed_and_a_resumed_run_knows_it() -> None:
    algorithm = PCL(prompts=2, group=4, predictor="beta", warmup_steps=0)
    ctx = grow(algorithm, pool=["3", "2"], choose=lambda rng: ["+", "stop"][int(rng.integers(2))])
    credits_of(algorithm, ctx)
    learned = algorithm._success(ctx)
    assert learned[0] > learned[1]  # the goal of 3 is where walks begin
    resumed = PCL(prompts=2, group=4, predictor="beta", warmup_steps=0)
    resumed.start(ctx.run)
    resumed.load_state_dict(algorithm.state_dict())
    np.testing.assert_array_equal(resumed._success(ctx), learned)


def test_predictions_are_judged_before_they_learn() -> None:
    algorithm = PCL(prompts=2, group=4, predictor="constant")
    ctx = grow(algorithm, pool=["1", "2", "3"])
    realised = [tree.values()[0] for tree in ctx.trees.values() if len(tree) > 1]
    assert algorithm.observe(ctx)["brier"] == pytest.approx(np.mean((0.5 - np.array(realised)) ** 2))


def test_a_step_with_the_network() -> None:
    algorithm = PCL(prompts=2, group=2, warmup_steps=0, width=32)
    algorithm.start(RunContext(seed=0, tasks=ALL, vocabulary=256))
    ctx = grow(algorithm, pool=["1", "2", "3"], started=True)
    metrics = algorithm.observe(ctx)
    assert np.isfinite([metrics["brier"], metrics["ece"]]).all() and sorted(sizes(ctx)) == [0, 2, 2]
