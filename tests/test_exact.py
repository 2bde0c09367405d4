"""Exact values against enumeration, exact gradients against finite differences and autograd."""

from typing import Any

import numpy as np
import pytest

from trace_gym.envs.relay.env import RelayEnv, RelayState
from trace_gym.exact import policy_gradient, softmax, start_success, success, success_table
from trace_gym.tabular import TabularPolicy

SMALL: list[dict[str, Any]] = [
    {"mix": "broad", "depth": 2, "slack": 1, "actions": 2, "kinds": 3},
    {
        "mix": {"medium": 1, "0.2": 1},
        "depth": 2,
        "slack": 2,
        "actions": 3,
        "kinds": 2,
        "slip": 0.3,
        "dead_ends": 1.0,
    },
    {"mix": "never", "depth": 3, "slack": 1, "actions": 2, "kinds": 4},
    {"mix": "first", "depth": 2, "slack": 1, "actions": 3, "kinds": 3},
    {"mix": "last", "depth": 2, "slack": 1, "actions": 3, "kinds": 3},
]


class Fixed:
    """A generator whose every number is the same."""

    def __init__(self, number: float) -> None:
        self.number = number

    def random(self) -> float:
        return self.number


def enumerate_success(env: RelayEnv, state: RelayState, turns: int, chances: Any, slip: float) -> float:
    """By playing every sequence of actions and noise in the environment itself, which knows nothing of the table."""
    if turns == 0:
        return 0.0
    total = 0.0
    row = chances[env.tabular().state(env._shown(state))]
    for chance, action in zip(row, env.tabular().actions, strict=True):
        for noise, weight in ((0.0, slip), (0.999, 1 - slip)):
            if weight == 0:
                continue
            turn = env.advance(state, action, Fixed(noise))  # type: ignore[arg-type]
            if turn.terminated:
                value = float(bool(turn.success))
            else:
                value = enumerate_success(env, turn.state, turns - 1, chances, slip)
            total += chance * weight * value
    return total


def some_policy(env: RelayEnv, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    spec = env.tabular()
    return spec.initial_logits * 0.5 + np.random.default_rng(seed).normal(size=spec.initial_logits.shape)


@pytest.mark.parametrize("options", SMALL)
def test_values_equal_the_sum_over_all_that_can_happen(options: dict[str, Any]) -> None:
    env = RelayEnv(**options)
    spec, chances = env.tabular(), softmax(some_policy(env))
    table = success_table(spec, chances)
    depth = options["depth"]
    for kind in range(options["kinds"]):
        for place in range(depth + 1):
            state = RelayState(kind, place)
            for turns in range(spec.turn_limit + 1):
                expected = enumerate_success(env, state, turns, chances, options.get("slip", 0.0))
                assert table[turns, kind * (depth + 1) + place] == pytest.approx(expected, abs=1e-12)
    assert success(spec, chances) == pytest.approx(start_success(spec, chances).mean())


@pytest.mark.parametrize("options", SMALL)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_equals_finite_differences(options: dict[str, Any], temperature: float) -> None:
    env = RelayEnv(**options)
    spec, logits = env.tabular(), some_policy(env, seed=1)
    gradient = policy_gradient(spec, logits, temperature)
    assert np.abs(gradient).max() > 1e-3
    for index in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[index] = 1e-6
        ends = [success(spec, softmax(logits + sign * step, temperature)) for sign in (1, -1)]
        assert gradient[index] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-8)


@pytest.mark.parametrize("options", SMALL)
def test_the_gradient_equals_autograd(options: dict[str, Any]) -> None:
    env = RelayEnv(**options)
    policy = TabularPolicy(env.tabular())
    value = policy.success(temperature=0.8)
    value.backward()
    assert policy.logits.grad is not None
    logits = policy.logits.detach().numpy()
    assert float(value.detach()) == pytest.approx(
        success(env.tabular(), policy.probabilities(0.8)), abs=1e-12
    )
    assert policy.logits.grad.numpy() == pytest.approx(
        policy_gradient(env.tabular(), logits, 0.8), abs=1e-7
    )  # float32 against float64


def test_the_gradient_of_single_starts_averages_to_the_whole() -> None:
    env = RelayEnv(**SMALL[0])
    spec, logits = env.tabular(), some_policy(env)
    each = [policy_gradient(spec, logits, starts=[start]) for start in spec.starts]
    assert np.mean(each, axis=0) == pytest.approx(policy_gradient(spec, logits))
    assert not each[0][3:].any() and each[0][:2].all()  # the other kinds play no part


def test_softmax_of_extreme_logits_is_finite() -> None:
    assert softmax(np.array([1e4, 0.0, -1e4])).tolist() == [1.0, 0.0, 0.0]
