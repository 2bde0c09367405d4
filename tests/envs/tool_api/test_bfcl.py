import random
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from tests.support.fuzzing import feed
from trace_gym.benchmarks.bfcl_agreement import cases, our_verdict, their_verdicts
from trace_gym.check import check_env
from trace_gym.env import Snapshot
from trace_gym.envs.actions import Call, format_call, parse_action
from trace_gym.envs.tool_api.bfcl import CATEGORIES, BfclWorld
from trace_gym.envs.tool_api.bfcl_classes import (
    MAX_TREE,
    dump,
    load,
    load_classes,
    new_instance,
    run,
    unfolded,
)
from trace_gym.envs.tool_api.env import ToolAPIEnv
from trace_gym.errors import SnapshotError, TaskError

pytestmark = pytest.mark.usefixtures("bfcl")


def solve(env: ToolAPIEnv, task: str) -> bool:
    env.reset(seed=0, options={"task": task})
    while True:
        _, _, terminated, truncated, info = env.step(env.expert_action())
        if terminated or truncated:
            return bool(info["success"])


@pytest.mark.parametrize("category", CATEGORIES)
def test_gold_passes(category: str) -> None:
    env = ToolAPIEnv(f"bfcl:{category}")
    assert len(env.tasks("all")) == 200 and len(env.tasks("train")) == 160
    assert all(solve(env, task) for task in env.tasks("all")[::10])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_gold_passes_in_every_task() -> None:
    env = ToolAPIEnv("bfcl:all")
    assert sum(solve(env, task) for task in env.tasks("all")) == 800


def test_the_verdict_agrees_with_bfcls_own_checker(bfcl: Path) -> None:
    """Of 4,000 cases a standing sample; see benchmarks/results/tools.md."""
    world = BfclWorld(bfcl, CATEGORIES)
    ids = [f"multi_turn_{category}_{place}" for category in CATEGORIES for place in range(3, 200, 40)]
    given = list(cases(world, ids, seed=1))
    ours = [our_verdict(world, case) for case in given]
    assert ours == [valid for valid, _ in their_verdicts(bfcl, given)]
    assert 20 < sum(ours) < len(ours) - 20


def test_the_contract_is_kept() -> None:
    report = check_env(gymnasium.make("trace_gym/ToolAPI-v0", source="bfcl:miss_func"), max_tasks=1)
    assert set(report.unexercised) == {"fresh-noise"}


@pytest.mark.slow
@pytest.mark.parametrize("category", ["base", "miss_param", "long_context"])
def test_the_contract_is_kept_in_the_other_categories(category: str) -> None:
    report = check_env(gymnasium.make("trace_gym/ToolAPI-v0", source=f"bfcl:{category}"))
    assert set(report.unexercised) == {"fresh-noise"}


def test_the_splits_are_fixed_and_of_the_same_scenarios_in_every_category(bfcl: Path) -> None:
    numbers = set()
    for category in CATEGORIES:
        world = BfclWorld(bfcl, (category,))
        train, test = (
            {int(task.rsplit("_", 1)[1]) for task in world.tasks(split)} for split in ("train", "test")
        )
        assert not train & test and train | test == set(range(200))
        numbers.add(tuple(sorted(test)))
    assert len(numbers) == 1
    assert sorted(numbers.pop())[:5] == [0, 3, 11, 12, 14]  # of every release
    for task in (
        "multi_turn_base_200",
        "multi_turn_base_01",
        "multi_turn_miss_func_0",
        "x",
        "multi_turn_base_²",
    ):
        with pytest.raises(TaskError, match="unknown task"):
            BfclWorld(bfcl, ("base",)).begin(task)
    with pytest.raises(TaskError, match="no split 'dev'; there are all, test, train"):
        BfclWorld(bfcl, ("base",)).tasks("dev")


