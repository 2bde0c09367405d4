import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_gym.check import check_env
from trace_gym.env import Snapshot
from trace_gym.envs.actions import format_answer, format_call
from trace_gym.envs.math.env import MathEnv, MathState
from trace_gym.envs.math.problems import make_problem
from trace_gym.errors import ConfigError, TaskError

TASK = "word/train/3/0"


def calc(expression: str) -> str:
    return format_call("calculator", {"expression": expression})


def solving(equation: str, variable: str = "x") -> str:
    return format_call("solve", {"equation": equation, "variable": variable})


@pytest.fixture
def env() -> MathEnv:
    env = MathEnv()
    env.reset(options={"task": TASK})
    return env


def play(env: MathEnv, act: Any) -> tuple[float, list[str]]:
    """Take `act()` until the end; the reward and the actions."""
    actions, reward, over = [], 0.0, False
    while not over:
        actions.append(act())
        _, reward, terminated, truncated, _ = env.step(actions[-1])
        over = terminated or truncated
    return reward, actions


# ---- registration ----------------------------------------------------------------------------------------


def test_make_gives_the_environment_itself() -> None:
    for name in ("trace_gym/Math-v0", "trace_gym:trace_gym/Math-v0"):
        made = gymnasium.make(name, difficulty="hard", split="test")
        assert isinstance(made, MathEnv)
        observation, info = made.reset(seed=0)
        assert info["task_id"].split("/")[1] == "test"
        assert observation.endswith((".", "?"))


def test_registration_loads_no_environment() -> None:
    code = "import trace_gym.envs, sys; print([m for m in sys.modules if 'envs.math' in m or m in ('sympy', 'torch')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_settings_that_cannot_be_meant() -> None:
    with pytest.raises(ConfigError, match="unknown split 'validation'"):
        MathEnv(split="validation")
    for turns in (0, -1, "3", 2.5, True):
        with pytest.raises(ConfigError, match="max_turns is a whole number"):
            MathEnv(max_turns=turns)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="difficulty '9'"):
        MathEnv(difficulty="9")
    with pytest.raises(TaskError, match="unknown task 'nothing'"):
        MathEnv().reset(options={"task": "nothing"})


def test_a_setting_may_come_from_yaml_or_a_path(tmp_path: Path) -> None:
    assert {task.split("/")[2] for task in MathEnv(difficulty=3).tasks("dev")} == {"3"}
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"question": "What is 2*3?", "answer": "#### 6"}) + "\nnot JSON\n")
    env = MathEnv(path, "all", on_bad_line="skip")
    assert [(bad.line, bad.reason[:14]) for bad in env.skipped] == [(2, "not valid JSON")]
    assert env.reset(seed=0)[1]["task_id"] == "mine/1"
    empty = next(split for split in ("train", "test") if not env.tasks(split))
    with pytest.raises(TaskError, match=f"split '{empty}' is empty; pass split='all'"):
        MathEnv(path, empty, on_bad_line="skip").reset(seed=0)


# ---- turns -----------------------------------------------------------------------------------------------


def test_a_tool_answers_in_short(env: MathEnv) -> None:
    assert env.step(calc("61-56"))[0] == "5"
    observation, reward, terminated, truncated, info = env.step(solving("2x+1=8"))
    assert (observation, reward, terminated, truncated) == ("x = 3.5", 0.0, False, False)
    assert info == {"task_id": TASK, "role": "tool", "format_error": False}


def test_the_right_answer_ends_with_reward_one_whenever_it_is_given(env: MathEnv) -> None:
    answer = env.state.problem.answer
    for action in (
        format_answer(answer),
        format_call("answer", {"answer": answer}),
        format_answer(f" {answer}.0 "),
    ):
        env.reset(options={"task": TASK})
        observation, reward, terminated, truncated, info = env.step(action)
        assert (observation, reward, terminated, truncated) == ("correct", 1.0, True, False)
        assert info["success"] is True
        assert info["format_error"] is False
        assert isinstance(info["judged_by"], str)


def test_a_wrong_answer_ends_with_reward_zero(env: MathEnv) -> None:
    observation, reward, terminated, _, info = env.step(format_answer("7.25"))
    assert (observation, reward, terminated, info["success"]) == ("wrong", 0.0, True, False)


