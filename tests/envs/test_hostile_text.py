"""Parsing is total and nothing is executed: many strings to the parser, and to each world in the middle of its episodes."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.fuzzing import CANARY, feed, strings
from trace_gym.envs.actions import Answer, Call, Malformed, parse_action
from trace_gym.plugins import make_env

OWN = {
    "trace_gym/Math-v0": ("calculator", '"expression":"', "12*(3+4)", "solve"),
    "trace_gym/SearchQA-v0": ("search", "open", '"query":"', '"title":"', '"k":', "<search>", "</search>", "Poland"),
    "trace_gym/ToolAPI-v0": ("find_contact", "add_event", '"contact":', "done", "cannot", "cp", "power"),
    "trace_gym/Relay-v0": ("go", "left", '"station":'),
}  # fmt: skip
LONGEST_S = 5  # of a step: far above what one takes, far below a hang


def test_a_hundred_thousand_texts_are_calls_answers_or_malformed() -> None:
    kinds = {Answer: 0, Call: 0, Malformed: 0}
    for text in strings(np.random.default_rng(0), 100_000, OWN["trace_gym/ToolAPI-v0"]):
        kinds[type(parse_action(text))] += 1
    assert sum(kinds.values()) == 100_000
    assert kinds[Answer] > 100 and kinds[Malformed] > 1000, "the texts reach the parser's branches"


@pytest.mark.parametrize("env", OWN)
def test_no_text_raises_hangs_or_is_executed(
    env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert feed(make_env(env, {}), 2_000, seed=0, own=OWN[env]) < LONGEST_S


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("env", [env for env in OWN if not env.endswith("Relay-v0")])
def test_no_text_of_a_hundred_thousand_does(
    env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert feed(make_env(env, {}), 100_000, seed=1, own=OWN[env]) < LONGEST_S


def test_a_world_that_runs_text_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = make_env("trace_gym/Relay-v0", {})
    before = type(env).step

    def gullible(self: object, action: str) -> object:
        if action == f"open('{CANARY}','w')":
            Path(CANARY).touch()
        return before(self, action)  # type: ignore[arg-type]

    monkeypatch.setattr(type(env), "step", gullible)
    with pytest.raises(AssertionError, match="text was executed"):
        feed(env, 2_000, seed=0)