def test_a_missed_function_is_offered_when_the_user_says_so() -> None:
    env = ToolAPIEnv("bfcl:miss_func")
    _, info = env.reset(options={"task": "multi_turn_miss_func_0"})
    offered = {tool["function"]["name"] for tool in info["tools"]}
    assert "sort" not in offered and "diff" in offered
    while env.state.user_turn < 2:
        env.step(env.expert_action())
    observation, _, _, _, info = env.step(format_call("sort", {"file_name": "final_report.pdf"}))
    assert observation == "error: there is no tool 'sort'" and "tools" not in info
    observation, _, _, _, info = env.step("There is no function for that.")
    assert "more functions" in observation
    assert "sort" in {tool["function"]["name"] for tool in info["tools"]}


def test_what_falls_short_ends_the_episode() -> None:
    env = ToolAPIEnv("bfcl:base")
    for actions, why in (((), "no call"), ((format_call("ls", {}),), "a result is missing")):
        env.reset(options={"task": "multi_turn_base_0"})
        for action in actions:
            env.step(action)
        _, reward, terminated, _, info = env.step("Done.")
        assert terminated and not reward and info["judged"] == why
    env.reset(options={"task": "multi_turn_base_0"})
    env.step(format_call("touch", {"file_name": "extra"}))
    while isinstance(parse_action(env.expert_action()), Call):
        env.step(env.expert_action())
    assert env.step("Done.")[4]["judged"] == "another state"


# ---- their classes -------------------------------------------------------------------------------------------------


def test_loading_leaves_no_trace(bfcl: Path) -> None:
    modules, path = set(sys.modules), list(sys.path)
    load_classes.cache_clear()
    classes = load_classes(bfcl)
    assert sys.path == path and not {name for name in set(sys.modules) - modules if "bfcl" in name}
    assert "bfcl_eval" not in sys.modules and set(classes) >= {"TravelAPI", "Directory"}


def tree(bfcl: Path) -> Any:
    content = {"a.txt": {"type": "file", "content": "one"}, "sub": {"type": "directory", "contents": {}}}
    root = {"root": {"home": {"type": "directory", "contents": content}}}
    return new_instance(load_classes(bfcl), "GorillaFileSystem", root, long=False)


def test_what_an_instance_shares_and_cycles_through_comes_back(bfcl: Path) -> None:
    """`cp` of a directory shares its files; a file that is written through one is changed in both."""
    calls = [
        ("mkdir", {"dir_name": "d"}), ("cd", {"folder": "d"}), ("touch", {"file_name": "f"}), ("cd", {"folder": ".."}),
        ("cp", {"source": "d", "destination": "e"}), ("cd", {"folder": "e"}), ("echo", {"content": "x", "file_name": "f"}),
        ("cd", {"folder": ".."}), ("mv", {"source": "d", "destination": "sub"}), ("cd", {"folder": "sub"}),
        ("cd", {"folder": "d"}), ("cat", {"file_name": "f"}), ("pwd", {}), ("cd", {"folder": ".."}), ("ls", {}),
    ]  # fmt: skip
    straight, hopping = tree(bfcl), tree(bfcl)
    for name, arguments in calls:
        hopping = load(load_classes(bfcl), dump(hopping))
        assert run(straight, name, arguments) == run(hopping, name, arguments), name
        assert dump(straight) == dump(hopping)
    assert '"x"' in run(straight, "cat", {"file_name": "f"}) or "x" in str(dump(straight))


def test_generators_go_on_where_they_were_and_siblings_do_not_share_them(bfcl: Path) -> None:
    car = new_instance(load_classes(bfcl), "VehicleControlAPI", {}, long=True)
    ask: tuple[str, dict[str, Any]] = ("get_outside_temperature_from_google", {})
    run(car, *ask)
    kept = dump(car)
    first, second = (load(load_classes(bfcl), kept) for _ in range(2))
    said = [run(first, *ask) for _ in range(3)]
    assert [run(second, *ask) for _ in range(3)] == said and len(set(said)) == 3