@pytest.mark.parametrize(
    ("action", "part"),
    [
        ("", "no action found"),
        ("The answer is 5.", "no action found"),
        ("<tool_call>calculator(2+3)</tool_call>", "not valid JSON"),
        ("<answer></answer>", "the answer is empty"),
        (
            format_call("python", {"code": "1"}),
            "there is no tool 'python'; the tools are calculator and solve",
        ),
        (format_call("calculator", {}), "calculator: the argument 'expression' is missing"),
        (format_call("calculator", {"expression": 5}), "must be of type string"),
        (format_call("solve", {"equation": "x=1", "variable": "x", "y": "2"}), "solve: unknown argument 'y'"),
    ],
)
def test_an_action_that_cannot_be_used_costs_a_turn(env: MathEnv, action: str, part: str) -> None:
    state, key = env.state, env.state_key()
    observation, reward, terminated, truncated, info = env.step(action)
    assert observation.startswith("error: ")
    assert part in observation
    assert "\n" not in observation
    assert (reward, terminated, truncated, info["format_error"]) == (0.0, False, False, True)
    assert env.state == state
    assert env.state_key() != key, "a turn less"


@pytest.mark.parametrize(
    "action", [calc("1/0"), calc("9**9**9**9"), calc("__import__('os')"), solving("x*x*x*x*x=1")]
)
def test_a_tool_that_fails_is_no_format_error(env: MathEnv, action: str) -> None:
    observation, _, _, _, info = env.step(action)
    assert observation.startswith("error: ")
    assert "\n" not in observation
    assert info["format_error"] is False


def test_the_turn_limit_leaves_two_turns_to_waste() -> None:
    env = MathEnv(difficulty="1-5")
    for task in ("word/train/1/0", "equation/train/3/1", "word/test/5/2"):
        for wasted, reward in ((2, 1.0), (3, 1.0), (99, 0.0)):
            env.reset(options={"task": task})
            needed = len(env.state.problem.steps) + 1
            assert env.snapshot().turn_limit == needed + 2
            actions = iter(["hm"] * wasted)
            assert play(env, lambda actions=actions: next(actions, None) or env.expert_action())[0] == reward
            if wasted == 99:
                assert env.snapshot().status == "truncated"
                assert env.snapshot().success is False


def test_max_turns_is_one_limit_for_all() -> None:
    env = MathEnv(max_turns=1)
    env.reset(options={"task": TASK})
    _, reward, terminated, truncated, info = env.step(calc("1+1"))
    assert (reward, terminated, truncated, info["success"]) == (0.0, False, True, False)


def test_hostile_text_is_bounded_in_the_state(env: MathEnv) -> None:
    env.step(calc("1" * 15_000))
    env.step("<answer>" + "9" * 10**6)
    assert len(env.snapshot().to_bytes()) < 4000


ACTION = st.one_of(
    st.text(max_size=60),
    st.sampled_from(["1+1", "61-56", "5*", "1/3", "x", "5-3"]).map(calc),
    st.sampled_from(["x=1", "x", "x^2=4", "x=x", "0x=1"]).map(solving),
)


@given(st.lists(ACTION, max_size=4))
def test_whatever_the_agent_wrote_the_expert_still_succeeds(actions: list[str]) -> None:
    env = MathEnv()
    env.reset(options={"task": TASK})
    for action in actions:
        observation, *_ = env.step(action)
        assert len(observation) <= 8192
    assert play(env, env.expert_action)[0] == 1.0


# ---- forks -----------------------------------------------------------------------------------------------


def test_a_snapshot_holds_the_problem_whatever_the_source(env: MathEnv, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"question": "What is 2*3+1?", "answer": "<<2*3=6>> <<6+1=7>> #### 7"}))
    theirs = MathEnv(str(path))
    theirs.reset(options={"task": "mine/1"})
    theirs.step(theirs.expert_action())
    snapshot = Snapshot.from_bytes(theirs.snapshot().to_bytes())
    env.restore(snapshot)
    assert isinstance(env.state, MathState)
    assert env.state == theirs.state
    assert env.state_key() == theirs.state_key()
    assert play(env, env.expert_action) == (1.0, [calc("6+1"), format_answer("7")])


def test_siblings_do_not_touch_each_other(env: MathEnv) -> None:
    twin = cast(MathEnv, env.fork())
    before = env.snapshot().digest
    play(twin, twin.expert_action)
    assert env.snapshot().digest == before


def key_after(*actions: str, task: str = TASK) -> str:
    env = MathEnv()
    env.reset(options={"task": task})
    for action in actions:
        env.step(action)
    return env.state_key()


