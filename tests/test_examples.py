"""The example packages: their numbers by hand, and both installed, used and misused as strangers' packages are."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import gymnasium
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.rloo_plugin.trace_gym_rloo import RLOO, leave_one_out
from tests.support.trees import add, prompt_tree, star
from trace_gym.algorithm import Branch, RunContext, StepContext
from trace_gym.errors import ConfigError, PluginError
from trace_gym.pack import flatten, token_weights
from trace_gym.plugins import algorithm_class, make_algorithm
from trace_gym.runs import RunFolder
from trace_gym.tree import Tree

if TYPE_CHECKING:
    from examples.my_env.my_env import LiftEnv

EXAMPLES = Path(__file__).parent.parent / "examples"
LIFT = "my_env:my_namespace/Lift-v0"
NAN = float("nan")


def context(*trees: Tree) -> StepContext:
    return StepContext(run=RunContext(seed=0, tasks=[]), step=0, trees={t.task_id: t for t in trees})


# ---- RLOO by hand ---------------------------------------------------------------------------------------------------


def test_a_rollout_is_judged_against_the_mean_of_the_others() -> None:
    np.testing.assert_allclose(leave_one_out(star([1.0, 0.0, 0.0, 0.0]))[1:], [1, -1 / 3, -1 / 3, -1 / 3])
    np.testing.assert_allclose(leave_one_out(star([1.0, 0.0, 1.0]))[1:], [0.5, -1.0, 0.5])
    np.testing.assert_allclose(leave_one_out(star([1.0, 1.0]))[1:], 0.0)


def test_every_turn_of_a_rollout_gets_its_advantage() -> None:
    tree = prompt_tree()
    first = add(tree, 0)
    add(tree, 0, reward=0.0, status="truncated")
    second = add(tree, first)
    add(tree, second, reward=1.0, status="done")
    add(tree, 0, reward=0.5, status="done")
    np.testing.assert_allclose(leave_one_out(tree)[1:], [0.75, -0.75, 0.75, 0.75, 0.0])


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=12))
def test_the_definition_on_any_star(rewards: list[float]) -> None:
    others = [np.mean(np.delete(rewards, i)) for i in range(len(rewards))]
    np.testing.assert_allclose(leave_one_out(star(rewards))[1:], rewards - np.array(others), atol=1e-9)


def test_unscored_rollouts_are_no_baseline_and_have_none() -> None:
    tree = star([1.0, 0.0])
    before = add(tree, 0)
    add(tree, before, reward=NAN, status="failed")
    np.testing.assert_allclose(leave_one_out(tree)[1:], [1.0, -1.0, NAN, NAN])


@pytest.mark.parametrize("rewards", [[], [1.0], [NAN], [1.0, NAN]])
def test_a_rollout_left_alone_teaches_nothing(rewards: list[float]) -> None:
    tree = prompt_tree()
    for reward in rewards:
        add(tree, 0, reward=reward, status="failed" if np.isnan(reward) else "done")
    trees = {tree.task_id: tree}
    credits = RLOO().credit(context(tree))
    assert np.isnan(credits[tree.task_id].advantage).all()
    assert flatten(trees, credits, token_weights(trees, credits, RLOO().normalise)) == []


def test_a_token_counts_the_same_in_short_and_long_rollouts() -> None:
    """The loss is a constant times the paper's: mean over rollouts of A * (sum of its tokens' log-probs)."""
    tree = star([1.0, 0.0], lengths=[1, 5])
    algorithm = RLOO(rollouts=2)
    credits, trees = algorithm.credit(context(tree)), {tree.task_id: tree}
    weights = token_weights(trees, credits, algorithm.normalise, algorithm.constant_tokens)
    rows = flatten(trees, credits, weights)
    per_token = [set((row.advantage * row.weight)[row.weight > 0]) for row in rows]
    assert per_token == [{1 / (2 * 256)}, {-1 / (2 * 256)}]


def test_the_plan_is_one_wave_of_equal_numbers() -> None:
    ctx = context(star([]), Tree("other", star([]).nodes))
    algorithm = RLOO(rollouts=3)
    assert algorithm.plan(ctx) == [Branch("task", count=3), Branch("other", count=3)]
    ctx.idle = ("task",)
    assert algorithm.plan(ctx) == []


def test_one_rollout_is_refused_in_a_line_for_people() -> None:
    with pytest.raises(
        ConfigError, match=r"rollouts must be at least 2.*, not 1; its fields are .*rollouts=4"
    ):
        make_algorithm("examples.rloo_plugin.trace_gym_rloo:RLOO", {"rollouts": 1})


# ---- the lift -------------------------------------------------------------------------------------------------------


@pytest.fixture
def lift() -> Iterator[LiftEnv]:
    module = importlib.import_module("examples.my_env.my_env")
    yield module.LiftEnv()
    gymnasium.registry.pop(module.LiftEnv.env_id, None)  # it names a module that other tests cannot import


def test_the_expert_arrives_and_the_novice_often_gets_off_early(lift: LiftEnv) -> None:
    rng, rate = np.random.default_rng(0), {}
    tasks = [*lift.tasks("train"), *lift.tasks("test")]
    assert len(tasks) == len(set(tasks)) == 90
    for who in ("expert", "novice"):
        ended: list[float] = []
        for task in tasks:
            lift.reset(seed=1, options={"task": task})
            over = False
            while not over:
                action = lift.expert_action() if who == "expert" else lift.novice_action(rng)
                _, reward, over, truncated, _ = lift.step(action)
                assert not truncated
            ended.append(reward)
        rate[who] = np.mean(ended)
    assert rate["expert"] == 1.0 and 0.4 < rate["novice"] < 0.9


@pytest.mark.parametrize(
    ("action", "says"),
    [
        ("up", "no action found"),
        ('<tool_call>{"name":"jump","arguments":{}}</tool_call>', "no tool 'jump'; the tool is ride"),
        ('<tool_call>{"name":"ride","arguments":{"floors":9}}</tool_call>', "must be one of: -3, -2"),
        ('<tool_call>{"name":"ride","arguments":{"floors":"1"}}</tool_call>', "must be of type integer"),
    ],
)
def test_a_useless_action_costs_a_turn_and_is_explained(lift: LiftEnv, action: str, says: str) -> None:
    lift.reset(seed=0, options={"task": "2-7"})
    before = lift.state
    observation, reward, terminated, truncated, info = lift.step(action)
    assert says in observation and info["format_error"] and lift.state == before
    assert (reward, terminated, truncated) == (0.0, False, False)


def test_a_lift_stays_in_its_house_and_stops_short_as_often_as_it_is_told(lift: LiftEnv) -> None:
    make = type(lift)
    for short, stops in ((0.0, {9}), (0.999, {8})):
        env, seen = make(short=short), set()
        for seed in range(5):
            env.reset(seed=seed, options={"task": "6-9"})
            env.step(env.expert_action())
            seen.add(env.state.floor)
        assert seen == stops
    for _ in range(5):
        env.step('<tool_call>{"name":"ride","arguments":{"floors":3}}</tool_call>')
    assert env.state.floor == 9
    with pytest.raises(ConfigError, match="probability below 1"):
        make(short=1.0)


# ---- installed ------------------------------------------------------------------------------------------------------


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python away from the checkout, `path` first on its import path."""
    inherited = os.environ.get("PYTHONPATH", "")
    paths = os.pathsep.join(str(p) for p in (path, inherited) if p)
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=110,
    )


