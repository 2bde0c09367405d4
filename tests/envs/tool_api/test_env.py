import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_gym.check import check_env
from trace_gym.env import Snapshot
from trace_gym.envs.actions import format_answer, format_call
from trace_gym.envs.tool_api.env import ToolAPIEnv
from trace_gym.errors import ConfigError, SnapshotError, TaskError

TASK = "office/train/3/1"


@pytest.fixture
def env() -> ToolAPIEnv:
    env = ToolAPIEnv()
    env.reset(options={"task": TASK})
    return env


def test_make_gives_the_environment_itself_and_it_keeps_the_contract() -> None:
    made = gymnasium.make("trace_gym:trace_gym/ToolAPI-v0", difficulty="easy", split="test")
    assert isinstance(made, ToolAPIEnv)
    _, info = made.reset(seed=0)
    assert info["task_id"].split("/")[1] == "test"
    report = check_env(made)
    assert set(report.unexercised) == {"fresh-noise"}


def test_plain_words_close_a_user_turn_and_what_was_meant_as_an_action_does_not(env: ToolAPIEnv) -> None:
    second = env._world.begin(TASK).messages[1]
    for said in ("Done.", "<answer>done</answer>", "<think>hm <answer></think> It is done!"):
        env.reset(options={"task": TASK})
        observation, _, _, _, info = env.step(said)
        assert (observation, info["role"], info["format_error"]) == (second, "user", False)
    for slip in (
        "",
        "  ",
        "<think>",
        "<tool_call>",
        "</answer>",
        "<answer></answer>",
        "<tool_call>{}</tool_call>",
    ):
        env.reset(options={"task": TASK})
        observation, _, _, _, info = env.step(slip)
        assert observation.startswith("error: ") and info["role"] == "tool" and info["format_error"]
        assert env.state.user_turn == 0


def test_unknown_tools_and_wrong_arguments_cost_a_turn_and_change_nothing(env: ToolAPIEnv) -> None:
    before = env.state
    name = env.tools(before)[0].name
    for call, says in (
        (format_call("rm", {}), "error: there is no tool 'rm'"),
        (format_call(name, {"no such": 1}), f"error: {name}: unknown argument"),
    ):
        observation, reward, terminated, _, info = env.step(call)
        assert observation.startswith(says) and info["format_error"] and not reward and not terminated
    assert env.state is before and env.snapshot().turn == 2


def test_sources_are_found_or_refused() -> None:
    with pytest.raises(ConfigError, match="unknown source 'nothing'; there are builtin, bfcl, openapi"):
        ToolAPIEnv("nothing")
    with pytest.raises(ConfigError, match="bfcl has no category 'x'; write bfcl:base"):
        ToolAPIEnv("bfcl:x")
    with pytest.raises(ConfigError, match="unknown split 'x'; there are train, dev, test, all"):
        ToolAPIEnv(split="x")
    for turns in (0, -1, "3", 2.5, True):
        with pytest.raises(ConfigError, match="max_turns is a whole number from 1, not"):
            ToolAPIEnv(max_turns=turns)  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="unknown split"):
        ToolAPIEnv().tasks("x")


def test_a_limit_can_be_set() -> None:
    env = ToolAPIEnv(max_turns=2)
    env.reset(options={"task": TASK})
    env.step("<tool_call>")
    *_, truncated, info = env.step("<tool_call>")
    assert truncated and info["success"] is False


# ---- forks -------------------------------------------------------------------------------------------------------


def some_action(env: Any, rng: np.random.Generator) -> str:
    choice = rng.random()
    if choice < 0.4:
        return str(env.expert_action())
    if choice < 0.6:
        return str(env.novice_action(rng))
    if choice < 0.7:
        return format_answer("done")
    tools = env.tools(env.state)
    tool = tools[int(rng.integers(len(tools)))]
    made: dict[str, Any] = {"integer": int(rng.integers(100, 999)), "string": "Ann"}
    properties = tool.parameters["properties"]
    return format_call(tool.name, {key: made[value["type"]] for key, value in properties.items()})