def test_default_lists_and_arguments_are_nobody_elses(bfcl: Path) -> None:
    one, other = (
        new_instance(load_classes(bfcl), "TwitterAPI", {"authenticated": True}, long=False) for _ in range(2)
    )
    run(one, "post_tweet", {"content": "hello"})
    given = {"content": "hello", "mentions": ["@a"]}
    run(one, "post_tweet", given)
    for tweet in (0, 1, 2, 3):
        run(one, "mention", {"tweet_id": tweet, "mentioned_usernames": ["@b"]})
    assert given["mentions"] == ["@a"]
    assert '"mentions": []' in run(other, "post_tweet", {"content": "hello"})


def test_nothing_outside_is_changed(bfcl: Path) -> None:
    import decimal

    import mpmath

    before = mpmath.mp.dps, decimal.getcontext().prec
    numbers = new_instance(load_classes(bfcl), "MathAPI", {}, long=False)
    assert run(numbers, "logarithm", {"value": 100, "base": 10, "precision": 40}).startswith(
        "{'result': mpf('2.0"
    )
    run(numbers, "square_root", {"number": 2, "precision": 40})
    state = random.getstate()
    travel = new_instance(load_classes(bfcl), "TravelAPI", {}, long=False)
    run(travel, "authenticate_travel", {})
    assert (mpmath.mp.dps, decimal.getcontext().prec) == before and random.getstate() == state


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("power", {"base": 9, "exponent": 2**62}),
        ("logarithm", {"value": 2, "base": 3, "precision": 10**12}),
        ("square_root", {"number": 2, "precision": 10**17}),
        ("round_number", {"number": 5, "decimal_places": -(10**15)}),
        ("power", {"base": "9", "exponent": [1]}),
        ("mean", {"numbers": "abc"}),
        ("add", {"a": {"x": 1}, "b": None}),
    ],
)
def test_calls_that_would_not_end_are_refused_at_once(
    bfcl: Path, name: str, arguments: dict[str, Any]
) -> None:
    numbers = new_instance(load_classes(bfcl), "MathAPI", {}, long=False)
    began = time.perf_counter()
    assert "rror" in run(numbers, name, arguments)
    assert time.perf_counter() - began < 1


def test_folders_cannot_be_nested_without_end(bfcl: Path) -> None:
    env = ToolAPIEnv("bfcl:base", max_turns=40)
    env.reset(options={"task": "multi_turn_base_0"})
    before = env.state.world.instances
    observation, *_ = env.step(format_call("cp", {"source": "document", "destination": "document"}))
    assert observation == "error: cp would nest folders without end" and env.state.world.instances == before
    loop = tree(bfcl)
    run(loop, "mv", {"source": "sub", "destination": "sub"})
    run(loop, "cp", {"source": "sub", "destination": "x"})
    assert unfolded(dump(tree(bfcl))) == 3 and MAX_TREE > 3


def test_big_numbers_survive(bfcl: Path) -> None:
    bot = new_instance(load_classes(bfcl), "TradingBot", {"account_info": {"balance": 2**63 - 1}}, long=False)
    bot.account_info["balance"] += 2**63  # type: ignore[attr-defined]
    again = load(load_classes(bfcl), dump(bot))
    assert again.account_info == bot.account_info  # type: ignore[attr-defined]


def test_damaged_states_do_no_harm() -> None:
    env = ToolAPIEnv("bfcl:base")
    env.reset(options={"task": "multi_turn_base_0"})
    env.step(env.expert_action())
    data, rng = env.snapshot().to_bytes(), np.random.default_rng(0)
    for place in rng.integers(len(data), size=150):
        damaged = data[:place] + bytes([data[place] ^ (1 << int(rng.integers(8)))]) + data[place + 1 :]
        try:
            env.restore(Snapshot.from_bytes(damaged))
        except (SnapshotError, TaskError):
            continue
        env.step(format_call("ls", {}))
        if env.snapshot().status == "running":
            env.step("Done.")


def test_no_text_raises_hangs_or_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert feed(ToolAPIEnv("bfcl:all"), 500, seed=0, own=("ls", "cd", "cp", '"folder":"')) < 2
