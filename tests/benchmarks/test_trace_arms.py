"""The arms of TRACE's comparisons: what they are given to spend, and that the plan knows them."""

from pathlib import Path

import pytest

from trace_gym.benchmarks import trace_math, trace_relay
from trace_gym.config import load_config
from trace_gym.observer import Silent
from trace_gym.train import train

FREE = {"joint", "joint-subgroups", "joint-prior-1", "joint-oracle"}  # they follow tokens, not units


@pytest.mark.parametrize(
    "arm", [*trace_relay.PROMPTS, "grpo", "trace", "root-only", "pairs", "pairs-uniform"]
)
def test_a_step_of_every_rule_costs_64_rollout_units(arm: str, tmp_path: Path) -> None:
    """The first step, which the budget does not cut short. DAPO replaces groups until enough are mixed."""
    (cell,) = trace_relay.cells([arm], ["medium"], [0], {arm: 0.4})
    run = train(
        load_config(None, [*cell.settings, "budget.policy_tokens=500", f"out={tmp_path}", "seed=0"]), Silent()
    )
    units = next(iter(run.metrics()))["rollout_units"]
    assert units == pytest.approx(64, rel=0.15)


def test_plans_and_contrasts_name_arms_that_there_are() -> None:
    assert set(trace_math.PLAN) == set(trace_math.MIXES) == set(trace_math.PLANNED_SEEDS)
    for arms in trace_math.PLAN.values():
        assert set(arms) <= set(trace_math.ARMS) and trace_math.BASELINE in arms
    told = {arm for suite in (trace_math, trace_relay) for pair in suite.CONTRASTS for arm in pair}
    assert told <= {*trace_math.ARMS, *trace_relay.ARMS}
    named = {
        *trace_relay.HARD,
        *trace_relay.CONTROLLED,
        *trace_relay.AGAIN,
        *trace_relay.PICTURED,
        *trace_relay.PROMPTS,
    }
    named |= {arm for three in trace_relay.ORACLES for arm in three} | FREE
    assert named <= set(trace_relay.ARMS)
    assert not set(trace_relay.TUNING_SEEDS) & {*trace_relay.SEEDS, *trace_relay.FRESH_SEEDS}
