"""Relay as an environment: the contract, and how its world is drawn."""

from collections import Counter
from typing import Any

import gymnasium
import msgspec
import numpy as np
import pytest

from trace_gym.check import check_env
from trace_gym.envs.relay.env import RelayEnv, RelayState
from trace_gym.envs.relay.world import DEAD, FALL, MOVE, PRESETS, STAY
from trace_gym.errors import ConfigError, EnvironmentContractError, SnapshotError, TaskError
from trace_gym.exact import softmax, start_success, success_table


def relay(**options: Any) -> RelayEnv:
    return RelayEnv(**options)


@pytest.mark.parametrize("mix", PRESETS)
def test_every_preset_keeps_the_contract(mix: str) -> None:
    report = check_env(gymnasium.make("trace_gym/Relay-v0", mix=mix, slip=0.1, slack=3))
    assert "fresh-noise: not exercised" not in str(report)


@pytest.mark.parametrize("mix", PRESETS)
@pytest.mark.parametrize("slip", [0.0, 0.2])
def test_kinds_start_with_the_success_that_their_difficulty_declares(mix: str, slip: float) -> None:
    env = relay(mix=mix, slip=slip, slack=6)
    found = start_success(env.tabular(), softmax(env.tabular().initial_logits))
    declared = {"trivial": 0.95, "medium": 0.5, "hard": 0.05, "never": 0.0}
    assert found == pytest.approx([declared[name] for name in env.difficulties], abs=1e-6)


def test_shares_and_numbers_make_a_mix_of_their_own() -> None:
    env = relay(mix={"medium": 1, "0.02": 3, "never": 1}, kinds=10)
    assert Counter(env.difficulties) == {"medium": 2, "0.02": 6, "never": 2}
    found = start_success(env.tabular(), softmax(env.tabular().initial_logits))
    assert sorted(set(np.round(found, 9))) == [0.0, 0.02, 0.5]


def test_the_hard_mix_is_three_fifths_hard() -> None:
    assert Counter(relay(mix="hard", kinds=20).difficulties) == {"hard": 12, "trivial": 4, "medium": 4}


def test_in_first_all_is_decided_by_the_first_turn() -> None:
    env = relay(mix="first")
    spec = env.tabular()
    table = success_table(spec, softmax(spec.initial_logits))
    after = np.unique(spec.outcomes[spec.starts].ravel())
    after = after[(after < spec.states) & ~np.isin(after, spec.starts)]
    assert set(table[spec.turn_limit - 1, after]) == {0.0, 1.0}


def test_in_last_every_prefix_is_worth_its_prompt() -> None:
    env = relay(mix="last", depth=4)
    spec = env.tabular()
    table = success_table(spec, softmax(spec.initial_logits))
    for start in spec.starts:
        worth = [table[spec.turn_limit - turn, start + turn] for turn in range(4)]
        assert worth == pytest.approx([worth[0]] * 4)
    certain = spec.outcomes[spec.starts + 3, :, 0]
    assert (certain >= spec.states).all()  # the last station ends the episode either way


def test_every_kind_has_equally_many_tasks_in_both_splits() -> None:
    env = relay(kinds=24)
    for split in ("train", "test"):
        kinds = Counter(env.begin(task, np.random.default_rng(0)).state.kind for task in env.tasks(split))
        assert len(kinds) == 24 and len(set(kinds.values())) == 1
    assert not set(env.tasks("train")) & set(env.tasks("test")) and len(env.tasks("train")) >= 4096


def play(env: RelayEnv, state: RelayState, action: str) -> Any:
    return env.advance(state, action, np.random.default_rng(0))