def course(env: Any, rng: np.random.Generator, turns: int = 6) -> Iterator[tuple[Any, ...]]:
    for _ in range(turns):
        shown = env.step(some_action(env, rng))
        yield (*shown[:4], json.dumps(shown[4], sort_keys=True), env.state_key())
        if shown[2] or shown[3]:
            return


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 3), min_size=2, max_size=6))
def test_forks_taken_anywhere_and_played_in_any_order_go_on_as_if_alone(seed: int, order: list[int]) -> None:
    rng = np.random.default_rng(seed)
    env = ToolAPIEnv()
    env.reset(seed=seed, options={"task": f"office/train/3/{seed % 50}"})
    marks = [env.snapshot()]
    for _ in course(env, rng, 3):
        if env.snapshot().status == "running":
            marks.append(env.snapshot())
    alone = []
    for place, mark in enumerate(marks):
        fresh = ToolAPIEnv()
        fresh.restore(mark)
        alone.append(list(course(fresh, np.random.default_rng(place))))
    forks = []
    for mark in marks:
        env.restore(mark)
        forks.append(env.fork())
    other = ToolAPIEnv()
    for place in order:
        place %= len(marks)
        other.restore(Snapshot.from_bytes(marks[place].to_bytes()))
        assert list(course(other, np.random.default_rng(place))) == alone[place]
        forks[place].restore(marks[place])
        assert list(course(forks[place], np.random.default_rng(place))) == alone[place]
    assert [mark.digest for mark in marks] == [Snapshot.from_bytes(mark.to_bytes()).digest for mark in marks]


def test_another_process_goes_on_the_same(env: ToolAPIEnv, tmp_path: Path) -> None:
    env.step(env.expert_action())
    (tmp_path / "snapshot").write_bytes(env.snapshot().to_bytes())
    script = (
        "import sys, trace_gym\n"
        "from trace_gym.env import Snapshot\n"
        "from trace_gym.envs.tool_api.env import ToolAPIEnv\n"
        "env = ToolAPIEnv()\n"
        "env.restore(Snapshot.from_bytes(open(sys.argv[1], 'rb').read()))\n"
        "print(env.step(env.expert_action())[0], env.state_key())\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "snapshot")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{env.step(env.expert_action())[0]} {env.state_key()}"


def test_a_situation_is_equal_whatever_the_path() -> None:
    keys: list[str] = []
    for lookups in (("Ann", "plan"), ("plan", "Ann")):
        env = ToolAPIEnv(families="files", difficulty=1, distractors=0)
        task = next(t for t in env.tasks("train") if env._world.begin(t).gold.template[0].startswith("share"))
        env.reset(seed=len(keys), options={"task": task})
        calls = {
            "Ann": format_call("find_contact", {"name": "a"}),
            "plan": format_call("find_file", {"name": "a"}),
        }
        for name in lookups:
            env.step(calls[name])
        keys.append(env.state_key())
        env.step("<tool_call>")
        assert env.state_key() != keys[-1]  # a turn less
    assert keys[0] == keys[1]


def test_states_of_another_source_or_of_no_turn_are_refused(env: ToolAPIEnv) -> None:
    from msgspec.structs import replace

    snapshot = env.snapshot()
    far = replace(snapshot, state=replace(snapshot.state, user_turn=99))
    for strange in (far, Snapshot.from_bytes(far.to_bytes())):
        with pytest.raises(SnapshotError, match="no user turn 99"):
            ToolAPIEnv().restore(strange)
    data = snapshot.to_bytes().replace(b"builtin", b"buildin")
    with pytest.raises(SnapshotError, match="cannot be read"):
        ToolAPIEnv().restore(Snapshot.from_bytes(data))
    gone = replace(snapshot, state=replace(snapshot.state, task_id="office/train/9/0"))
    with pytest.raises(TaskError):
        ToolAPIEnv().restore(gone)
