"""The examples of CONTRIBUTING.md, run as they stand there."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import gymnasium
import numpy as np
import pytest

from trace_gym import Ledger, Request, RunContext, ScriptedEngine, check_env
from trace_gym.ledger import Budget
from trace_gym.render import PlainRenderer
from trace_gym.rollout import RolloutSettings, grow_trees, plant_trees

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The page's Python blocks as modules, by the path that the page gives them."""
    blocks = re.findall(r"Write `(\S+)\.py`:\n\n```python\n(.*?)```", TEXT, re.DOTALL)
    assert [path for path, _ in blocks] == ["envs/total", "algorithms/mean_baseline"]
    monkeypatch.syspath_prepend(tmp_path)
    modules = {}
    for path, source in blocks:
        name = "example_" + path.split("/")[1]
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
        modules[path] = importlib.import_module(name)
    return modules


def test_the_examples_registrations_are_all_that_an_outsider_needs(
    examples: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, total, game, _ = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    source = Path(str(examples["envs/total"].__file__)).read_text()
    source = source.replace("trace_gym/Total-v0", "my_namespace/Total-v0")
    (tmp_path / "my_total.py").write_text("import gymnasium\n" + source + "\n\n" + total)
    game = game.replace("their_module:their_namespace/Game-v0", "tests.support.text_games:tests/Guess-v0")
    (tmp_path / "my_game.py").write_text(game)
    try:
        for module, name in (("my_total", "Total"), ("my_game", "Game")):
            report = check_env(f"{module}:my_namespace/{name}-v0")
            assert "no-wrapper" in report.exercised and report.warnings == ()
            assert report.env_id == f"my_namespace/{name}-v0" and "new-process" in report.exercised
    finally:
        for name in ("Total", "Game"):
            gymnasium.registry.pop(f"my_namespace/{name}-v0", None)


def test_the_examples_keep_our_style(examples: dict[str, ModuleType]) -> None:
    files = [str(module.__file__) for module in examples.values()]
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), *files]
        done = subprocess.run(ruff, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_expert_solves_every_task_with_a_turn_to_waste(examples: dict[str, ModuleType]) -> None:
    env = examples["envs/total"].TotalEnv()
    for task in (*env.tasks("train"), *env.tasks("test")):
        env.reset(seed=0, options={"task": task})
        _, reward, ended, _, info = env.step("\x00 no digit")
        assert (reward, ended, info["format_error"]) == (0.0, False, True)
        while not ended:
            _, reward, ended, truncated, info = env.step(env.expert_action())
            assert not truncated
        assert reward == 1.0 and info["success"]


def test_the_example_environment_keeps_the_contract(examples: dict[str, ModuleType]) -> None:
    check_env(examples["envs/total"].TotalEnv())


def test_the_example_algorithm_credits_a_turn_with_its_value_over_the_mean(
    examples: dict[str, ModuleType],
) -> None:
    env, renderer = examples["envs/total"].TotalEnv(), PlainRenderer()

    def reply(request: Request, rng: np.random.Generator) -> list[int]:
        return renderer.encode(str(rng.integers(1, 10)))

    algorithm = examples["algorithms/mean_baseline"].MeanBaseline(rollouts=16)
    run = RunContext(seed=1, tasks=env.tasks("train"))
    ctx = plant_trees(env, ["10", "11"], renderer, run, 0, Budget())
    grow_trees(
        algorithm,
        ctx,
        engine=ScriptedEngine(reply),
        renderer=renderer,
        env=env,
        settings=RolloutSettings(),
        ledger=Ledger(),
    )
    credit = algorithm.credit(ctx)
    assert list(credit) == ["10", "11"]
    for task, tree in ctx.trees.items():
        leaves = tree.leaves()
        outcomes = np.array(tree.outcomes())
        assert len(outcomes) == 16 and 0 < outcomes.mean() < 1
        np.testing.assert_allclose(credit[task].advantage[leaves], outcomes - outcomes.mean(), atol=1e-12)