def pip_install(target: Path, *projects: Path) -> Path:
    alone = ("--no-deps", "--no-index", "--no-build-isolation", "--no-compile", "--disable-pip-version-check")
    done = run("-m", "pip", "install", "--quiet", *alone, "--target", target, *projects, cwd=projects[0])
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds both example packages, installed."""
    return pip_install(tmp_path_factory.mktemp("site"), EXAMPLES / "rloo_plugin", EXAMPLES / "my_env")


@pytest.fixture(scope="session")
def unfit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two packages: one that cannot be imported, one that takes the name rloo_example too."""
    sources = tmp_path_factory.mktemp("sources")
    packages = {
        "broken-plugin": ("broken", "import no_such_package"),
        "rloo-again": ("rloo_example", "class X: pass"),
    }
    for project, (name, code) in packages.items():
        module = project.replace("-", "_")
        (folder := sources / project).mkdir()
        (folder / f"{module}.py").write_text(code)
        example = (EXAMPLES / "rloo_plugin" / "pyproject.toml").read_text()
        head, _, _ = example.replace("trace-gym-rloo", project).partition("\nrloo_example = ")
        (folder / "pyproject.toml").write_text(f'{head}\n{name} = "{module}:X"\n')
        (folder / "README.md").touch()
    return pip_install(tmp_path_factory.mktemp("unfit"), *sources.iterdir())