def test_equal_situations_have_equal_keys() -> None:
    assert key_after(calc("61-56")) == key_after("Let me see. " + calc("10/2")), (
        "the result counts, not the words"
    )
    assert key_after("hm", calc("61-56")) == key_after(calc("61-56"), calc("1/0")), (
        "what gave nothing is forgotten"
    )
    assert key_after(calc("2+3"), calc("2+3")) == key_after("hm", calc("2+3")), "asked twice is known once"


def test_different_situations_have_different_keys() -> None:
    different = [
        key_after(),
        key_after(task="word/train/3/1"),
        key_after(calc("61-56")),
        key_after(calc("61+56")),
        key_after("hm"),
        key_after(calc("61-56"), calc("5-3")),
        key_after(calc("5-3"), calc("61-56")),
        key_after("hm", calc("5-3")),
        key_after("hm", "hm"),
        key_after("hm", format_answer(make_problem(TASK).answer)),
        key_after("hm", format_answer("no")),
    ]
    assert len(set(different)) == len(different)


def test_it_keeps_the_whole_contract(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"question": "What is 2*3+1?", "answer": "<<2*3=6>> <<6+1=7>> #### 7"}) + "\n")
    for env in ("trace_gym/Math-v0", gymnasium.make("trace_gym/Math-v0", source=str(path), split="all")):
        report = check_env(cast(Any, env))
        assert len(report.exercised) >= 25
        assert set(report.unexercised) <= {"fresh-noise"}, "nothing is random after reset"


# ---- demonstrators ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "count"), [("test", 512), ("dev", 256), ("train", 512)])
def test_the_expert_solves_every_task_by_its_steps(split: str, count: int) -> None:
    env = MathEnv(difficulty="1-5")
    for task in env.tasks(split)[:count]:
        env.reset(options={"task": task})
        reward, actions = play(env, env.expert_action)
        assert reward == 1.0, task
        assert len(actions) == int(task.split("/")[2]) + 1


def novice_score(tasks: list[str], **settings: float) -> dict[int, list[float]]:
    env, scores = MathEnv(difficulty="1-5"), defaultdict(list)
    for place, task in enumerate(tasks):
        rng = np.random.default_rng(place)
        env.reset(options={"task": task})
        scores[int(task.split("/")[2])].append(
            play(env, lambda rng=rng: env.novice_action(rng, **settings))[0]
        )
    return scores


def test_a_novice_that_never_slips_is_an_expert() -> None:
    scores = novice_score(list(MathEnv(difficulty="1-5").tasks("train")[:400]), slip=0.0, noise=0.0)
    assert all(np.mean(values) == 1.0 for values in scores.values())


def test_a_novice_that_always_slips_fails_where_there_is_a_slip() -> None:
    env = MathEnv()
    for task in env.tasks("train")[:400]:
        env.reset(options={"task": task})
        slips = sum(step.slip is not None for step in env.state.problem.steps)
        reward, _ = play(env, lambda: env.novice_action(np.random.default_rng(0), slip=1.0, noise=0.0))
        if slips < 2:  # two slips may cancel out
            assert reward == float(slips == 0), task


def test_the_novice_succeeds_in_four_of_ten_built_in_tasks() -> None:
    scores = novice_score(list(MathEnv().tasks("train")[:1600]))
    by_depth = [float(np.mean(scores[depth])) for depth in (1, 2, 3, 4)]
    assert 0.35 <= np.mean(by_depth) <= 0.50
    assert by_depth == sorted(by_depth, reverse=True)


def test_the_novice_always_has_an_action() -> None:
    env = MathEnv(difficulty="5")
    tasks = env.tasks("train")
    for seed in range(300):
        rng = np.random.default_rng(seed)
        env.reset(options={"task": tasks[seed]})
        play(env, lambda rng=rng: "hm" if rng.random() < 0.2 else env.novice_action(rng, noise=0.9))


# ---- real problems ---------------------------------------------------------------------------------------


def test_the_expert_solves_real_problems(shared_data: Path) -> None:
    env = MathEnv(str(shared_data / "gsm8k_train_1000.jsonl"), "all")
    assert len(env.tasks("all")) == 1000
    for task in env.tasks("all"):
        env.reset(options={"task": task})
        assert env.expert_action().startswith("<tool_call>"), "the expert shows a tool first"
        assert play(env, env.expert_action)[0] == 1.0, task