def test_what_each_effect_does() -> None:
    env = relay(depth=4, kinds=30, dead_ends=0.5)
    effects = env._world.effects
    kind, place, action = (int(v) for v in np.argwhere(effects[:, :3] == MOVE)[0])
    assert play(env, RelayState(kind, place), "abcd"[action]).state == RelayState(kind, place + 1)
    kind, place, action = (int(v) for v in np.argwhere(effects == STAY)[0])
    assert play(env, RelayState(kind, place), "abcd"[action]).state == RelayState(kind, place)
    kind, place, action = (int(v) for v in np.argwhere(effects == DEAD)[0])
    dead = play(env, RelayState(kind, place), "abcd"[action])
    assert dead.state == RelayState(kind, 4) and "dead end" in dead.observation and not dead.terminated
    for word in "abcd":
        assert play(env, dead.state, word).state == dead.state
    last = np.argwhere(effects[:, 3] == MOVE)[0]
    end = play(env, RelayState(int(last[0]), 3), "abcd"[last[1]])
    assert end.terminated and end.success and end.reward == 1.0
    falls = relay(mix="last", depth=4)
    kind, action = (int(v) for v in np.argwhere(falls._world.effects[:, 3] == FALL)[0])
    end = play(falls, RelayState(kind, 3), "abcd"[action])
    assert end.terminated and not end.success and end.reward == 0.0


def test_other_text_costs_a_turn_and_says_what_is_asked_for() -> None:
    env = relay()
    env.reset(seed=0)
    before = env.state
    for text in ("", "e", "open", "a b", "\x00", "A"):
        turn = play(env, before, text)
        assert turn.state == before and turn.observation.startswith(
            "Not an action: write one of a, b, c, d. "
        )
        assert turn.extra == {"format_error": True}
        assert env.tabular().state(turn.observation) == env.tabular().state(env._shown(before))


def test_a_closed_station_opens_to_a_word_that_is_no_action() -> None:
    env = relay(mix={"never": 1}, kinds=4)
    closed = np.argwhere((env._world.effects != MOVE).all(-1))
    assert len(closed) == 4
    for kind, place in closed.tolist():
        opened = play(env, RelayState(kind, place), "open")
        assert opened.success or opened.state == RelayState(kind, place + 1)
        assert all(play(env, RelayState(kind, place), word).state.place != place + 1 for word in "abcd")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mix": "broadly"}, "presets are broad"),
        ({"mix": {"easy": 1}}, "'easy'"),
        ({"mix": {"1.5": 1}}, "'1.5'"),
        ({"mix": {}}, "shares"),
        ({"mix": {"hard": -1, "medium": 2}}, "shares"),
        ({"depth": 0}, "depth"),
        ({"slack": 0}, "slack"),
        ({"kinds": 2.0}, "kinds"),
        ({"actions": 1}, "actions"),
        ({"dead_ends": 2}, "dead_ends"),
        ({"slip": 0.6}, "raise slack"),
        ({"world": -1}, "world"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        relay(**options)


def test_foreign_tasks_splits_and_snapshots_are_refused() -> None:
    env = relay()
    with pytest.raises(TaskError, match="no task"):
        env.reset(options={"task": "hard/99999999"})
    with pytest.raises(TaskError, match="no split"):
        env.tasks("dev")
    env.reset(seed=1)
    for state in (RelayState(32, 0), RelayState(0, 6), RelayState(-1, 0)):
        with pytest.raises(SnapshotError, match="same options"):
            env.restore(msgspec.structs.replace(env.snapshot(), state=state))
    with pytest.raises(EnvironmentContractError, match="no state"):
        env.tabular().state("Kind 99: station 1 of 5.")


def test_the_world_depends_on_its_seed_alone() -> None:
    one, same, other = relay(), relay(), relay(world=1)
    assert one.tabular().fingerprint == same.tabular().fingerprint != other.tabular().fingerprint
    assert np.array_equal(one.tabular().initial_logits, same.tabular().initial_logits)


def test_the_novice_plays_as_the_initial_policy_does() -> None:
    env, rng = relay(kinds=3), np.random.default_rng(0)
    env.reset(seed=0)
    spec = env.tabular()
    chances = softmax(spec.initial_logits)[spec.state(env.snapshot().observation)]
    drawn = Counter(env.novice_action(rng) for _ in range(2000))
    found = np.array([drawn[name] / 2000 for name in spec.actions])
    assert (np.abs(found - chances) < 4 * np.sqrt(chances * (1 - chances) / 2000) + 1e-9).all()