def test_an_installed_algorithm_is_listed_with_its_distribution(site: Path, tmp_path: Path) -> None:
    done = run("-m", "trace_gym.cli", "algorithms", cwd=tmp_path, path=site)
    assert done.returncode == 0, done.stderr
    assert "\nrloo_example (trace-gym-rloo)  Equal numbers" in done.stdout and "rollouts=4" in done.stdout


CHECK = f"""
import sys, trace_gym
from trace_gym.cli import main

print(trace_gym.check_env({LIFT!r}))
sys.argv = ["trace-gym", "check", {LIFT!r}]
main()
"""


def test_an_installed_environment_keeps_every_rule(site: Path, tmp_path: Path) -> None:
    """Both as `gymnasium.make` makes it, where a wrapper would show, and from the command line."""
    done = run("-c", CHECK, cwd=tmp_path, path=site)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("my_namespace/Lift-v0 keeps all ") == 2 and "not exercised" not in done.stdout


TRAIN = f"""
import sys
from pathlib import Path
from trace_gym.cli import main
from trace_gym.plugins import make_env
from trace_gym.warmup import warmup

warmup(Path("policy"), env=make_env({LIFT!r}), steps=200, d_model=64, layers=1, batch=8, demonstrations=256)
sys.argv = "trace-gym train env.id={LIFT} policy.path=policy algorithm.name=rloo_example budget.steps=2".split()
sys.argv += "rollout.prompts_per_step=8 eval.tasks=4".split()
main()
"""


def test_an_installed_algorithm_trains_in_an_installed_environment(site: Path, tmp_path: Path) -> None:
    done = run("-c", TRAIN, cwd=tmp_path, path=site)
    assert done.returncode == 0, done.stderr
    folder = RunFolder.open(tmp_path / "runs" / "train")
    assert folder.config().algorithm["name"] == "rloo_example" and folder.config().algorithm["rollouts"] == 4
    rows = folder.metrics()
    assert [row["rollout_units"] for row in rows] == [32.0, 64.0]
    assert any(float(row["grad_norm"]) > 0 for row in rows)
    for step in range(2):
        advantage = pq.read_table(folder.trees_path(step))["advantage"].to_numpy()
        wanted = np.concatenate([leave_one_out(tree) for tree in folder.load_trees(step)])
        np.testing.assert_allclose(advantage, wanted)


def test_an_installed_algorithm_that_breaks_is_named_with_its_distribution(
    unfit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(unfit)
    with pytest.raises(PluginError, match=r"'broken' of distribution 'broken-plugin'.*'no_such_package'"):
        algorithm_class("broken")
    assert algorithm_class("grpo").__name__ == "GRPO"  # the others still work


def test_two_installed_algorithms_of_one_name_are_both_named(
    site: Path, unfit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(site)
    monkeypatch.syspath_prepend(unfit)
    with pytest.raises(
        PluginError, match="'rloo_example' is claimed by distributions 'rloo-again' and 'trace-gym-rloo'"
    ):
        algorithm_class("rloo_example")
